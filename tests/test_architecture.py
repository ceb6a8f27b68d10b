"""The dependency rules of README's "Who may import whom", read off the syntax trees."""

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

# Each room, and what it may import of the pipeline. Lower rows never see higher ones; rooms of one row never see each
# other, but for what stands here.
LAYERS: dict[str, set[str]] = {
    "version": set(),
    "__init__": {"api", "version"},
    "api": {"config", "engine", "plan", "progress", "storage"},
    "errors": set(),
    "handover": set(),
    "folding": {"handover"},
    "fusing": {"handover"},
    "heap": set(),
    "classifier": {"folding", "fusing"},
    "isolated": {"errors"},
    "sample": set(),
    "storage": {"errors"},
    "codec": {"errors"},
    "pools": {"errors"},
    "tars": {"errors"},
    "shards": {"errors", "sample", "storage", "tars"},
    "pack": {"errors", "shards", "storage"},
    "models": {"attack", "classifier", "defenses", "errors", "purifiers", "storage"},
    "results": {"errors"},
    "batches": {"errors", "heap"},
    "defenses": {"attack", "purifiers"},
    "purifiers": {"attack"},
    "score": {"attack", "batches", "codec", "defenses"},
    "runs": {"errors", "storage"},
    "ledger": {"errors", "sample", "storage"},
    "parts": {"codec", "errors", "sample", "shards"},
    "attack": set(),
    "weights": {"attack", "classifier", "defenses", "errors", "ledger", "models", "purifiers", "storage"},
    "foreign": {"attack", "codec", "errors", "ledger", "pack", "parts", "shards", "storage"},
    "outline": {"ledger", "sample"},
    "plan": {
        *("attack", "codec", "errors", "foreign", "ledger", "models", "outline", "sample", "shards", "storage"),
        "weights",
    },
    "estimate": {"attack", "foreign", "ledger", "outline", "plan", "sample", "shards"},
    "stages": {
        *(
            "version",
            "attack",
            "batches",
            "codec",
            "defenses",
            "errors",
            "foreign",
            "ledger",
            "models",
            "outline",
            "parts",
            "plan",
            "predictions",
            "progress",
            "results",
        ),
        *("sample", "score", "shards", "weights"),
    },
    "predictions": {"errors", "ledger", "results", "sample"},
    "rates": set(),
    "report": {"ledger", "predictions", "rates"},
    "curvature": {"attack", "codec", "parts", "rates"},
    "landscape": {"attack", "codec", "parts"},
    "compare": {"ledger", "predictions", "rates"},
    "forest": {"compare", "drawing", "predictions", "report"},
    "ablation": {"attack", "drawing", "errors", "ledger", "predictions", "rates", "report"},
    "verify": {"codec", "errors", "ledger", "parts", "results", "sample", "shards", "storage"},
    "drawing": set(),
    "picture": {"drawing", "errors", "ledger", "models", "parts", "predictions", "report"},
    "order": set(),
    "cache": {"storage"},
    "versions": {"errors", "ledger", "sample"},
    "snapshot": {"errors", "ledger", "predictions", "storage", "versions"},
    "examples": {
        *("cache", "codec", "errors", "isolated", "ledger", "order", "sample", "shards", "snapshot", "storage"),
    },
    "dataset": {
        *("cache", "drawing", "errors", "examples", "ledger", "parts", "picture", "predictions", "results"),
        "snapshot",
    },
    "page": {
        *(
            "version",
            "ablation",
            "attack",
            "compare",
            "drawing",
            "errors",
            "forest",
            "ledger",
            "picture",
            "predictions",
        ),
        *("quarantine", "rates", "report", "shards", "status"),
    },
    "card": set(),
    "garbage": {"errors", "ledger", "runs", "storage"},
    "progress": {"ledger", "sample"},
    "status": {"errors", "ledger", "progress", "runs"},
    "finalize": {"card", "errors", "ledger", "results", "sample", "storage"},
    "quarantine": {"codec", "errors", "ledger", "outline", "plan", "runs", "sample", "shards"},
    "engine": {
        *(
            "errors",
            "heap",
            "isolated",
            "ledger",
            "outline",
            "plan",
            "pools",
            "preflight",
            "progress",
            "quarantine",
            "runs",
        ),
        *("stages", "storage"),
    },
    "training": {
        *("attack", "classifier", "codec", "engine", "errors", "examples", "ledger", "models", "rates"),
        *("snapshot", "storage", "versions", "weights"),
    },
    "lessons": {"config", "storage", "training"},
    "preflight": {"attack", "foreign", "models", "plan", "score", "storage", "weights"},
    "config": {"attack", "codec", "errors", "models", "plan", "pools", "storage"},
}

# Who alone may import a package.
OWNERS: dict[str, set[str]] = {
    "ray": {"engine", "training"},
    "timm": {"fusing", "models", "training"},
    "obstore": {"storage"},
    "boto3": {"storage"},
    "botocore": {"storage"},
    "pyarrow": {"results"},
    "webdataset": {"shards"},
    "pydantic": {"config", "lessons"},
    "jinja2": {"page"},
    "matplotlib": {"ablation", "curvature", "drawing", "forest", "landscape", "page", "picture"},
    "scipy": {"compare", "defenses", "landscape", "rates"},
    "skimage": {"defenses"},
    "tenacity": {"storage"},
}


def modules() -> list[Path]:
    return sorted(PIPELINE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(PIPELINE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Every module that a file imports, wherever in it: `pipeline.codec`, `ray.data`."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names if node.module == "pipeline" else {str(node.module)}
    return found


def rooms_imported(path: Path) -> set[str]:
    inside = {name for name in imports(path) if name.split(".")[0] == "pipeline"}
    return {name.split(".")[1] for name in inside}


def test_every_room_has_a_rule() -> None:
    assert {room(path) for path in modules()} == set(LAYERS)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PIPELINE)))
def test_a_room_imports_what_it_may(path: Path) -> None:
    assert rooms_imported(path) - {room(path)} <= LAYERS[room(path)]


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PIPELINE)))
def test_a_package_is_imported_by_its_owner_alone(path: Path) -> None:
    packages = {name.split(".")[0] for name in imports(path)}
    assert {package for package in packages & OWNERS.keys() if room(path) not in OWNERS[package]} == set()


def test_an_attack_imports_torch_and_itself() -> None:
    for path in sorted((PIPELINE / "attack").glob("*.py")):
        outside = {name.split(".")[0] for name in imports(path)} - {"pipeline", "torch"}
        assert outside <= {
            "collections",
            "contextlib",
            "dataclasses",
            "fractions",
            "hashlib",
            "itertools",
            "math",
            "typing",
        }, path


def test_the_rules_have_no_circle() -> None:
    done: set[str] = set()
    while len(done) < len(LAYERS):
        ready = {name for name, below in LAYERS.items() if name not in done and below <= done}
        assert ready, f"a circle among {sorted(LAYERS.keys() - done)}"
        done |= ready


def test_jobs_leave_the_work_to_the_pipeline() -> None:
    for path in sorted((ROOT / "jobs").glob("*.py")):
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
