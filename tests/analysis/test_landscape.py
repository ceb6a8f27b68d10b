import json
import math
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from jobs import cli, strict_json
from pipeline.analysis import drawing, landscape, landscape_plot
from pipeline.analysis.landscape import OFFSETS, SHARPNESS_RADIUS, LossLandscape
from pipeline.data.parts import Images
from pipeline.ledger import Ledger
from pipeline.plan.recipe_reader import load_recipe
from pipeline.plan.resolve import resolve_job
from pipeline.stages import Generator
from pipeline.storage import Storage
from tests.samples import CLASSES, list_pending, sample, write_recipe, write_shard

CPU = torch.device("cpu")


class Plane(nn.Module):
    """Logits 0 and s·(sum of the image − 1): with label 0, wrong where the sum is above 1."""

    def __init__(self, steepness: float) -> None:
        super().__init__()
        self.steepness = steepness

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([torch.zeros(len(images)), self.steepness * (images.sum(dim=(1, 2, 3)) - 1)], dim=1)


def images(level: int) -> Images:
    """Two images of 2 x 2 pixels with one value everywhere."""
    return Images(
        ("a", "b"),
        torch.zeros(2, dtype=torch.int64),
        torch.full((2, 3, 2, 2), level, dtype=torch.uint8),
        -torch.ones(2).long(),
    )


def test_measures_of_a_linear_model() -> None:
    originals, adversarial = images(0), images(51)  # sums 0 and 2.4
    plane, steep = Plane(1.0), Plane(3.0)
    landscapes = landscape.measure("x", originals, adversarial, plane, {"plane": plane, "steep": steep}, device=CPU)
    assert [row.model for row in landscapes] == ["plane", "steep"]
    for row, steepness in zip(landscapes, (1.0, 3.0), strict=True):
        logit = steepness * (12 * 0.2 - 1)
        assert row.slope == pytest.approx([steepness / (1 + math.exp(-logit)) * math.sqrt(12)] * 2, rel=1e-5)
        assert row.fooled.all()
        # The boundary is at 1 of 2.4, a share of 0.4167; the next share on the path is 0.45.
        assert row.boundary == pytest.approx([0.45] * 2)
        expected = [math.log1p(math.exp(logit + steepness * math.sqrt(12) * offset)) for offset in OFFSETS]
        assert row.along_gradient[0] == pytest.approx(expected, rel=1e-4, abs=1e-6)
        assert row.along_random.shape == (2, len(OFFSETS))
        assert 0 < row.sharpness.max() <= steepness * math.sqrt(12) * SHARPNESS_RADIUS
    again = landscape.measure("x", images(0), images(51), plane, {"plane": plane}, device=CPU)
    assert np.array_equal(again[0].sharpness, landscapes[0].sharpness)
    assert np.array_equal(again[0].along_random, landscapes[0].along_random)


def test_boundary_of_an_image_that_fools_no_model_is_above_one_or_infinite() -> None:
    plane = Plane(1.0)
    (near,) = landscape.measure("x", images(0), images(16), plane, {"plane": plane}, device=CPU)  # sum 0.75
    (far,) = landscape.measure("x", images(0), images(8), plane, {"plane": plane}, device=CPU)  # sum 0.38
    assert not near.fooled.any()
    assert near.boundary == pytest.approx([1.35] * 2)
    assert np.isinf(far.boundary).all()


def surface(
    attack: str, model: str, values: list[float], fooled: list[bool], correct: list[bool] | None = None
) -> LossLandscape:
    array = np.array(values)
    lines = np.zeros((len(values), len(OFFSETS)))
    clean_correct = np.ones(len(values), bool) if correct is None else np.array(correct)
    return LossLandscape(attack, model, array, array, clean_correct, array, np.array(fooled), lines, lines)


def test_rank_correlations_over_images_and_attacks() -> None:
    landscapes = [
        surface("a", "s", [1, 2], [True, True]),
        surface("b", "s", [3, 4], [True, True]),
        surface("a", "t", [10, 20], [True, True]),
        surface("b", "t", [30, 40], [False, False]),
        surface("a", "u", [4, 3], [True, True]),
        surface("b", "u", [2, 1], [True, True]),
    ]
    rows = landscape.correlations(landscapes, source="s")
    by_key = {(row["target"], row["on_the_source"], row["on_the_target"]): row for row in rows}
    assert by_key["t", "slope", "slope"]["rho"] == pytest.approx(1)
    assert by_key["t", "sharpness", "fooled"]["rho"] == pytest.approx(-0.894, abs=1e-3)
    assert by_key["u", "slope", "slope"]["rho"] == pytest.approx(-1)
    assert math.isnan(by_key["u", "slope", "fooled"]["rho"]), "equal values have no ranks"
    assert (by_key["t", "slope", "slope"]["images"], by_key["t", "slope", "slope"]["attacks"]) == (2, 2)
    assert by_key["t", "slope", "slope"]["rho_within"] == pytest.approx(1)
    assert by_key["u", "slope", "slope"]["rho_within"] == pytest.approx(-1)
    assert drawing.png(landscape_plot.draw(landscapes, title="x")).startswith(b"\x89PNG")


def test_images_that_a_model_misclassifies_when_clean_do_not_count() -> None:
    correct = [True, True, False]
    landscapes = [
        surface("a", "s", [1, 2, 3], [True] * 3),
        surface("b", "s", [2, 3, 4], [True] * 3),
        surface("a", "t", [1, 2, 9], [True, False, True], correct),
        surface("b", "t", [2, 3, 0], [True, False, True], correct),
    ]
    row = landscape.table(landscapes)[2]
    assert (row["slope"], row["fooled"], row["n"]) == (1.5, 1, 2)
    first = landscape.correlations(landscapes, source="s")[0]
    assert (first["rho"], first["images"]) == (pytest.approx(1), 2)
    none_correct = [surface(name, model, [1, 2], [True] * 2, [False] * 2) for name in "ab" for model in "st"]
    assert math.isnan(landscape.table(none_correct)[0]["slope"])
    assert math.isnan(landscape.correlations(none_correct, source="s")[0]["rho"])
    assert strict_json.dumps({"a": [math.nan, {"b": -math.inf}], "c": (1.5, None, "NaN")}) == (
        '{\n "a": [\n  null,\n  {\n   "b": null\n  }\n ],\n "c": [\n  1.5,\n  null,\n  "NaN"\n ]\n}\n'
    )


def test_correlation_within_images_ignores_what_all_attacks_on_an_image_share() -> None:
    random = np.random.default_rng(0)
    steepness = 100 * random.random(30)  # of each image, on every model
    independent, opposite = [], []
    for name in "abcdef":
        variation = random.random(30)
        independent += [surface(name, "s", list(steepness + variation), [True] * 30)]
        independent += [surface(name, "t", list(steepness + random.random(30)), [True] * 30)]
        opposite += [independent[-2], surface(name, "t", list(steepness - variation), [True] * 30)]
    first = landscape.correlations(independent, source="s")[0]
    second = landscape.correlations(opposite, source="s")[0]
    assert first["rho"] > 0.99
    assert abs(first["rho_within"]) < 0.25
    assert first["p_within"] > 0.05
    assert second["rho"] > 0.99, "the variation between images hides the opposite order within each"
    assert second["rho_within"] == pytest.approx(-1)
    assert second["p_within"] == pytest.approx(1 / 2001)


def test_landscape_command_reads_the_images_of_a_store(
    tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    save_file(timm.create_model("test_resnet", num_classes=CLASSES).state_dict(), tmp_path / "other.safetensors")
    write_shard(tmp_path / "in" / "s.tar", [sample(index) for index in range(6)])

    recipe = write_recipe(
        tmp_path,
        tiny_checkpoint,
        targets={"same": tiny_checkpoint, "other": tmp_path / "other.safetensors"},
        attacks='attacks = ["i", "mi"]\n[budget]\nsteps = 2',
        data="part_size = 4",
    )
    store = Storage(str(tmp_path / "store"), create=True)

    def gnp(*options: str) -> tuple[int, str]:
        command = ["gnp", "landscape", str(recipe), "--store", store.url, "--out", str(tmp_path / "out"), *options]
        monkeypatch.setattr("sys.argv", command)
        return cli.run(), capsys.readouterr().err

    code, error = gnp()
    assert (code, "no run has written here" in error) == (2, True)
    assert not list(store.list()), "a mistyped folder is left alone"
    Ledger(store).record_plan(resolve_job(load_recipe(recipe).job(), store).to_record())
    code, error = gnp()
    assert (code, "no images of these attacks from tiny; run gnp generate first" in error) == (2, True)
    planned = resolve_job(load_recipe(recipe).job(), store)
    generator = Generator(planned, Ledger(store), CPU)
    for item in list_pending(planned, Ledger(store)):
        generator.run(item)
    assert gnp("--limit", "5")[0] == 0
    (values,) = json.loads((tmp_path / "out" / "landscape.json").read_text())["sources"]
    assert {(row["attack"], row["model"]) for row in values["rows"]} == {
        (attack, model) for attack in ("i", "mi") for model in ("tiny", "other")
    }
    assert all(row["n"] < 5 for row in values["rows"]), "an untrained network is rarely correct"
    assert {rank["target"] for rank in values["correlations"]} == {"other"}
    assert (tmp_path / "out" / "landscape-tiny.png").read_bytes().startswith(b"\x89PNG")
    last = next(unit for unit in sorted(Ledger(store).list_units("adversarial"), reverse=True) if "mi" in unit.attack)
    store.delete([last.marker_key])
    assert gnp("--limit", "6")[0] == 0
    (values,) = json.loads((tmp_path / "out" / "landscape.json").read_text())["sources"]
    assert {row["attack"] for row in values["rows"]} == {"i"}, "an attack with missing parts is left out"
    code, error = gnp("--attack", "pgd")
    assert (code, error.strip()) == (2, "error: attack 'pgd': the recipe has i, mi")
