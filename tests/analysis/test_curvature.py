import json
import math
from fractions import Fraction
from pathlib import Path
from typing import get_args

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from jobs import cli
from pipeline.analysis import curvature, drawing
from pipeline.analysis.curvature import Likeness, Reach
from pipeline.attack.gradient_transforms import Form
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
    """A network with a Hessian everywhere."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3), nn.Tanh(), nn.Conv2d(8, 8, 3, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(32, 4))
    return nn.Sequential(*layers).requires_grad_(False)


def by_form(found: list[Likeness], precision: str) -> dict[tuple[str, float], Likeness]:
    return {(each.form, each.r): each for each in found if each.precision == precision}


def test_the_true_product_is_the_hessian_times_the_step(smooth: nn.Module) -> None:
    some = images(1)
    found = by_form(list(curvature.likenesses(smooth, some, device=CPU, radii=(0.5,))), "float64")
    assert found["exact", 0.5].errors[0] < 1e-12
    # The Hessian by columns, and the literal form's error against it, by hand.
    model, at = smooth.double(), some.pixels.double() / 255

    def gradient_at(flat: Tensor) -> Tensor:
        loss = nn.functional.cross_entropy(model(flat.view(1, 3, 8, 8)), some.labels, reduction="sum")
        return torch.autograd.grad(loss, flat, create_graph=True)[0]

    flat = at.flatten().requires_grad_()
    gradient = gradient_at(flat)
    hessian = torch.stack([torch.autograd.grad(each, flat, retain_graph=True)[0] for each in gradient])
    along = (gradient / gradient.norm()).detach()
    truth = hessian @ along
    moved = gradient_at(flat + 0.5 * along).detach()
    error = float(((moved - gradient.detach()) / 0.5 - truth).norm() / truth.norm())
    assert found["literal", 0.5].errors[0] == pytest.approx(error, rel=1e-6)


def test_differences_near_the_product_as_the_step_shrinks_each_at_its_order(smooth: nn.Module) -> None:
    found = by_form(list(curvature.likenesses(smooth, images(), device=CPU, radii=(0.2, 0.02))), "float64")
    for form, order in (("literal", 1), ("backward", 1), ("central", 2)):
        for far, near in zip(found[form, 0.2].errors, found[form, 0.02].errors, strict=True):
            assert math.log10(far / near) == pytest.approx(order, abs=0.15)


def test_few_bits_cannot_tell_close_gradients_apart_but_know_the_exact_product(smooth: nn.Module) -> None:
    found = by_form(list(curvature.likenesses(smooth, images(), device=CPU, radii=(0.001,))), "bfloat16")
    assert max(found["literal", 0.001].cosines) < 0.5
    assert min(found["exact", 0.001].cosines) > 0.95


def test_the_attack_without_the_penalty_stands_once_a_precision_and_success_is_counted(smooth: nn.Module) -> None:
    some = images(4)
    with torch.no_grad():
        labels = smooth(some.pixels.float() / 255).argmax(dim=1)
    right = Images(some.keys, labels, some.pixels, some.target_classes)
    found = list(
        curvature.reaches(
            smooth,
            {"itself": smooth},
            right,
            device=CPU,
            epsilon=Fraction(64, 255),
            steps=5,
            radii=(0.1,),
            batch_size=3,
        )
    )
    assert [each.form for each in found if each.precision == "float32"] == ["", *get_args(Form)]
    assert {each.precision for each in found} == {"float32", "bfloat16"}
    assert all((each.success.n, each.success.images, each.each["itself"].n) == (4, 4, 4) for each in found)
    assert found[0].success.count == found[0].each["itself"].count > 0


def test_a_row_has_likeness_and_success() -> None:
    found = [Likeness("literal", 0.1, "float32", (0.5, 0.7, 0.9), (0.1, 0.2, 0.3))]
    reached = [
        Reach("", 0.0, "float32", PooledRate(1, 4, 4, (1, 1, 4)), {"a": Rate(1, 4)}),
        Reach("literal", 0.1, "float32", PooledRate(5, 9, 5, (9, 11, 17)), {"a": Rate(2, 4), "b": Rate(3, 5)}),
    ]
    literal, without = curvature.table(found, reached)
    assert (literal["cosine"], literal["relative_error"], literal["images"]) == (0.7, 0.2, 3)
    assert (literal["successes"], literal["n"]) == (5, 9)
    assert (without["form"], without["cosine"], without["success"]) == ("without", None, 0.25)
    assert drawing.png(curvature.draw(found, reached, title="x")).startswith(b"\x89PNG")


def test_the_job_writes_a_figure_a_source_and_json(tmp_path: Path, tiny_checkpoint: Path) -> None:
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
    told = json.loads((tmp_path / "out" / "curvature.json").read_text())
    assert told["images"] == 2
    assert {row["form"] for row in told["sources"][0]["rows"]} >= {"literal", "exact", "look-ahead", "without"}
    assert (tmp_path / "out" / "curvature-tiny-one.png").read_bytes().startswith(b"\x89PNG")
