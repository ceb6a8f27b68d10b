import json
import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import get_args

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from jobs import cli
from pipeline.analysis import curvature, curvature_plot, drawing
from pipeline.analysis.curvature import AttackSuccess, ProductAccuracy
from pipeline.attack.gradient_norm_penalty import PenaltyForm
from pipeline.data.parts import Images
from pipeline.results.intervals import PooledRate, Rate
from tests.samples import CLASSES, sample, write_recipe, write_shard

CPU = torch.device("cpu")


def images(count: int = 3, side: int = 8) -> Images:
    torch.manual_seed(0)
    pixels = torch.randint(60, 190, (count, 3, side, side), dtype=torch.uint8)
    return Images(tuple("abcdef"[:count]), torch.arange(count) % 4, pixels, torch.full((count,), -1))


@pytest.fixture
def smooth() -> nn.Module:
    """A network that is twice differentiable everywhere."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3), nn.Tanh(), nn.Conv2d(8, 8, 3, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(32, 4))
    return nn.Sequential(*layers).requires_grad_(False)


def by_form(accuracies: list[ProductAccuracy], precision: str) -> dict[tuple[str, float], ProductAccuracy]:
    return {(row.form, row.r): row for row in accuracies if row.precision == precision}


def test_exact_product_is_the_hessian_times_the_step(smooth: nn.Module) -> None:
    one = images(1)
    accuracies = by_form(list(curvature.product_accuracies(smooth, one, device=CPU, radii=(0.5,))), "float64")
    assert accuracies["exact", 0.5].errors[0] < 1e-12
    # The error of the literal form, from the Hessian column by column.
    model, image = smooth.double(), one.pixels.double() / 255

    def gradient_at(flat: Tensor) -> Tensor:
        loss = nn.functional.cross_entropy(model(flat.view(1, 3, 8, 8)), one.labels, reduction="sum")
        return torch.autograd.grad(loss, flat, create_graph=True)[0]

    flat = image.flatten().requires_grad_()
    gradient = gradient_at(flat)
    hessian = torch.stack([torch.autograd.grad(value, flat, retain_graph=True)[0] for value in gradient])
    direction = (gradient / gradient.norm()).detach()
    exact = hessian @ direction
    ahead = gradient_at(flat + 0.5 * direction).detach()
    error = float(((ahead - gradient.detach()) / 0.5 - exact).norm() / exact.norm())
    assert accuracies["literal", 0.5].errors[0] == pytest.approx(error, rel=1e-6)


def test_differences_approach_the_product_at_their_order_as_the_step_shrinks(smooth: nn.Module) -> None:
    accuracies = by_form(list(curvature.product_accuracies(smooth, images(), device=CPU, radii=(0.2, 0.02))), "float64")
    for form, order in (("literal", 1), ("backward", 1), ("central", 2)):
        for far, near in zip(accuracies[form, 0.2].errors, accuracies[form, 0.02].errors, strict=True):
            assert math.log10(far / near) == pytest.approx(order, abs=0.15)


def test_low_precision_loses_close_gradients_and_keeps_the_exact_product(smooth: nn.Module) -> None:
    accuracies = by_form(list(curvature.product_accuracies(smooth, images(), device=CPU, radii=(0.001,))), "bfloat16")
    assert max(accuracies["literal", 0.001].cosines) < 0.5
    assert min(accuracies["exact", 0.001].cosines) > 0.95


def test_success_is_counted_for_every_form_and_once_per_precision_without_penalty(smooth: nn.Module) -> None:
    pixels_only = images(4)
    with torch.no_grad():
        labels = smooth(pixels_only.pixels.float() / 255).argmax(dim=1)
    labelled = replace(pixels_only, labels=labels)
    successes = list(
        curvature.attack_successes(
            smooth,
            {"itself": smooth},
            labelled,
            device=CPU,
            epsilon=Fraction(64, 255),
            steps=5,
            radii=(0.1,),
            batch_size=3,
        )
    )
    assert [row.form for row in successes if row.precision == "float32"] == ["", *get_args(PenaltyForm)]
    assert {row.precision for row in successes} == {"float32", "bfloat16"}
    assert all((row.success.n, row.success.images, row.by_target["itself"].n) == (4, 4, 4) for row in successes)
    assert successes[0].success.count == successes[0].by_target["itself"].count > 0


def test_a_row_has_product_accuracy_and_success() -> None:
    accuracies = [ProductAccuracy("literal", 0.1, "float32", (0.5, 0.7, 0.9), (0.1, 0.2, 0.3))]
    successes = [
        AttackSuccess("", 0.0, "float32", PooledRate(1, 4, 4, (1, 1, 4)), {"a": Rate(1, 4)}),
        AttackSuccess("literal", 0.1, "float32", PooledRate(5, 9, 5, (9, 11, 17)), {"a": Rate(2, 4), "b": Rate(3, 5)}),
    ]
    literal, without = curvature.table(accuracies, successes)
    assert (literal["cosine"], literal["relative_error"], literal["images"]) == (0.7, 0.2, 3)
    assert (literal["successes"], literal["n"]) == (5, 9)
    assert (without["form"], without["cosine"], without["success"]) == ("without", None, 0.25)
    assert drawing.png(curvature_plot.draw(accuracies, successes, title="x")).startswith(b"\x89PNG")


def test_curvature_command_writes_json_and_a_figure_per_source(tmp_path: Path, tiny_checkpoint: Path) -> None:
    write_shard(tmp_path / "in" / "s.tar", [sample(index) for index in range(3)])
    torch.manual_seed(1)
    save_file(timm.create_model("test_resnet", num_classes=CLASSES).state_dict(), tmp_path / "other.safetensors")

    recipe = write_recipe(
        tmp_path,
        tiny_checkpoint,
        targets={"other": tmp_path / "other.safetensors"},
        attacks='attacks = ["mi"]\n[budget]\nsteps = 1',
    )
    recipe.write_text(recipe.read_text().replace('name = "tiny"\nmodel', 'name = "tiny/one"\nmodel'))
    curvature_cli = ["curvature", str(recipe), "--out", str(tmp_path / "out"), "--limit", "2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["gnp", *curvature_cli])
        assert cli.run() == 0
    values = json.loads((tmp_path / "out" / "curvature.json").read_text())
    assert values["images"] == 2
    assert values["sources"][0]["reaches"][0].keys() == {"form", "r", "precision", "success", "each"}
    assert {row["form"] for row in values["sources"][0]["rows"]} >= {"literal", "exact", "look-ahead", "without"}
    assert (tmp_path / "out" / "curvature-tiny-one.png").read_bytes().startswith(b"\x89PNG")
