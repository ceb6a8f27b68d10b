"""`python -m infra.check`: prints a line per fault, or a line that there are none, and a line of what was not checked.

Without `kubectl`, `terraform` or Prometheus's `promtool`, their checks are left out; if CI is set, that is an error.
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
    """Returns the exit code: 0 without faults, 1 with faults, 2 if a check was left out although CI is set."""
    parser = argparse.ArgumentParser(prog="python -m infra.check", description="Checks every file of infra/.")
    parser.add_argument(
        "--schemas",
        type=Path,
        default=os.environ.get("GNP_SCHEMAS"),
        help="folder with KubeRay's published JSON schemas; default: GNP_SCHEMAS. Without them, KubeRay's objects "
        "are not checked",
    )
    folder = parser.parse_args().schemas
    try:
        published = schemas.load(Path(folder)) if folder else {}
    except OSError as error:
        parser.error(str(error))
    faults: list[str] = []
    skipped = [] if published else ["KubeRay's objects (no schemas: --schemas DIR)"]
    checks = _checks(published)
    for name, (tool, check) in checks.items():
        if tool and shutil.which(tool) is None:
            skipped.append(f"{name} (no {tool})")
        else:
            faults += _faults(name, check)
    print("\n".join(faults) or f"{len(checks)} kinds of files in infra/: no fault")
    if skipped:
        print(f"not checked: {', '.join(skipped)}")
    return 1 if faults else 2 if skipped and os.environ.get("CI") else 0


def _checks(published: schemas.Schemas) -> dict[str, tuple[str, Callable[[], list[str]]]]:
    """By name: the tool that a check needs, and the function that returns the faults."""
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


def _faults(name: str, check: Callable[[], list[str]]) -> list[str]:
    """The faults that a check finds; a file that makes the check itself fail is a fault as well."""
    try:
        return check()
    except Exception as error:  # the checks index into files without checking their structure first
        return [f"{name}: the check failed: {type(error).__name__}: {error}"]


def _each(paths: list[Path], check: Callable[[Path], list[str]]) -> list[str]:
    return [fault for path in paths for fault in check(path)]


if __name__ == "__main__":
    sys.exit(main())
