"""Attacks in reduced precision: which parts allow it, what is computed in it, and that success does not change."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.attack.gradient_norm_penalty import GradientNormPenalty
from pipeline.attack.loop import Iterative
from pipeline.attack.precision import Precision, compute_in
from pipeline.attack.recipe import build, provenance
from pipeline.plan.recipe_reader import load_recipe
from tests.bench import agreement

EPSILON = Fraction(16, 255)
CPU = torch.device("cpu")
# Too short for bfloat16.
SHORT_STEP = Fraction(1, 10_000)


@pytest.mark.parametrize(
    ("combination", "penalty", "step_size", "precision"),
    [
        ("mi", None, None, "bfloat16"),
        ("mi+di+ti", None, None, "bfloat16"),
        ("vt+pgn+rap+ni+si", None, None, "bfloat16"),
        ("pgn+mi", None, SHORT_STEP, "float32"),  # PGN takes its difference over a step
        ("gnp+mi", GradientNormPenalty(), None, "float32"),  # the paper's: two points 2.6e-5 apart per pixel
        ("gnp+mi", GradientNormPenalty("backward", "l2", r=0.01), None, "float32"),
        ("gnp+mi+di", GradientNormPenalty("central", "mean-abs", r=0.0001), None, "float32"),
        ("gnp+mi", GradientNormPenalty("backward", "mean-abs", r=0.01), None, "bfloat16"),
        ("gnp+mi", GradientNormPenalty("look-ahead", "l2", r=0.01), None, "bfloat16"),
        ("gnp+mi", GradientNormPenalty("exact", "l2", r=0.01), None, "bfloat16"),
    ],
)
def test_auto_is_bfloat16_if_every_part_allows_it(
    combination: str, penalty: GradientNormPenalty | None, step_size: Fraction | None, precision: str
) -> None:
    parts = {} if penalty is None else {"gnp": penalty}
    attack = build(combination, epsilon=EPSILON, step_size=step_size, parts=parts, precision="auto")
    assert isinstance(attack, Iterative)
    assert attack.precision == provenance(attack)["precision"] == precision


def test_a_recipe_sets_the_precision_per_attack_and_may_list_several(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        'data = { name = "some", shards = "s.tar" }\nsources = ["resnet18.tv_in1k"]\ntargets = ["resnet18.tv_in1k"]\n'
        'attacks = [{ attack = "mi" }, { attack = "gnp+mi", precision = ["auto", "bfloat16", "tf32"] }]\n'
    )
    attacks = load_recipe(recipe).job().attacks
    assert [attack.precision for attack in attacks if isinstance(attack, Iterative)] == [
        "float32",
        "float32",
        "bfloat16",
        "tf32",
    ]
    assert attacks[2].name == "gnp+mi[precision=bfloat16]"


# Name of a pass, dtype of its images, and whether TF32 was allowed.
_Pass = tuple[str, torch.dtype, bool]


def _tf32_is_allowed() -> bool:
    cudnn: Any = torch.backends.cudnn
    return "tf32" in (torch.backends.cuda.matmul.fp32_precision, cudnn.conv.fp32_precision)


class _PassRecorder(torch.autograd.Function):
    """The identity; records the precision of the forward, backward and double backward pass."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, passes: set[_Pass], name: str) -> Tensor:
        ctx.passes, ctx.name = passes, name
        passes.add((name, images.dtype, _tf32_is_allowed()))
        return images.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return _PassRecorder.apply(*gradients, ctx.passes, f"{ctx.name}'"), None, None


class _RecordingNetwork(nn.Module):
    """A network that records the precision of its passes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution, self.last = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)
        self.passes: set[_Pass] = set()

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, 4)."""
        features = _PassRecorder.apply(self.convolution(images), self.passes, "f")
        logits: Tensor = self.last((features**2).mean(dim=(2, 3)))
        return logits


@pytest.mark.parametrize(
    ("precision", "dtype", "tf32"),
    [("float32", torch.float32, False), ("tf32", torch.float32, True), ("bfloat16", torch.bfloat16, False)],
)
def test_only_the_network_and_its_derivatives_use_the_precision(
    precision: Precision, dtype: torch.dtype, tf32: bool
) -> None:
    network = _RecordingNetwork().requires_grad_(False)
    images, labels = torch.rand(2, 3, 16, 16), torch.tensor([0, 1])
    parts = {"gnp": GradientNormPenalty(form="exact")}
    before = _tf32_is_allowed()
    adversarial = build("gnp+mi", epsilon=EPSILON, parts=parts, precision=precision)(
        network, images, labels, ["a", "b"]
    )
    assert {(used, allowed) for _, used, allowed in network.passes} == {(dtype, tf32)}
    assert {"f", "f'", "f''"} <= {name for name, _, _ in network.passes}
    assert adversarial.dtype == torch.float32
    assert _tf32_is_allowed() == before
    assert not torch.is_autocast_enabled("cpu")


def test_an_error_inside_restores_the_precision() -> None:
    with pytest.raises(ZeroDivisionError), compute_in("bfloat16", CPU):
        raise ZeroDivisionError
    assert not torch.is_autocast_enabled("cpu")


def test_double_precision_images_are_attacked_in_double_precision() -> None:
    network = _RecordingNetwork().requires_grad_(False).double()
    images = torch.rand(1, 3, 16, 16).double()
    adversarial = build("mi", epsilon=EPSILON)(network, images, torch.tensor([0]), ["a"])
    assert adversarial.dtype == torch.float64


def test_noise_takes_no_precision() -> None:
    with pytest.raises(ValueError, match="takes no precision"):
        build("noise", epsilon=EPSILON, precision="bfloat16")


@pytest.mark.journey
def test_success_in_bfloat16_equals_float32_within_the_interval(demo_assets: Path) -> None:
    assert demo_assets.is_dir()
    scene = agreement.scene(10)
    fooled_in_float32 = agreement.fooled(scene, scene.fast, agreement.mi("float32"))
    fooled_in_bfloat16 = agreement.fooled(scene, scene.fast, agreement.mi("bfloat16"))
    gain = agreement.gain(scene, fooled_in_bfloat16, fooled_in_float32)
    assert gain.n >= 20
    assert gain.interval is not None
    assert gain.interval[0] <= 0 <= gain.interval[1]
    assert fooled_in_float32.any()


def test_fast_gradients_have_the_signs_of_plain_gradients_at_every_step(demo_assets: Path) -> None:
    assert demo_assets.is_dir()
    shares, errors = agreement.gradient_agreement(agreement.scene(4))
    assert len(shares) == 10
    assert min(shares) > 0.999
    assert max(errors) < 0.02
