"""The order of packages in docs/architecture.md, read off the syntax trees: who may import whom."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.ledger import Ledger
from pipeline.storage import Storage
from tests.conftest import ROOT
from tests.samples import sample, write_recipe, write_shard

PIPELINE = ROOT / "pipeline"

# From the ground up: a package imports from those before it alone.
ORDER = (
    "errors",
    "version",
    "child_process",
    "attack",
    "storage",
    "data",
    "ledger",
    "models",
    "packing",
    "results",
    "plan",
    "maintenance",
    "stages",
    "analysis",
    "dataset",
    "engine",
    "training",
    "api",
    "__init__",
)

# The only packages of ours that import a package of others.
OWNERS: dict[str, set[str]] = {
    "ray": {"engine", "training"},
    "timm": {"models", "training"},
    "obstore": {"storage"},
    "boto3": {"storage"},
    "botocore": {"storage"},
    "tenacity": {"storage"},
    "webdataset": {"data"},
    "pyarrow": {"packing", "results"},
    "pydantic": {"plan", "training"},
    "jinja2": {"analysis"},
    "matplotlib": {"analysis"},
    "scipy": {"analysis", "models", "packing", "results"},
    "skimage": {"models"},
}
MOST_LINES = 400


def modules() -> list[Path]:
    return sorted(PIPELINE.rglob("*.py"))


def package(path: Path) -> str:
    return path.relative_to(PIPELINE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Every module that a file imports, wherever in it: `pipeline.data.codec`, `ray.data`."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names if node.module == "pipeline" else {str(node.module)}
    return found


def packages_imported(path: Path) -> set[str]:
    inside = {name for name in imports(path) if name.split(".")[0] == "pipeline"}
    return {name.split(".")[1] for name in inside}


def test_every_package_has_its_place_in_the_order() -> None:
    assert {package(path) for path in modules()} == set(ORDER)


def test_every_package_says_what_it_is_for() -> None:
    for folder in (path.parent for path in modules() if path.name == "__init__.py"):
        assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))), folder


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PIPELINE)))
def test_a_package_imports_those_before_it_alone(path: Path) -> None:
    place = ORDER.index(package(path))
    assert packages_imported(path) - {package(path)} <= set(ORDER[:place])


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PIPELINE)))
def test_a_foreign_package_is_imported_by_its_owner_alone(path: Path) -> None:
    foreign = {name.split(".")[0] for name in imports(path)}
    assert {name for name in foreign & OWNERS.keys() if package(path) not in OWNERS[name]} == set()


def test_no_file_is_longer_than_one_reads_at_a_sitting() -> None:
    files = [path for folder in ("pipeline", "jobs", "infra", "tests") for path in (ROOT / folder).rglob("*.py")]
    long = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert {path: lines for path, lines in long.items() if lines > MOST_LINES} == {}


def test_an_attack_imports_torch_and_itself() -> None:
    for path in sorted((PIPELINE / "attack").glob("*.py")):
        outside = {name.split(".")[0] for name in imports(path)} - {"pipeline", "torch"}
        assert outside <= {
            "collections",
            "contextlib",
            "dataclasses",
            "difflib",
            "fractions",
            "hashlib",
            "itertools",
            "math",
            "typing",
        }, path


def test_jobs_leave_the_work_to_the_pipeline() -> None:
    for path in sorted((ROOT / "jobs").rglob("*.py")):
        assert not {name.split(".")[0] for name in imports(path)} & {"ray", "pyarrow", "obstore", "webdataset"}, path


def test_a_look_at_a_store_does_not_wait_for_torch(tmp_path: Path) -> None:
    Ledger(Storage(str(tmp_path))).record_plan(
        {"dataset": "d", "shards": [], "sources": {}, "attacks": {}, "targets": {}}
    )
    for command in ("status", "ls", "gc"):
        code = f"import sys\nsys.argv = ['gnp', '{command}', '{tmp_path}']\nfrom jobs import cli\n"
        code += "assert cli.run() == 0\nassert 'torch' not in sys.modules"
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_a_driver_does_its_work_without_torch(tmp_path: Path, tiny_checkpoint: Path) -> None:
    write_shard(tmp_path / "in" / "s.tar", [sample(index) for index in range(3)])
    recipe = write_recipe(tmp_path, tiny_checkpoint)
    code = "import sys\nfrom jobs import cli\nassert cli.run() == 0\n"
    code += "assert not {'torch', 'timm', 'pyarrow.parquet'} & sys.modules.keys()"
    for options in ([], [], ["--retry-failed"]):
        command = [sys.executable, "-c", code, "generate", str(recipe), "--store", f"{tmp_path}/store", *options]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert "nothing to do" in done.stdout


def test_the_library_does_not_print() -> None:
    for path in modules():
        calls = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
        assert not any(isinstance(call.func, ast.Name) and call.func.id == "print" for call in calls), path
