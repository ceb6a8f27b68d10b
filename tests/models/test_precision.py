"""Attacks in fewer bits: which parts allow it, what computes in them, and that success stays what it was."""

from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from pipeline.attack.gradient_transforms import GradientNormPenalty
from pipeline.attack.loop import Iterative
from pipeline.attack.precision import Precision, computing
from pipeline.attack.recipe import build, provenance
from pipeline.plan import recipe as config
from tests.bench import agreement

EPSILON, CPU = Fraction(16, 255), torch.device("cpu")


@pytest.mark.parametrize(
    ("combination", "penalty", "precision"),
    [
        ("mi", None, "bfloat16"),
        ("mi+di+ti", None, "bfloat16"),
        ("vt+pgn+rap+ni+si", None, "bfloat16"),
        ("pgn+mi", "short", "float32"),  # it takes its difference over a step
        ("gnp+mi", GradientNormPenalty(), "float32"),  # the paper's: two points 2.6e-5 a pixel apart
        ("gnp+mi", GradientNormPenalty("backward", "l2", r=0.01), "float32"),
        ("gnp+mi+di", GradientNormPenalty("central", "mean-abs", r=0.0001), "float32"),
        ("gnp+mi", GradientNormPenalty("backward", "mean-abs", r=0.01), "bfloat16"),
        ("gnp+mi", GradientNormPenalty("look-ahead", "l2", r=0.01), "bfloat16"),
        ("gnp+mi", GradientNormPenalty("exact", "l2", r=0.01), "bfloat16"),
    ],
)
def test_auto_is_bfloat16_where_every_part_allows_it(
    combination: str, penalty: GradientNormPenalty | Literal["short"] | None, precision: str
) -> None:
    parts = {"gnp": penalty} if isinstance(penalty, GradientNormPenalty) else {}
    step_size = Fraction(1, 10_000) if penalty == "short" else None
    attack = build(combination, epsilon=EPSILON, step_size=step_size, parts=parts, precision="auto")
    assert isinstance(attack, Iterative)
    assert attack.precision == provenance(attack)["precision"] == precision


def test_a_recipe_says_it_for_each_attack_and_may_list_it(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        'data = { name = "some", shards = "s.tar" }\nsources = ["resnet18.tv_in1k"]\ntargets = ["resnet18.tv_in1k"]\n'
        'attacks = [{ attack = "mi" }, { attack = "gnp+mi", precision = ["auto", "bfloat16", "tf32"] }]\n'
    )
    attacks = config.load(recipe).job().attacks
    assert [attack.precision for attack in attacks if isinstance(attack, Iterative)] == [
        "float32",
        "float32",
        "bfloat16",
        "tf32",
    ]
    assert attacks[2].name == "gnp+mi[precision=bfloat16]"


# In which type something was computed, and how products were to be rounded.
_Seen = set[tuple[str, torch.dtype, bool]]


class _Identity(torch.autograd.Function):
    """What comes through unchanged, and notes under which precision, forward, backward and twice backward."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, seen: _Seen, name: str) -> Tensor:
        ctx.seen, ctx.name = seen, name
        seen.add((name, images.dtype, torch.backends.cuda.matmul.allow_tf32))
        return images.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return _Identity.apply(*gradients, ctx.seen, f"{ctx.name}'"), None, None


class _Telling(nn.Module):
    """A network that notes in which type it computed, and how products were to be rounded."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution, self.last = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)
        self.seen: _Seen = set()

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, 4)."""
        made = _Identity.apply(self.convolution(images), self.seen, "f")
        logits: Tensor = self.last((made**2).mean(dim=(2, 3)))
        return logits


@pytest.mark.parametrize(
    ("precision", "dtype", "tf32"),
    [("float32", torch.float32, False), ("tf32", torch.float32, True), ("bfloat16", torch.bfloat16, False)],
)
def test_the_network_alone_computes_in_it_and_its_derivatives_too(
    precision: Precision, dtype: torch.dtype, tf32: bool
) -> None:
    network = _Telling().requires_grad_(False)
    images, labels = torch.rand(2, 3, 16, 16), torch.tensor([0, 1])
    parts = {"gnp": GradientNormPenalty(form="exact")}
    adversarial = build("gnp+mi", epsilon=EPSILON, parts=parts, precision=precision)(
        network, images, labels, ["a", "b"]
    )
    assert {(kind, rounded) for _, kind, rounded in network.seen} == {(dtype, tf32)}
    assert {"f", "f'", "f''"} <= {name for name, _, _ in network.seen}
    assert adversarial.dtype == torch.float32
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.is_autocast_enabled("cpu")


def test_what_fails_inside_leaves_the_precision_as_it_was() -> None:
    with pytest.raises(ZeroDivisionError), computing("bfloat16", CPU):
        raise ZeroDivisionError
    assert not torch.is_autocast_enabled("cpu")


def test_double_precision_images_are_attacked_in_double_precision() -> None:
    network = _Telling().requires_grad_(False).double()
    found = build("mi", epsilon=EPSILON)(network, torch.rand(1, 3, 16, 16).double(), torch.tensor([0]), ["a"])
    assert found.dtype == torch.float64


def test_noise_takes_none() -> None:
    with pytest.raises(ValueError, match="takes no precision"):
        build("noise", epsilon=EPSILON, precision="bfloat16")


def test_success_in_bfloat16_is_float32s_within_its_interval(demo_assets: Path) -> None:
    assert demo_assets.is_dir()
    here = agreement.scene(10)
    full, low = (agreement.fooled(here, here.fast, agreement.mi(each)) for each in ("float32", "bfloat16"))
    found = agreement.gain(here, low, full)
    assert found.n >= 20
    assert found.interval is not None
    assert found.interval[0] <= 0 <= found.interval[1]
    assert full.any()


def test_fast_gradients_have_the_signs_of_plain_ones_at_every_step(demo_assets: Path) -> None:
    assert demo_assets.is_dir()
    shares, errors = agreement.likeness(agreement.scene(4))
    assert len(shares) == 10
    assert min(shares) > 0.999
    assert max(errors) < 0.02
