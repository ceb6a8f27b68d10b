"""The documentation: what it shows is run, what it names exists, what is made of the program is up to date."""

import io
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest
import sqlglot
import torch
from rich.console import Console
from sqlglot import expressions
from torch import nn

from jobs.docs import reference
from jobs.runners import generate
from pipeline.analysis.report import summarise
from pipeline.ledger import Ledger
from pipeline.maintenance import finalize
from pipeline.plan.recipe import AttackEntry, Recipe
from pipeline.plan.recipe_reader import load_recipe
from pipeline.results import schema as results
from pipeline.storage import Storage
from tests.conftest import ROOT
from tests.samples import sample, write_recipe, write_shard

DOCS = ROOT / "docs"
PAGES = [*sorted(DOCS.glob("*.md")), *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "ETHICS.md"))]
_FENCE = re.compile(r"^( *)```(\w+)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)


def blocks(page: str, language: str) -> list[str]:
    """The code of a page in one language."""
    found = _FENCE.findall((DOCS / page).read_text(encoding="utf-8"))
    return [re.sub(rf"^{indent}", "", code, flags=re.MULTILINE) for indent, kind, code in found if kind == language]


def called(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=called)
def test_what_is_made_of_the_program_is_up_to_date(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert reference.fill_blocks(text) == text, "make reference"


def test_the_recipe_s_page_has_every_key() -> None:
    """No model of the recipe is left out of it, nor any of its fields without a word of what it is."""
    text = (DOCS / "recipe.md").read_text(encoding="utf-8")
    schema = Recipe.model_json_schema()
    for model in [schema, *schema["$defs"].values()]:
        for field in model["properties"]:
            rows = re.findall(rf"^\| `{field}` \|(.*)\|$", text, re.MULTILINE)
            assert rows, field
            assert all(row.rsplit("|", 1)[1].strip() for row in rows), f"{field}: its docstring says nothing of it"


@pytest.mark.parametrize("page", PAGES, ids=called)
def test_links_lead_somewhere(page: Path) -> None:
    """Of the files as they lie, as the site's own check has it for the site."""
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"https?:", link):
            continue
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), link
        if anchor:
            assert anchor in set(anchors(target)), link


def anchors(page: Path) -> Iterator[str]:
    """What headings are called in links."""
    for heading in re.findall(r"^#+ (.+)$", _FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE):
        yield re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=called)
def test_every_picture_says_which_command_makes_it(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for found in re.finditer(r"!\[[^\]]*\]\(([^)]+)\)", text):
        near = text[max(0, found.start() - 3000) : found.end() + 400]
        assert re.search(r"`make [a-z-]+`|gnp (landscape|curvature|ablation|compare)\b", near), found[1]


RECIPES = [(page.name, code) for page in sorted(DOCS.glob("*.md")) for code in blocks(page.name, "toml")]


@pytest.mark.parametrize(("page", "code"), RECIPES, ids=[f"{page}-{index}" for index, (page, _) in enumerate(RECIPES)])
def test_recipes_are_recipes(page: str, code: str, tmp_path: Path) -> None:
    """Whole ones are read; pieces (an entry or two) with the rest put beside them."""
    rest = {
        "[data]": '[data]\nname = "x"\nshards = "x.tar"',
        "sources": '[[sources]]\nmodel = "resnet50.tv_in1k"',
        "attacks": '[[attacks]]\nattack = "i"',
        "targets": '[[targets]]\nmodel = "resnet18.tv_in1k"',
    }
    path = tmp_path / "recipe.toml"
    path.write_text("\n".join([code, *(lines for name, lines in rest.items() if name not in code)]))
    assert load_recipe(path).job().attacks, page


def names_here(row: str) -> str:
    return row.split("|")[2].strip(" `")


@pytest.mark.parametrize("row", re.findall(r"^\| `\w+` \| `.*$", (DOCS / "migrating.md").read_text(), re.MULTILINE))
def test_what_others_call_otherwise_exists_here(row: str) -> None:
    settings = "".join(f"{name} = {table}\n" for name, table in re.findall(r"`(\w+) = (\{.*?\})`", row))
    entry = tomllib.loads(f'attack = "{names_here(row)}"\n{settings}')
    assert AttackEntry.model_validate(entry)


class Tiny(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = images.mean(dim=(2, 3)) ** 2
        return logits


def tensors() -> dict[str, Any]:
    torch.manual_seed(0)
    network = Tiny().eval()
    labels = torch.tensor([0, 1])
    return {"source": network, "model": network, "images": torch.rand(2, 3, 8, 8), "labels": labels}


def test_an_attack_of_one_s_own_takes_under_30_lines_and_composes() -> None:
    written, tried = blocks("extending.md", "python")
    assert len(written.strip().splitlines()) < 30
    given = tensors()
    code = compile(written, "extending.md", "exec")
    exec(code, given)  # as a module: dataclasses look their annotations up there
    exec(tried, given)
    moved = (given["adversarial"] - given["images"]).abs()
    assert 0 < float(moved.max()) <= 8 / 255 + 1e-6
    alone = given["attack"](given["images"][1:], given["labels"][1:], keys=["1"])
    assert torch.equal(alone, given["adversarial"][1:]), "it does not depend on the batch"


def test_an_attack_of_one_s_own_has_a_name_after_one_line(tmp_path: Path) -> None:
    """The page's line, put where it says, in a process of its own."""
    (written, _), (line,) = blocks("extending.md", "python"), blocks("extending.md", "text")
    (recipe := tmp_path / "recipe.toml").write_text(
        '[data]\nname = "x"\nshards = "x.tar"\n[[sources]]\nmodel = "resnet50.tv_in1k"\n'
        '[[targets]]\nmodel = "resnet18.tv_in1k"\n[[attacks]]\nattack = "gnp+vr+mi"\nvr = { samples = [5, 10] }\n'
    )
    code = (
        f"{written}\nfrom pipeline.attack import recipe\nrecipe.GRADIENT_TRANSFORMS.update({{{line.strip()}}})\n"
        "import pathlib, sys\nfrom pipeline.plan.recipe_reader import load_recipe\n"
        "from pipeline.attack.cost import gradients_per_image\n"
        "for attack in load_recipe(pathlib.Path(sys.argv[1])).job().attacks:\n"
        "    print(attack.name, gradients_per_image(attack), recipe.provenance(attack)['transforms'][1]['kind'])\n"
    )
    command = [sys.executable, "-c", code, str(recipe)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "gnp+vr+mi[vr.samples=5] 100 VarianceReduced",
        "gnp+vr+mi[vr.samples=10] 200 VarianceReduced",
    ]


def test_the_attack_on_tensors_runs() -> None:
    for page in ("quick-start.md", "migrating.md", "api.md"):
        given = tensors()
        exec(blocks(page, "python")[-1], given)
        assert given["adversarial"].shape == given["images"].shape


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, ray_on_four_devices: None) -> Path:
    """A folder with `results` in it, a finished and finalized store of two attacks, one of them targeted."""
    folder = tmp_path_factory.mktemp("docs")
    write_shard(folder / "in" / "s.tar", [sample(index) for index in range(12)])
    attacks = 'attacks = ["i", { attack = "mi", target_class = "random" }, "noise"]'
    recipe = write_recipe(folder, tiny_checkpoint, attacks=attacks)
    assert generate.run(recipe, str(folder / "results"), console=Console(file=io.StringIO())) == 0
    finalize.finalize(Ledger(Storage(str(folder / "results"))))
    return folder


@pytest.fixture
def here(store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that holds `results`, which the pages' code is run in; `gnp` is this environment's."""
    monkeypatch.chdir(store)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    return store


QUERIES = blocks("queries.md", "python")


@pytest.mark.parametrize("number", range(len(QUERIES)))
def test_queries_run(number: int, here: Path) -> None:
    found: dict[str, Any] = {}
    exec(QUERIES[number], found)
    if "duckdb" in QUERIES[number]:
        assert found["success"].fetchall() == reported(here)
    elif "polars" in QUERIES[number]:
        assert set(found["success"]["n"]) == {12}
    elif "frame" in QUERIES[number]:
        assert len(found["frame"]) == 3 * 12
    elif "sample" in QUERIES[number]:
        assert found["sample"] is not None


TRAINING = blocks("training.md", "python")


@pytest.mark.parametrize("number", range(len(TRAINING)))
def test_what_a_trainer_copies_runs(number: int, here: Path) -> None:
    found: dict[str, Any] = {}
    exec(TRAINING[number], found)
    if "epoch" in found:
        assert found["clean"].shape == found["images"].shape == (4, 3, 32, 32), "the last of 12 in batches of 8"
    elif "state" in found:
        assert found["state"]
    elif "batch" in found:
        assert found["batch"].shape == (8, 3, 32, 32)
    else:
        assert found["count"] == (36, 36)


def reported(here: Path) -> list[tuple[Any, ...]]:
    """What the report says, as the queries' rows."""
    report = summarise(Ledger(Storage(str(here / "results"))))
    return sorted(
        (line.dataset, line.source, line.attack, line.epsilon, line.target, rate.n, rate.count / rate.n)
        for line in report.success
        if (rate := line.rates["target"]).n
    )


def test_athena_s_table_is_the_files_and_its_query_the_report(here: Path) -> None:
    _, table, query = blocks("queries.md", "sql")
    create = sqlglot.parse_one(table, dialect="athena")
    declared = {column.name: column.args["kind"].sql() for column in create.find_all(expressions.ColumnDef)}
    kinds = {"int32": "INT", "string": "TEXT", "double": "DOUBLE", "float": "FLOAT", "bool": "BOOLEAN"}
    stored = {field.name: kinds.get(str(field.type), "TEXT") for field in results.TRANSFER}
    assert declared == stored
    (version,) = (here / "results" / "versions").iterdir()
    for kind in ("clean", "transfer"):
        duckdb.sql(f"create or replace temp view {kind} as from '{version}/{kind}/*.parquet'")
    translated = sqlglot.transpile(query, read="athena", write="duckdb")[0]
    assert [(*row[:6], float(row[6])) for row in duckdb.execute(translated).fetchall()] == reported(here)


def test_what_the_python_api_s_page_calls_runs(here: Path) -> None:
    code = blocks("quick-start.md", "python")[0].replace("recipe.toml", str(here / "recipe.toml"))
    found: dict[str, Any] = {}
    exec(code, found)
    assert (found["outcome"].items, len(found["frame"])) == (0, 3 * 12)
