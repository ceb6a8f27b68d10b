"""The files of infra/ other than the Kubernetes manifests: each passes its check, and seeded typos do not."""

import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from infra.check import files, terraform
from infra.check.__main__ import _faults
from tests.conftest import ROOT

INFRA = ROOT / "infra"
CHECKS: dict[str, Callable[[Path], list[str]]] = {
    "docker/Dockerfile": files.dockerfile,
    "slurm/gnp.sbatch": files.sbatch,
    "k8s/base/nightly.sh": files.script,
    "ray/aws.yaml": files.launcher,
    "ray/on-premise.yaml": files.launcher,
    "terraform/aws": terraform.module,
    "terraform/s3-compatible": terraform.module,
}

# In CI, missing terraform is a failure.
needs_terraform = pytest.mark.skipif(
    shutil.which("terraform") is None and not os.environ.get("CI"), reason="terraform is not installed"
)

# Checked path, changed file below it, text before and after the change, and the expected message.
TYPOS = [
    ("docker/Dockerfile", "", "COPY jobs jobs", "COPPY jobs jobs", "COPPY"),
    ("docker/Dockerfile", "", "COPY jobs jobs", "COPY jbos jobs", "COPY jbos: there is no such file"),
    ("docker/Dockerfile", "", "COPY jobs jobs", "COPY infra infra", "COPY infra: Dockerfile.dockerignore keeps it out"),
    ("docker/Dockerfile", "", ".[metrics,train]", ".[metrics,trian]", "[trian]: no such extra"),
    ("docker/Dockerfile", "", 'image.version="0.1.0"', 'image.version="0.0.9"', "image.version"),
    ("docker/Dockerfile", "", "type=bind,from=wheel", "typ=bind,from=wheel", "typ"),
    ("docker/Dockerfile", "", "apt-get install --yes", "apt-get install", "DL3014"),
    ("docker/Dockerfile", "Dockerfile.dockerignore", "!pipeline", "!pipelin", "COPY pipeline: Dockerfile.dockerignore"),
    ("slurm/gnp.sbatch", "", "#SBATCH --requeue", "#SBATCH --reque", "#SBATCH reque"),
    ("slurm/gnp.sbatch", "", "exit 2\nfi", "exit 2\nif", "syntax error"),
    ("slurm/gnp.sbatch", "", "recipe=$1", "recipes=$1", "recipe is referenced but not assigned"),
    ("slurm/gnp.sbatch", "", "--min-nodes", "--min-node", "--min-node"),
    ("slurm/gnp.sbatch", "", "--object-store-memory", "--objects-memory", "--objects-memory"),
    ("slurm/gnp.sbatch", "", "gnp finalize", "gnp finalise", "gnp finalise: no such command"),
    ("slurm/gnp.sbatch", "", '--store "$3"', '--stores "$3"', "--stores"),
    ("docker/Dockerfile", "", "RAY_AUTH_MODE=token", "RAY_AUTH_MOD=token", "no RAY_AUTH_MODE=token"),
    ("docker/Dockerfile", "", "--constraint requirements.lock", "--constraint requirement.lock", "requirement.lock"),
    ("docker/Dockerfile", "", 'CMD ["gnp"', 'CMD ["gpn"', "gpn --help: neither ray nor gnp"),
    ("slurm/gnp.sbatch", "", "#SBATCH --requeue", "#SBTACH --requeue", "#SBTACH: neither #SBATCH nor a comment"),
    ("slurm/gnp.sbatch", "", "B:USR1@120", "B:URS1@120", "URS1: not a signal"),
    ("slurm/gnp.sbatch", "", "$SLURM_JOB_NUM_NODES", "$SLURM_JOB_NUMNODES", "$SLURM_JOB_NUMNODES: Slurm does not set"),
    ("slurm/gnp.sbatch", "", "scontrol requeue", "scontrol reqeue", "scontrol reqeue: no such command"),
    ("slurm/gnp.sbatch", "", "RAY_AUTH_MODE=token", "RAY_AUTH_MOD=token", "no token"),
    ("slurm/gnp.sbatch", "", "pipefail\n", "pipefail\n#SBATCH --mem=1G\n", "#SBATCH: after the first command"),
    ("k8s/base/nightly.sh", "", "labels=$(", "lables=$(", "labels is referenced but not assigned"),
    ("k8s/base/nightly.sh", "", "    esac\n    sleep", "    esc\n    sleep", "nightly.sh: "),
    ("ray/aws.yaml", "", "max_workers: 10", "max_worker: 10", "max_worker"),
    ("ray/aws.yaml", "", "use_internal_ips", "use_internal_ip", "use_internal_ip"),
    ("ray/aws.yaml", "", "    min_workers: 1\n    max_workers: 8", "    min_worker: 1", "min_worker"),
    ("ray/aws.yaml", "", "max_workers: 10", "max_workers: 1", "max_workers"),
    ("ray/aws.yaml", "", "{CPU: 0}", "{CPU: none}", "resources.CPU"),
    (
        "ray/aws.yaml",
        "",
        "{gnp_scorer: 1}",
        "{gnp_scorers: 1}",
        "resources.gnp_scorers: neither a resource of Ray nor of gnp",
    ),
    ("ray/aws.yaml", "", "head_node_type: head", "head_node_type: heads", "head_node_type"),
    ("ray/aws.yaml", "", "InstanceMarketOptions", "InstanceMarketOption", "InstanceMarketOption"),
    ("ray/aws.yaml", "", "{MarketType: spot}", "{MarketTyp: spot}", "MarketTyp"),
    ("ray/aws.yaml", "", "{MarketType: spot}", "{MarketType: sopt}", "MarketType.sopt: not a value that EC2 knows"),
    ("ray/aws.yaml", "", "g5.2xlarge", "g5.2xlrage", "InstanceType.g5.2xlrage: not a value that EC2 knows"),
    ("ray/aws.yaml", "", "{CPU: 0}", "{CPU: 2}", "head: the head takes no work: CPU must be 0"),
    ("ray/aws.yaml", "", "--object-store-memory=500000000 --auto", "--object-store-memory=5OO --auto", "'5OO' is not"),
    ("ray/aws.yaml", "", "--autoscaling-config", "--autoscaler-config", "--autoscaler-config"),
    ("ray/aws.yaml", "", "RAY_AUTH_MODE=token ray start --address", "ray start --address", "RAY_AUTH_MODE"),
    ("ray/aws.yaml", "", "&subnets [", "&subnets {", "aws.yaml: while parsing"),
    ("ray/on-premise.yaml", "", "worker_ips", "worker_ip", "worker_ip"),
    ("ray/on-premise.yaml", "", "ssh_user", "ssh_usr", "ssh_usr"),
    ("ray/on-premise.yaml", "", "--num-gpus=0", "--num-gpu=0", "--num-gpu"),
    ("ray/on-premise.yaml", "", "ray start --head", "ray strat --head", "ray strat: no such command"),
    ("terraform/aws", "variables.tf", 'variable "prefix"', 'variable "prefixes"', "var.prefix is not declared"),
    (
        "terraform/aws",
        "bucket.tf",
        "versioning_configuration {",
        "versioning_configuraton {",
        "versioning_configuraton: no",
    ),
    ("terraform/aws", "bucket.tf", "days_after_initiation", "days_after_initation", "days_after_initation: no such"),
    (
        "terraform/aws",
        "bucket.tf",
        '"aws_s3_bucket_policy"',
        '"aws_s3_buckt_policy"',
        "aws_s3_buckt_policy: not a type",
    ),
    ("terraform/aws", "bucket.tf", "results.arn", "results.anr", ".anr: not an attribute"),
    ("terraform/aws", "variables.tf", "startswith(", "starstwith(", "starstwith(): not a function"),
    ("terraform/aws", "access.tf", "s3:PutObject", "s3:PutObjet", "s3:PutObjet: not a right of AWS"),
    ("terraform/aws", "machines.tf", "ec2:RunInstances", "ec2:RunInstance", "ec2:RunInstance: not a right of AWS"),
    ("terraform/aws", "access.tf", '"StringEquals"', '"StringEqual"', "StringEqual: not a condition operator"),
    ("terraform/s3-compatible", "versions.tf", "s3_use_path_style", "s3_use_pathstyle", "s3_use_pathstyle: no such"),
    ("terraform/aws", "variables.tf", 'variable "prefix"', 'variable "prefixes"', "var.prefixes is not used"),
    ("terraform/aws", "variables.tf", "  description", "  descripton", "descripton: no such argument"),
    ("terraform/aws", "variables.tf", "error_message = ", "error_message ", "variables.tf: Unexpected token"),
    ("terraform/aws", "versions.tf", "required_providers", "required_provider", "required_provider: no such argument"),
    (
        "terraform/aws",
        "bucket.tf",
        'aws_s3_bucket" "results"',
        'aws_s3_bucket" "result"',
        "aws_s3_bucket.results is not",
    ),
    (
        "terraform/aws",
        "bucket.tf",
        "document.tls_only",
        "document.tls",
        "bucket.tf: data.aws_iam_policy_document.tls is",
    ),
    ("terraform/aws", "access.tf", "policy.store.arn", "policy.stores.arn", "access.tf: aws_iam_policy.stores is not"),
    ("terraform/aws", "access.tf", "resource ", "resources ", "resources: not a block of Terraform"),
    ("terraform/aws", "machines.tf", "local.heads", "local.head_", "machines.tf: local.head_ is not declared"),
    ("terraform/aws", "outputs.tf", "var.prefix", "var.prefx", "outputs.tf: var.prefx is not declared"),
    ("terraform/s3-compatible", "main.tf", "var.versioning", "var.version", "main.tf: var.version is not declared"),
    ("terraform/s3-compatible", "outputs.tf", "document.store", "document.stor", "outputs.tf: data.aws_iam_policy"),
    ("terraform/s3-compatible", "variables.tf", "  description", "  describe", "describe: no such argument"),
    ("terraform/s3-compatible", "versions.tf", "terraform {", "terraforms {", "terraforms: not a block of Terraform"),
]


@pytest.mark.parametrize("name", CHECKS)
def test_every_file_passes(name: str) -> None:
    assert CHECKS[name](INFRA / name) == []


def test_every_file_is_checked() -> None:
    """These folders have no file that no check reads."""
    folders = [INFRA / name for name in ("docker", "slurm", "ray", "terraform")]
    found = {path for folder in folders for path in folder.rglob("*") if path.is_file()}
    checked = {path for name in CHECKS for path in (INFRA / name, *(INFRA / name).glob("*.tf")) if path.is_file()}
    assert found - checked == {INFRA / "docker" / "Dockerfile.dockerignore"}  # read by the Dockerfile's check


@pytest.mark.parametrize(("name", "file", "right", "wrong", "message"), TYPOS, ids=lambda text: text.split("\n")[0])
def test_a_typo_is_named(name: str, file: str, right: str, wrong: str, message: str, tmp_path: Path) -> None:
    folder = INFRA / name if (INFRA / name).is_dir() else (INFRA / name).parent
    copied = shutil.copytree(folder, tmp_path / folder.name)
    checked = copied if folder.name == Path(name).name else copied / Path(name).name
    changed = copied / file if file else checked
    text = changed.read_text(encoding="utf-8")
    assert right in text
    changed.write_text(text.replace(right, wrong, 1), encoding="utf-8")
    faults = CHECKS[name](checked)
    assert any(message in fault for fault in faults), faults
    assert all((copied / fault.split(":")[0]).is_file() for fault in faults)


@needs_terraform
def test_terraform_s_own_formatter_has_nothing_to_change() -> None:
    assert terraform.formatted(INFRA / "terraform") == []


@needs_terraform
@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [("  bucket = var", "bucket  = var", "main.tf: not formatted"), ('"results" {', '"results" {{', "main.tf line ")],
)
def test_files_that_terraform_fmt_would_change_or_cannot_read_are_named(
    right: str, wrong: str, message: str, tmp_path: Path
) -> None:
    copied = shutil.copytree(INFRA / "terraform", tmp_path / "terraform")
    changed = copied / "s3-compatible" / "main.tf"
    changed.write_text(changed.read_text(encoding="utf-8").replace(right, wrong, 1), encoding="utf-8")
    (fault,) = terraform.formatted(copied)
    assert message in fault


def test_a_tool_that_is_missing_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    monkeypatch.setenv("PATH", "/nowhere")
    assert files.dockerfile(INFRA / "docker/Dockerfile") == ["Dockerfile: hadolint: not installed"]


# Slurm does not run here: these stand in for the programs that the script calls. They log their calls, and a run waits
# for a signal.
STAND_INS = {
    "scontrol": 'echo "scontrol $*" >>calls',
    "srun": 'echo "srun $*" >>calls; while [ "$1" != -- ]; do shift; done; shift; "$@"',
    "gnp": """
        echo "gnp $*" >>calls
        [ "$1" = generate ] || exit 0
        [ "$RAY_AUTH_MODE" = token ] && stat --format 'token %a %s' "$RAY_AUTH_TOKEN_PATH" >>calls
        trap 'kill %1; exit 130' TERM
        touch begun
        sleep 60 & [ -e at-once ] || wait
    """,
}


class Job:
    """The script in a new folder, with the environment of the first machine of a Slurm job."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name, body in STAND_INS.items():
            path = folder / "bin" / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"#!/usr/bin/env bash\n{body}\n")
            path.chmod(path.stat().st_mode | stat.S_IXUSR)
        self.environment = {
            "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "USER": "somebody",
            "SLURM_JOB_ID": "4711",
            "SLURM_JOB_NUM_NODES": "2",
            "SLURMD_NODENAME": "first",
        }

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        command = ["bash", str(INFRA / "slurm" / "gnp.sbatch"), *arguments]
        return subprocess.Popen(command, cwd=self.folder, env=self.environment, text=True, stderr=subprocess.PIPE)

    def calls(self) -> list[str]:
        return (self.folder / "calls").read_text().splitlines()


def wait_for_start(job: Job) -> None:
    deadline = time.monotonic() + 60
    while not (job.folder / "begun").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_slurm_job_runs_and_finalizes(tmp_path: Path) -> None:
    job = Job(tmp_path)
    (tmp_path / "at-once").touch()
    assert job.start("recipe.toml", "s3://bucket/prefix").wait(60) == 0
    step, run, token, last = job.calls()
    assert step.startswith("srun --ntasks=2 ")
    assert "ray symmetric-run --address first:24711 --min-nodes 2 " in step
    assert run == "gnp generate recipe.toml --store s3://bucket/prefix --address first:24711"
    assert token == "token 600 45"  # 32 bytes in base64, readable only by the user
    assert last == "gnp finalize s3://bucket/prefix"
    assert not list(tmp_path.glob(".gnp-*"))


@pytest.mark.parametrize(("number", "last"), [(signal.SIGTERM, "token"), (signal.SIGUSR1, "scontrol requeue 4711")])
def test_a_slurm_job_forwards_signals_and_is_requeued_unless_it_was_cancelled(
    number: signal.Signals, last: str, tmp_path: Path
) -> None:
    job = Job(tmp_path)
    running = job.start("recipe.toml", "s3://bucket/prefix")
    wait_for_start(job)
    running.send_signal(number)
    assert running.wait(60) == 130
    assert job.calls()[-1].startswith(last)
    assert not list(tmp_path.glob(".gnp-*"))


def test_the_code_is_the_run_s_where_it_ends_while_the_signal_is_handled(tmp_path: Path) -> None:
    job = Job(tmp_path)
    cat = tmp_path / "bin" / "cat"  # with which the script reads the run's process id
    cat.write_text('#!/bin/sh\npid=$(/bin/cat "$1"); kill -TERM "$pid"; sleep 1; echo "$pid"\n')
    cat.chmod(cat.stat().st_mode | stat.S_IXUSR)
    running = job.start("recipe.toml", "s3://bucket/prefix")
    wait_for_start(job)
    running.send_signal(signal.SIGTERM)
    assert running.wait(60) == 130


def test_a_slurm_job_whose_ray_does_not_start_fails(tmp_path: Path) -> None:
    job = Job(tmp_path)
    (tmp_path / "bin" / "srun").write_text("#!/bin/sh\n")  # `ray symmetric-run` returns 0 in that case
    running = job.start("recipe.toml", "s3://bucket/prefix")
    assert running.wait(60) == 1
    assert not (tmp_path / "calls").exists()


def test_a_slurm_job_without_a_store_prints_its_usage(tmp_path: Path) -> None:
    running = Job(tmp_path).start("recipe.toml")
    assert running.wait(60) == 2
    assert running.stderr is not None
    assert "RECIPE STORE" in running.stderr.read()


def test_instance_profiles_have_the_names_that_terraform_creates() -> None:
    launcher = yaml.safe_load((INFRA / "ray/aws.yaml").read_text())
    (name,) = re.findall(
        r'variable "name" \{.*?default\s+= "(\w+)"', (INFRA / "terraform/aws/variables.tf").read_text(), re.S
    )
    assert launcher["cluster_name"] == name
    node_types = launcher["available_node_types"].values()
    profiles = {node_type["node_config"]["IamInstanceProfile"]["Name"] for node_type in node_types}
    assert profiles == {f"{name}-head", f"{name}-worker"}


def test_a_check_that_fails_is_a_fault_too() -> None:
    content = {"a": "field"}
    assert _faults("a file", lambda: [content["b"]]) == ["a file: the check failed: KeyError: 'b'"]
