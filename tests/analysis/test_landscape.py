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
from pipeline.analysis import drawing, landscape
from pipeline.analysis.landscape import OFFSETS, REACH, Ground
from pipeline.data.parts import Images
from pipeline.ledger import Ledger
from pipeline.plan import recipe as config
from pipeline.plan import resolve
from pipeline.stages import Generator
from pipeline.storage import Storage
from tests.samples import CLASSES, pending, sample, write_recipe, write_shard

CPU = torch.device("cpu")


class Plane(nn.Module):
    """Logits 0 and s·(the sum of the image − 1): errs above a sum of 1, where the label is 0."""

    def __init__(self, steepness: float) -> None:
        super().__init__()
        self.steepness = steepness

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([torch.zeros(len(images)), self.steepness * (images.sum(dim=(1, 2, 3)) - 1)], dim=1)


def images(level: int) -> Images:
    """Two images of 2 x 2 pixels, all of whose values are alike."""
    return Images(
        ("a", "b"),
        torch.zeros(2, dtype=torch.int64),
        torch.full((2, 3, 2, 2), level, dtype=torch.uint8),
        -torch.ones(2).long(),
    )


def test_what_is_measured_is_what_a_plane_has() -> None:
    back, at = images(0), images(51)  # a sum of 0 and of 2.4
    plane, steep = Plane(1.0), Plane(3.0)
    ground = landscape.survey("x", back, at, plane, {"plane": plane, "steep": steep}, device=CPU)
    assert [each.model for each in ground] == ["plane", "steep"]
    for each, steepness in zip(ground, (1.0, 3.0), strict=True):
        logit = steepness * (12 * 0.2 - 1)
        assert each.slope == pytest.approx([steepness / (1 + math.exp(-logit)) * math.sqrt(12)] * 2, rel=1e-5)
        assert each.fooled.all()
        # 1 of 2.4: half of the perturbation is lost on the way at 0.4167, and the next place looked at is 0.45.
        assert each.boundary == pytest.approx([0.45] * 2)
        along = [math.log1p(math.exp(logit + steepness * math.sqrt(12) * offset)) for offset in OFFSETS]
        assert each.along_gradient[0] == pytest.approx(along, rel=1e-4, abs=1e-6)
        assert each.along_random.shape == (2, len(OFFSETS))
        assert 0 < each.sharpness.max() <= steepness * math.sqrt(12) * REACH
    again = landscape.survey("x", images(0), images(51), plane, {"plane": plane}, device=CPU)
    assert np.array_equal(again[0].sharpness, ground[0].sharpness)
    assert np.array_equal(again[0].along_random, ground[0].along_random)


def test_an_image_that_fools_nobody_has_its_boundary_beyond_or_nowhere() -> None:
    plane = Plane(1.0)
    (near,) = landscape.survey("x", images(0), images(16), plane, {"plane": plane}, device=CPU)  # a sum of 0.75
    (far,) = landscape.survey("x", images(0), images(8), plane, {"plane": plane}, device=CPU)  # of 0.38
    assert not near.fooled.any()
    assert near.boundary == pytest.approx([1.35] * 2)
    assert np.isinf(far.boundary).all()


def ground(attack: str, model: str, values: list[float], fooled: list[bool], right: list[bool] | None = None) -> Ground:
    array = np.array(values)
    lines = np.zeros((len(values), len(OFFSETS)))
    kept = np.ones(len(values), bool) if right is None else np.array(right)
    return Ground(attack, model, array, array, kept, array, np.array(fooled), lines, lines)


def test_ranks_are_taken_over_images_and_attacks_together() -> None:
    some = [
        ground("a", "s", [1, 2], [True, True]),
        ground("b", "s", [3, 4], [True, True]),
        ground("a", "t", [10, 20], [True, True]),
        ground("b", "t", [30, 40], [False, False]),
        ground("a", "u", [4, 3], [True, True]),
        ground("b", "u", [2, 1], [True, True]),
    ]
    found = {(r["target"], r["on_the_source"], r["on_the_target"]): r for r in landscape.correlations(some, source="s")}
    assert found["t", "slope", "slope"]["rho"] == pytest.approx(1)
    assert found["t", "sharpness", "fooled"]["rho"] == pytest.approx(-0.894, abs=1e-3)
    assert found["u", "slope", "slope"]["rho"] == pytest.approx(-1)
    assert math.isnan(found["u", "slope", "fooled"]["rho"]), "where all are alike there are no ranks"
    assert (found["t", "slope", "slope"]["images"], found["t", "slope", "slope"]["attacks"]) == (2, 2)
    assert found["t", "slope", "slope"]["rho_within"] == pytest.approx(1)
    assert found["u", "slope", "slope"]["rho_within"] == pytest.approx(-1)
    assert drawing.png(landscape.draw(some, title="x")).startswith(b"\x89PNG")


def test_images_that_a_model_gets_wrong_when_clean_say_nothing_of_an_attack() -> None:
    right = [True, True, False]
    some = [
        ground("a", "s", [1, 2, 3], [True] * 3),
        ground("b", "s", [2, 3, 4], [True] * 3),
        ground("a", "t", [1, 2, 9], [True, False, True], right),
        ground("b", "t", [2, 3, 0], [True, False, True], right),
    ]
    row = landscape.table(some)[2]
    assert (row["slope"], row["fooled"], row["n"]) == (1.5, 1, 2)
    first = landscape.correlations(some, source="s")[0]
    assert (first["rho"], first["images"]) == (pytest.approx(1), 2)
    nobody = [ground(name, model, [1, 2], [True] * 2, [False] * 2) for name in "ab" for model in "st"]
    assert math.isnan(landscape.table(nobody)[0]["slope"])
    assert math.isnan(landscape.correlations(nobody, source="s")[0]["rho"])
    assert strict_json.dumps({"a": [math.nan, {"b": -math.inf}], "c": (1.5, None, "NaN")}) == (
        '{\n "a": [\n  null,\n  {\n   "b": null\n  }\n ],\n "c": [\n  1.5,\n  null,\n  "NaN"\n ]\n}\n'
    )


def test_among_attacks_on_one_image_what_all_its_attacks_share_does_not_count() -> None:
    random = np.random.default_rng(0)
    steep = 100 * random.random(30)  # of the images, on every model
    chance, alike = [], []
    for name in "abcdef":
        own = random.random(30)
        chance += [ground(name, "s", list(steep + own), [True] * 30)]
        chance += [ground(name, "t", list(steep + random.random(30)), [True] * 30)]
        alike += [chance[-2], ground(name, "t", list(steep - own), [True] * 30)]
    (one, *_), (other, *_) = (landscape.correlations(some, source="s") for some in (chance, alike))
    assert one["rho"] > 0.99
    assert abs(one["rho_within"]) < 0.25
    assert one["p_within"] > 0.05
    assert other["rho"] > 0.99, "images hide that within each of them it is the other way round"
    assert other["rho_within"] == pytest.approx(-1)
    assert other["p_within"] == pytest.approx(1 / 2001)


def test_the_job_surveys_what_a_store_holds(
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

    def gnp(*told: str) -> tuple[int, str]:
        command = ["gnp", "landscape", str(recipe), "--store", store.url, "--out", str(tmp_path / "out"), *told]
        monkeypatch.setattr("sys.argv", command)
        return cli.run(), capsys.readouterr().err

    code, said = gnp()
    assert (code, "no run has written here" in said) == (2, True)
    assert not list(store.list()), "a mistyped folder is left alone"
    Ledger(store).record_plan(resolve.resolve(config.load(recipe).job(), store).describe())
    code, said = gnp()
    assert (code, "no images of these attacks from tiny; run generate first" in said) == (2, True)
    planned = resolve.resolve(config.load(recipe).job(), store)
    generator = Generator(planned, Ledger(store), CPU)
    for item in pending(planned, Ledger(store)):
        generator.run(item)
    assert gnp("--limit", "5")[0] == 0
    (told,) = json.loads((tmp_path / "out" / "landscape.json").read_text())["sources"]
    assert {(row["attack"], row["model"]) for row in told["rows"]} == {
        (attack, model) for attack in ("i", "mi") for model in ("tiny", "other")
    }
    assert all(row["n"] < 5 for row in told["rows"]), "an untrained network is seldom right"
    assert {rank["target"] for rank in told["correlations"]} == {"other"}
    assert (tmp_path / "out" / "landscape-tiny.png").read_bytes().startswith(b"\x89PNG")
    half = next(unit for unit in sorted(Ledger(store).units("adversarial"), reverse=True) if "mi" in unit.attack)
    store.delete([half.marker])
    assert gnp("--limit", "6")[0] == 0
    (told,) = json.loads((tmp_path / "out" / "landscape.json").read_text())["sources"]
    assert {row["attack"] for row in told["rows"]} == {"i"}, "what is half made is left out"
    code, said = gnp("--attack", "pgd")
    assert (code, said.strip()) == (2, "error: attack 'pgd': the recipe has i, mi")
