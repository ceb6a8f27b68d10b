"""Whether the files beside the Kubernetes manifests would be accepted: functions that return faults, `FILE: what`."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

import botocore.session
import click
import jsonschema
import ray.autoscaler
import yaml
from botocore.validate import ParamValidator
from ray.autoscaler._private import util

from infra.check.commands import joined, misused, refused, refused_in
from pipeline.plan.pools import RESOURCES

ROOT = Path(__file__).parents[2]
_TOOL_S = 60

# Of the options that sbatch's manual lists, what a job here may ask for.
_SBATCH = """
    account array chdir comment constraint cpus-per-gpu cpus-per-task dependency error exclude exclusive export gpus
    gpus-per-node gpus-per-task gres job-name licenses mail-type mail-user mem mem-per-cpu mem-per-gpu nodelist nodes
    ntasks ntasks-per-node open-mode output partition qos requeue reservation signal switches time time-min tmp
"""

# What Slurm tells a job of, as far as it is asked here.
_SLURM = "SLURM_JOB_ID SLURM_JOB_NUM_NODES SLURMD_NODENAME"
_SIGNALS = {each.name for each in signal.Signals}

# What a node may declare.
_RESOURCES = {"CPU", "GPU", "memory", "object_store_memory", *RESOURCES.values()}


def dockerfile(path: Path, root: Path = ROOT) -> list[str]:
    """Faults of a Dockerfile: hadolint's, and where it does not fit the repository that it is built from.

    Args:
        path: The file; what is not sent to its build stands beside it, in NAME.dockerignore.
        root: The repository.
    """
    text = path.read_text(encoding="utf-8")
    ignore = path.with_name(f"{path.name}.dockerignore")
    faults = list(_hadolint(text))
    for source in _copied(joined(text)):
        if not (root / source).exists():
            faults.append(f"COPY {source}: there is no such file")
        elif _ignored(source, ignore.read_text(encoding="utf-8").splitlines()):
            faults.append(f"COPY {source}: {ignore.name} keeps it out of the build")
    (command,) = re.findall(r"^CMD (\[.*\])$", text, re.MULTILINE)
    faults += refused(shlex.join(json.loads(command)))
    faults += [f"{name}: pip is handed no such file" for name in _constraints(text) if not (root / name).exists()]
    if "RAY_AUTH_MODE=token" not in text:
        faults.append("ENV: no RAY_AUTH_MODE=token: whoever reaches a Ray may run anything")
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [extra for named in re.findall(r"\.\[([\w,]+)\]", text) for extra in named.split(",")]
    faults += [f"[{extra}]: no such extra" for extra in extras if extra not in project["optional-dependencies"]]
    if f'image.version="{project["version"]}"' not in text:
        faults.append(f"image.version: not pyproject.toml's {project['version']}")
    return _of(path, faults)


def sbatch(path: Path) -> list[str]:
    """Faults of a script for sbatch: those of any, and options that sbatch does not know."""
    return [*script(path), *_of(path, _unlike_slurm(path.read_text(encoding="utf-8")))]


def script(path: Path) -> list[str]:
    """Faults of a shell's script: the shell's, shellcheck's, and options that ray or gnp do not know."""
    faults = _run("bash", "-n", str(path)) or _run("shellcheck", "--format", "gcc", str(path))
    return _of(path, [*faults, *misused(path.read_text(encoding="utf-8"))])


def launcher(path: Path) -> list[str]:
    """Faults of a file for Ray's cluster launcher: by Ray's schema, without its leave to add keys, and by EC2's."""
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        return _of(path, [" ".join(str(error).split())])
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text(encoding="utf-8"))
    found = jsonschema.Draft7Validator(_strict(schema)).iter_errors(config)
    faults = [f"{'.'.join(map(str, error.absolute_path)) or 'top'}: {error.message}" for error in found]
    if not faults:
        try:
            util.validate_config(util.prepare_config(config))
        except (ValueError, RuntimeError, click.ClickException) as error:
            faults.append(str(error))
        if config["provider"]["type"] == "aws":
            faults += _refused_by_ec2(config["available_node_types"])
    declared = {name for each in config.get("available_node_types", {}).values() for name in each.get("resources", {})}
    faults += [f"resources.{name}: nothing of Ray's or ours" for name in sorted(declared - _RESOURCES)]
    commands = [command for key in config if key.endswith("_commands") for command in config[key]]
    for command in commands:  # whatever lies before the program's name
        faults += refused_in([re.sub(r"\S*/(ray|gnp) ", r"\1 ", command)])
    heads = [each for name, each in config.get("available_node_types", {}).items() if name == config["head_node_type"]]
    faults += [
        f"{config['head_node_type']}: no work is for the head: CPU: 0" for each in heads if each["resources"]["CPU"]
    ]
    faults += [
        f"{command}: starts without RAY_AUTH_MODE=token"
        for command in commands
        if "ray start" in command and "RAY_AUTH_MODE=token" not in command
    ]
    return _of(path, faults)


def _of(path: Path, faults: Iterable[str]) -> list[str]:
    return [f"{path.name}: {fault}" for fault in faults]


def _run(tool: str, *arguments: str, text: str | None = None) -> list[str]:
    """What a tool says where it finds fault; those that pip installs lie beside this Python."""
    path = shutil.which(tool, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if path is None:
        return [f"{tool}: not installed"]
    done = subprocess.run([path, *arguments], input=text, capture_output=True, text=True, timeout=_TOOL_S, check=False)
    return (done.stdout + done.stderr).strip().splitlines() if done.returncode else []


def _hadolint(text: str) -> Iterator[str]:
    """What hadolint says, with the line that it says it of."""
    for said in _run("hadolint", "--no-color", "-", text=text):
        found = re.match(r"\S+?:(\d+)(?::\d+)? (.*)", said)
        yield f"{found[2]}: {text.splitlines()[int(found[1]) - 1].strip()}" if found else said


def _unlike_slurm(text: str) -> Iterator[str]:
    """What Slurm would not know, or not see."""
    for option in re.findall(r"^#SBATCH\s+(?:--)?([\w-]+)", text, re.MULTILINE):
        if option not in _SBATCH.split():
            yield f"#SBATCH {option}: no option of sbatch's"
    for word in re.findall(r"^#(?!SBATCH\b)([A-Z]+)\b", text, re.MULTILINE):
        yield f"#{word}: neither SBATCH nor a comment"
    for name in re.findall(r"--signal=B:(\w+)@", text):
        if f"SIG{name}" not in _SIGNALS:
            yield f"{name}: no signal"
    for name in re.findall(r"\$(SLURM\w+)", text):
        if name not in _SLURM.split():
            yield f"${name}: Slurm sets none such"
    for name in re.findall(r"scontrol (\w+)", text):
        if name != "requeue":
            yield f"scontrol {name}: no such command"
    if "RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=" not in text:
        yield "no token: whoever reaches Ray may run anything"
    begun = re.search(r"^[^#\n]", text, re.MULTILINE)
    if begun and "\n#SBATCH" in text[begun.start() :]:
        yield "#SBATCH: after the first command, where sbatch does not look"


def _copied(text: str) -> Iterator[str]:
    """What a Dockerfile takes from the repository."""
    for words in (shlex.split(line) for line in re.findall(r"^COPY (.*)", text, re.MULTILINE)):
        if not any(word.startswith("--from") for word in words):
            yield from [word for word in words if not word.startswith("--")][:-1]


def _constraints(text: str) -> set[str]:
    """What pip is told to hold versions to."""
    return set(re.findall(r"--constraint (\S+)", joined(text)))


def _ignored(source: str, patterns: list[str]) -> bool:
    """Whether a .dockerignore keeps a file or folder out: the last line that fits it, or a folder above, says so."""
    parts = [source, *map(str, PurePosixPath(source).parents)]
    fitting = [each for each in patterns if any(fnmatchcase(part, each.lstrip("!")) for part in parts)]
    return bool(fitting) and not fitting[-1].startswith("!")


def _strict(schema: Any) -> Any:
    """The schema, refusing what its objects do not name."""
    made = dict(schema)
    for key in ("properties", "patternProperties"):
        if key in schema:
            made[key] = {name: _strict(each) for name, each in schema[key].items()}
    if "properties" in schema:
        made["additionalProperties"] = False
    return made


def _refused_by_ec2(types: dict[str, Any]) -> Iterator[str]:
    """What EC2's own description of RunInstances does not take; SubnetIds is Ray's."""
    ec2 = botocore.session.get_session().get_service_model("ec2")
    shape = ec2.operation_model("RunInstances").input_shape
    for name, each in types.items():
        asked = {key: value for key, value in each["node_config"].items() if key != "SubnetIds"}
        report = ParamValidator().validate({**asked, "MinCount": 1, "MaxCount": 1}, shape)
        yield from (f"{name}.node_config: {line}" for line in report.generate_report().splitlines())
        if not report.has_errors():
            yield from (f"{name}.node_config.{fault}" for fault in _not_listed(asked, shape))


def _not_listed(given: Any, shape: Any) -> Iterator[str]:
    """Values that are not among those that EC2 lists, which its validator does not look at."""
    if shape.type_name == "structure":
        for name, each in given.items():
            yield from (f"{name}.{fault}" for fault in _not_listed(each, shape.members[name]))
    elif shape.type_name == "list":
        for each in given:
            yield from _not_listed(each, shape.member)
    elif getattr(shape, "enum", []) and given not in shape.enum:
        yield f"{given}: EC2 knows none such"
