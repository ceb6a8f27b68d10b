"""`python -m infra.check`: one line a fault and exit code 1, or one line that says what was checked, and what was not.

A tool that is not installed is no fault, but where CI is set: `kubectl`, `terraform` and Prometheus's `promtool`.
"""

import argparse
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from infra.check import alerts, files, manifests, schemas, terraform

_ROOT = Path(__file__).parents[2]
_INFRA = _ROOT / "infra"


def main() -> int:
    """Returns the exit code: 0 without a fault, 1 with one, 2 where something could not be checked that has to be."""
    parser = argparse.ArgumentParser(prog="python -m infra.check", description="Checks every file of infra/.")
    parser.add_argument(
        "--schemas",
        type=Path,
        default=os.environ.get("GNP_SCHEMAS"),
        help="KubeRay's published JSON schemas, a folder of *.json; default: GNP_SCHEMAS. Without them, what is "
        "KubeRay's in the manifests is not checked",
    )
    given = parser.parse_args().schemas
    try:
        published = schemas.load(Path(given)) if given else {}
    except OSError as error:
        parser.error(str(error))
    found, left_out = [], [] if published else ["what is KubeRay's (no schemas: --schemas DIR)"]
    checks = _checks(published)
    for what, (tool, check) in checks.items():
        if tool and shutil.which(tool) is None:
            left_out.append(f"{what} (no {tool})")
        else:
            found += _faults(what, check)
    print("\n".join(found) or f"{len(checks)} kinds of files in infra/: no fault")
    if left_out:
        print(f"not checked: {', '.join(left_out)}")
    return 1 if found else 2 if left_out and os.environ.get("CI") else 0


def _checks(published: schemas.Schemas) -> dict[str, tuple[str, Callable[[], list[str]]]]:
    """By what is checked: the tool that it takes, and what gives the faults."""
    modules, prometheus = _INFRA / "terraform", _INFRA / "prometheus"
    return {
        "the image": ("", lambda: files.dockerfile(_INFRA / "docker" / "Dockerfile")),
        "Kubernetes' scripts": ("", lambda: _each(sorted((_INFRA / "k8s").rglob("*.sh")), files.script)),
        "Slurm": ("", lambda: files.sbatch(_INFRA / "slurm" / "gnp.sbatch")),
        "Ray's launcher": ("", lambda: _each(sorted((_INFRA / "ray").glob("*.yaml")), files.launcher)),
        "Terraform": ("", lambda: _each(sorted(modules.iterdir()), terraform.module)),
        "Terraform's format": ("terraform", lambda: terraform.formatted(modules)),
        "Kubernetes": ("kubectl", lambda: manifests.check(_INFRA / "k8s", published)[1]),
        "alerts": ("promtool", lambda: alerts.alerts(prometheus, _ROOT / "docs" / "runbook.md")),
        "the dashboard": ("", lambda: alerts.dashboard(_INFRA / "grafana" / "gnp.json")),
    }


def _faults(what: str, check: Callable[[], list[str]]) -> list[str]:
    """What a check finds; where a file is so unlike what it should be that the check cannot follow it, that."""
    try:
        return check()
    except Exception as error:  # whatever is wrong with a file is a fault of the file
        return [f"{what}: cannot be followed: {type(error).__name__}: {error}"]


def _each(paths: list[Path], check: Callable[[Path], list[str]]) -> list[str]:
    return [fault for path in paths for fault in check(path)]


if __name__ == "__main__":
    sys.exit(main())
