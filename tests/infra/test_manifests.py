"""The Kubernetes manifests: all fit their schemas, and a typo in any of them is found."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _generate_available_node_types_from_ray_cr_spec

from infra.check import manifests, schemas

ROOT = Path(__file__).parents[2]
K8S = ROOT / "infra" / "k8s"
# A field of every file, to be misspelt.
FIELDS = {
    "base/kustomization.yaml": "generatorOptions",
    "base/namespace.yaml": "labels",
    "base/accounts.yaml": "automountServiceAccountToken",
    "base/network.yaml": "namespaceSelector",
    "base/disruption.yaml": "minAvailable",
    "base/rayjob.yaml": "restartPolicy",
    "base/nightly.yaml": "concurrencyPolicy",
    "overlays/cpu/kustomization.yaml": "patches",
    "overlays/cpu/small.yaml": "requests",
    "overlays/eks/kustomization.yaml": "annotations",
    "overlays/eks/machines.yaml": "tolerations",
    "overlays/kueue/kustomization.yaml": "replicas",
    "overlays/kueue/rayjob.yaml": "enableInTreeAutoscaling",
    "overlays/raycron/kustomization.yaml": "replacements",
    "overlays/raycron/raycronjob.yaml": "schedule",
}


def _require(present: bool, name: str) -> None:
    if not present and os.environ.get("CI"):
        pytest.fail(f"no {name}")
    if not present:
        pytest.skip(f"no {name}")


@pytest.fixture(scope="module")
def published() -> schemas.Schemas:
    """KubeRay's schemas, which are not part of this repository."""
    folder = Path(os.environ.get("GNP_SCHEMAS", ROOT.parent / "shared" / "schemas"))
    _require(shutil.which("kubectl") is not None, "kubectl")
    _require(folder.is_dir(), "schemas of KubeRay: set GNP_SCHEMAS")
    return schemas.load(folder)


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    return Path(shutil.copytree(K8S, tmp_path / "k8s"))


def _faults(folder: Path, file: str, before: str, after: str, published: schemas.Schemas) -> list[str]:
    """The faults after a change to a file; overlays that do not contain the file are left out, for speed."""
    text = (folder / file).read_text()
    assert before in text
    (folder / file).write_text(text.replace(before, after, 1))
    for overlay in (folder / "overlays").iterdir():
        if overlay not in (folder / file).parents:
            shutil.rmtree(overlay)
    return manifests.check(folder, published)[1]


def _of_kind(kustomization: str, kind: str) -> dict[str, Any]:
    (document,) = [found for found in manifests.render(K8S / kustomization) if found["kind"] == kind]
    return document


def test_the_base_and_every_overlay_fit(published: schemas.Schemas) -> None:
    checked, faults = manifests.check(K8S, published)
    assert faults == []
    assert checked.startswith(f"{len(FIELDS)} files, 5 kustomizations, ")


def test_schemas_can_be_read_from_the_output_of_kubectl(published: schemas.Schemas, tmp_path: Path) -> None:
    folder = Path(os.environ.get("GNP_SCHEMAS", ROOT.parent / "shared" / "schemas"))
    for path in folder.glob("*.json"):
        content = json.loads(path.read_text())
        versions = [{"name": content["version"], "schema": {"openAPIV3Schema": content["openAPIV3Schema"]}}]
        spec = {"group": content["group"], "names": {"kind": content["kind"]}, "versions": versions}
        (tmp_path / path.name).write_text(json.dumps({"kind": "CustomResourceDefinition", "spec": spec}))
    exported = schemas.load(tmp_path)
    assert exported.keys() == published.keys()
    assert all(exported[kind].schema == published[kind].schema for kind in published)


def test_every_file_is_tried() -> None:
    assert {str(file.relative_to(K8S)) for file in K8S.rglob("*.yaml")} == set(FIELDS)


@pytest.mark.parametrize("file", FIELDS)
def test_a_misspelt_field_is_named(file: str, copied: Path, published: schemas.Schemas) -> None:
    misspelt = f"{FIELDS[file]}{FIELDS[file][-1]}"
    assert any(misspelt in fault for fault in _faults(copied, file, FIELDS[file], misspelt, published))


@pytest.mark.parametrize(
    ("file", "before", "after", "fault"),
    [
        ("base/rayjob.yaml", "  backoffLimit: 2", "  backoffLimit: 2\n  backoffLimit: 3", "duplicate key backoffLimit"),
        ("base/rayjob.yaml", 'num-cpus: "0"', "num-cpus: 0", "rayStartParams.num-cpus: 0 is not of type 'string'"),
        ("base/rayjob.yaml", "        maxReplicas: 8\n", "", "'maxReplicas' is a required property"),
        ("base/rayjob.yaml", "memory: 24Gi, nvidia", "nvidia", "containers.0.resources.requests: no memory"),
        ("base/rayjob.yaml", "requests: {cpu: 500m, ", "requests: {", "autoscalerOptions.resources.requests: no cpu"),
        ("base/nightly.yaml", 'schedule: "0 2 * * *"', "suspend: false", "'schedule' is a required property"),
        ("base/nightly.yaml", "value: /tmp}", "value: /tmp}\n{pad}- {name: A_TOKEN, value: abc}", "a literal secret"),
        ("base/store.env", "GNP_STORE", "AWS_SECRET_ACCESS_KEY=abc\nGNP_STORE", "ConfigMap/gnp-store: data.AWS_SECRET"),
        ("base/namespace.yaml", "kind: Namespace", "kind: Secret", "Secret/gnp: top: a Secret"),
        ("base/namespace.yaml", "apiVersion", "apiVersionn", "Namespace/gnp: top: no apiVersion among apiVersionn"),
        ("base/disruption.yaml", "kind: PodDis", "kind: Dis", "no schema for DisruptionBudget"),
        # Beyond the schemas: names, labels, commands, parameters of Ray.
        ("base/rayjob.yaml", "sh -c 'gnp ", "sh -c 'gpn ", "RayJob/gnp: spec.entrypoint: gpn generate"),
        ("base/rayjob.yaml", "gnp generate", "gnp genrate", "spec.entrypoint: gnp genrate: no such command"),
        ("base/rayjob.yaml", "recipe.toml --store", "recipe.toml --stoer", "No such option: --stoer"),
        ("base/rayjob.yaml", ' --store "$GNP_STORE"', "", "spec.entrypoint: gnp generate: Missing option '--store'"),
        ("base/rayjob.yaml", '"$GNP_STORE" &&', '"$GNP_STOR" &&', "$GNP_STOR: not set in the head's pod"),
        ("base/rayjob.yaml", "/etc/gnp/recipe.toml", "/etc/gnp/receipt.toml", "no ConfigMap is mounted there"),
        ("base/rayjob.yaml", "--reason DRAIN", "--reson DRAIN", "No such option '--reson'"),
        ("base/rayjob.yaml", 'gnp_scorer\\"', 'gnp_scorers\\"', "resources: gnp_scorers: not a resource of gnp"),
        ("base/rayjob.yaml", '{\\"gnp_scorer', '\\"gnp_scorer', "rayStartParams.resources: "),
        ("base/rayjob.yaml", "        num-cpus:", "        num-cpu:", "No such option '--num-cpu'"),
        ("base/rayjob.yaml", "rayVersion: 2", "rayVersion: 1", "the image has 2"),
        ("base/rayjob.yaml", "{name: gnp-store}", "{name: gnp-stores}", "there is no ConfigMap gnp-stores"),
        ("base/rayjob.yaml", "{name: gnp-recipe}", "{name: gnp-recipes}", "there is no ConfigMap gnp-recipes"),
        ("base/rayjob.yaml", "name: gnp-credentials", "name: gnp-credential", "gnp-credential: not one of gnp-cred"),
        ("base/rayjob.yaml", "serviceAccountName: gnp-head", "serviceAccountName: gnp", "no ServiceAccount gnp"),
        ("base/rayjob.yaml", "{name: recipe, mountPath", "{name: recip, mountPath", "no volume recip"),
        ("base/disruption.yaml", "node-type: head", "node-type: heads", "PodDisruptionBudget/gnp-head: spec.selector"),
        (
            "base/network.yaml",
            "&ray {app.kubernetes.io/part-of: gnp",
            "&ray {ray.io/node-type: yes",
            "no pod has these",
        ),
        ("base/network.yaml", "is-ray-node", "is-ray-nodes", "Service/gnp-metrics: spec.selector: "),
        ("base/nightly.yaml", "name: gnp-nightly", "name: gnp-night", "there is no ConfigMap gnp-night"),
        ("base/nightly.yaml", "kind: Role\n  name: nightly", "kind: Role\n  name: night", "there is no Role night"),
        ("base/rayjob.yaml", "--deadline-remaining-seconds 85", "--deadline-remaining-seconds 85s", "ray drain-node: "),
        ("base/rayjob.yaml", "REASON_PREEMPTION", "REASON_PREEMTION", "ray drain-node: Invalid value for '--reason'"),
        ("base/rayjob.yaml", 'num-cpus: "0"', 'num-cpus: "O"', "rayStartParams: ray start: Invalid value"),
        ("base/rayjob.yaml", "authOptions: {mode: token}", "authOptions: {mode: disabled}", "no token authentication"),
        ("base/rayjob.yaml", "runAsNonRoot: true", "runAsNonRoot: false", "the namespace is restricted"),
        ("base/rayjob.yaml", "drop: [ALL]", "drop: [ALLL]", "the namespace is restricted"),
        ("base/rayjob.yaml", "medium: Memory", "medium: Memry", "Memry: not one of HugePages, Memory"),
        ("base/rayjob.yaml", "restartPolicy: Never #", "restartPolicy: Nevr #", "Nevr: not one of"),
        ("base/rayjob.yaml", 'limits: {cpu: "2", memory: 8Gi}', 'limits: {cpu: "2", memory: 4Gi}', "above its limit"),
        (
            "base/rayjob.yaml",
            "name: dashboard, containerPort: 8265",
            "name: dashboard, containerPort: 8256",
            "port 8265",
        ),
        ("base/rayjob.yaml", "maxReplicas: 8", "maxReplicas: 0", "maxReplicas: 0: must be at least 1"),
        ("base/nightly.yaml", "verbs: [create", "verbs: [creat", "creat: not one of"),
        ("base/nightly.yaml", "resources: [rayjobs]", "resources: [rayjob]", "ray.io/rayjob: no such resource"),
        ("base/nightly.yaml", "Forbid #", "Forbidd #", "Forbidd: not one of Allow, Forbid, Replace"),
        ("base/nightly.yaml", '"0 2 * * *"', '"0 25 * * *"', "0 25 * * *: not a cron schedule"),
        ("base/nightly.yaml", '"0 2 * * *"', '"0 2 * *"', "0 2 * *: not a cron schedule"),
        ("base/nightly.yaml", "Etc/UTC", "Etc/UCT0", "Etc/UCT0: not a time zone"),
        ("base/nightly.yaml", "cpu: 20m,", "cpu: 20mm,", "20mm, 200m: not a quantity"),
        ("base/namespace.yaml", "enforce: restricted", "enforce: restrictd", "unknown label"),
        ("base/network.yaml", "kuberay-operator", "kuberay-operater", "unknown label"),
        ("base/network.yaml", "protocol: UDP", "protocol: UPD", "UPD: not one of"),
        (
            "overlays/eks/kustomization.yaml",
            "target: {kind: RayJob}",
            "target: {kind: RayJobs}",
            "no object has this kind",
        ),
        ("overlays/eks/kustomization.yaml", "name: gnp-.*", "name: gpn-.*", "no object has this kind"),
        ("overlays/eks/kustomization.yaml", "role-arn", "role-anr", "unknown label"),
        ("overlays/eks/machines.yaml", "capacityType: SPOT", "capacityType: SOPT", "unknown label"),
        ("overlays/eks/machines.yaml", "operator: Exists", "operator: Exist", "Exist: not one of"),
        ("overlays/kueue/rayjob.yaml", "queue-name", "queue-nmae", "unknown label"),
        ("overlays/raycron/kustomization.yaml", "component=nightly", "component=nightli", "no object has this kind"),
        ("overlays/raycron/kustomization.yaml", "{kind: RayCronJob}", "{kind: RayCronJobs}", "no object has this kind"),
        ("base/recipe.toml", "steps = 10", "step = 10", "ConfigMap/gnp-recipe: data.recipe.toml: "),
    ],
)
def test_other_faults_are_named(
    file: str, before: str, after: str, fault: str, copied: Path, published: schemas.Schemas
) -> None:
    faults = _faults(copied, file, before, after.replace("{pad}", " " * 16), published)
    assert any(fault in message for message in faults)


@pytest.mark.usefixtures("published")
def test_the_program_reports_what_it_checked_and_what_it_left_out() -> None:
    folder = os.environ.get("GNP_SCHEMAS", ROOT.parent / "shared" / "schemas")
    command = [sys.executable, "-m", "infra.check", "--schemas"]
    done = subprocess.run([*command, folder], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("9 kinds of files in infra/: no fault\n"), done.stdout
    assert done.returncode == 0 or "not checked: " in done.stdout
    done = subprocess.run([*command, "nowhere"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "nowhere: no *.json" in done.stderr


@pytest.mark.usefixtures("published")
@pytest.mark.parametrize(("kustomization", "gpus"), [("base", 1), ("overlays/eks", 1), ("overlays/cpu", None)])
def test_ray_s_autoscaler_reads_the_cluster_as_intended(kustomization: str, gpus: int | None) -> None:
    cluster = _of_kind(kustomization, "RayJob")["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        resources = group["template"]["spec"]["containers"][0]["resources"]
        assert resources["requests"].keys() == resources["limits"].keys()
    groups = _generate_available_node_types_from_ray_cr_spec(cluster)  # as Ray's autoscaler reads it
    assert groups["headgroup"]["resources"]["CPU"] == 0
    for name, own, other in [("generators", "gnp_generator", "gnp_scorer"), ("scorers", "gnp_scorer", "gnp_generator")]:
        assert groups[name]["resources"][own] == 1
        assert other not in groups[name]["resources"]
        assert groups[name]["resources"].get("GPU") == gpus


@pytest.mark.usefixtures("published")
def test_overlays_change_what_they_are_for() -> None:
    role = {"eks.amazonaws.com/role-arn": "arn:aws:iam::000000000000:role/gnp"}
    objects = manifests.render(K8S / "overlays/eks")
    accounts = [found["metadata"] for found in objects if found["kind"] == "ServiceAccount"]
    assert {account["name"] for account in accounts if account.get("annotations") == role} == {"gnp-head", "gnp-worker"}
    assert _of_kind("overlays/kueue", "RayJob")["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gnp"
    assert _of_kind("overlays/raycron", "RayCronJob")["spec"]["jobTemplate"] == _of_kind("base", "RayJob")["spec"]
    names = [found["metadata"]["name"] for found in manifests.render(K8S / "overlays/raycron")]
    assert [name for name in names if "nightly" in name] == ["nightly"]


@pytest.mark.usefixtures("published")
def test_prometheus_scrapes_the_address_and_port_of_ray_s_metrics() -> None:
    service = _of_kind("base", "Service")
    (job,) = yaml.safe_load((ROOT / "infra/prometheus/prometheus.yaml").read_text())["scrape_configs"]
    (discovery,) = job["dns_sd_configs"]
    assert discovery["names"] == [f"{service['metadata']['name']}.{service['metadata']['namespace']}.svc.cluster.local"]
    cluster = _of_kind("base", "RayJob")["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert group["rayStartParams"]["metrics-export-port"] == str(discovery["port"])
    objects = manifests.render(K8S / "base")
    (policy,) = [found["spec"] for found in objects if found["metadata"]["name"] == "ray"]
    assert discovery["port"] in [port["port"] for rule in policy["ingress"] for port in rule.get("ports", [])]


# Stands in for a cluster that has only the RayJob gnp; the RayJob created in it ends with status $END.
_KUBECTL = """#!/bin/sh
case "$*" in
"get rayjob gnp -o jsonpath={.metadata.labels}") cat labels.json ;;
"get rayjob gnp -o jsonpath={.metadata.annotations."*) cat applied.json ;;
"get rayjob gnp -o jsonpath={.spec}") cat spec.json ;;
"get rayjob nightly-1") test -e made.json ;;
"get rayjob nightly-1 --ignore-not-found -o jsonpath="*) test "$END" = gone || echo "$END" ;;
"create -f -") test ! -e made.json && cat > made.json ;;
*) exit 64 ;;
esac
"""


@pytest.mark.parametrize(
    ("end", "code", "annotated"),
    [
        ("Complete SUCCEEDED", 0, True),
        ("Complete SUCCEEDED", 0, False),
        ("Complete STOPPED", 1, True),
        ("gone", 1, True),
        ("Failed FAILED", 1, True),
        ("Failed ", 1, True),
    ],
)
def test_the_nightly_script_creates_one_copy_and_returns_its_outcome(
    end: str, code: int, annotated: bool, tmp_path: Path, published: schemas.Schemas
) -> None:
    job = _of_kind("overlays/kueue", "RayJob")
    (tmp_path / "labels.json").write_text(json.dumps(job["metadata"]["labels"]))
    # The annotation of `kubectl apply`; Kueue has changed the spec since.
    applied = {**job, "metadata": {**job["metadata"], "annotations": {"a": '{"spec":{}}'}}}
    (tmp_path / "applied.json").write_text(f"{json.dumps(applied, separators=(',', ':'))}\n" if annotated else "")
    (tmp_path / "spec.json").write_text(json.dumps({**job["spec"], "suspend": True} if annotated else job["spec"]))
    (tmp_path / "kubectl").write_text(_KUBECTL)
    (tmp_path / "kubectl").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "JOB_NAME": "nightly-1", "JOB_UID": "u", "END": end}
    script = _of_kind("overlays/kueue", "CronJob")["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]
    assert script["command"] == ["sh", "/etc/nightly/nightly.sh"]
    for _ in range(2):  # the second run stands for a retry on another machine
        run = subprocess.run(["sh", K8S / "base" / "nightly.sh"], cwd=tmp_path, env=environment, check=False)
        assert run.returncode == code
    copy = json.loads((tmp_path / "made.json").read_text())
    assert manifests.object_faults(copy, published) == []
    assert (copy["spec"], copy["metadata"]["labels"]) == (job["spec"], job["metadata"]["labels"])
    assert copy["metadata"]["ownerReferences"][0]["uid"] == "u"
