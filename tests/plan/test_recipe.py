from fractions import Fraction
from pathlib import Path

import pytest

from pipeline.attack.gradient_norm_penalty import GradientNormPenalty, PenaltyForm, PenaltyNorm
from pipeline.attack.gradient_transforms import ReversePerturbation, Smoothing
from pipeline.attack.loop import Iterative
from pipeline.attack.noise import Noise
from pipeline.attack.recipe import build
from pipeline.models.defenses import RandomResizePad
from pipeline.models.image_filters import BitDepth, Jpeg
from pipeline.models.spec import EnsembleSpec, ModelSpec
from pipeline.plan.recipe_reader import load_recipe
from tests.conftest import ROOT
from tests.plan.recipes import GOOD, GRID, load


def test_a_recipe_becomes_a_job(tmp_path: Path) -> None:
    job = load(tmp_path, GOOD).job()
    assert job.data.shards == ("s3://bucket/val-{0000..0063}.tar",)
    assert [(spec.name, spec.policy) for spec in job.targets] == [
        ("vgg19_bn.tv_in1k", "direct"),
        ("inception_v3.tv_in1k", "crop"),
    ]
    epsilon = Fraction(16, 255)
    assert job.attacks == (
        Iterative("mi", epsilon, 10, epsilon / 10, decay=1.0),
        Iterative(
            "strong", epsilon, 20, epsilon / 20, 1.0, gradient_transforms=(GradientNormPenalty("backward", "mean-abs"),)
        ),
    )
    assert load(tmp_path, GOOD).job(limit=7).data.limit == 7


@pytest.mark.parametrize(
    ("written", "expected"),
    [('"16/255"', Fraction(16, 255)), ("0.03", Fraction(3, 100)), ('"0.1"', Fraction(1, 10)), ("1", Fraction(1))],
)
def test_epsilon_is_exact_in_its_decimal_digits(tmp_path: Path, written: str, expected: Fraction) -> None:
    job = load(tmp_path, GOOD.replace('"16/255"', written)).job()
    assert job.attacks[0].epsilon == expected


def test_the_ablation_recipe_is_a_full_grid() -> None:
    names = [attack.name for attack in load_recipe(ROOT / "jobs/recipes/ablation.toml").job().attacks]
    assert sum(name.startswith("gnp+mi[") for name in names) == 3 * 4 * 3 * 2


@pytest.mark.parametrize("name", ["demo", "imagenet", "gnp", "gnp-literal", "gnp-lookahead", "evidence", "curvature"])
def test_shipped_recipes_validate(name: str) -> None:
    job = load_recipe(ROOT / f"jobs/recipes/{name}.toml").job()
    assert any(isinstance(attack, Noise) for attack in job.attacks)


@pytest.mark.parametrize(
    ("name", "form", "norm"),
    [("gnp", "backward", "mean-abs"), ("gnp-literal", "literal", "l2"), ("gnp-lookahead", "look-ahead", "mean-abs")],
)
def test_presets_have_the_penalty_form_of_their_name(name: str, form: PenaltyForm, norm: PenaltyNorm) -> None:
    job = load_recipe(ROOT / f"jobs/recipes/{name}.toml").job()
    penalties = {part for attack in job.attacks if isinstance(attack, Iterative) for part in attack.gradient_transforms}
    assert penalties == {GradientNormPenalty(form, norm, 0.01, 0.8)}


def test_the_imagenet_recipe_is_the_papers_setting() -> None:
    job = load_recipe(ROOT / "jobs/recipes/imagenet.toml").job()
    assert [spec.name for spec in job.sources] == ["resnet50.tv_in1k"]
    assert len(job.targets) == 10
    assert {attack.epsilon for attack in job.attacks} == {Fraction(16, 255)}
    assert GradientNormPenalty("literal", "l2", 0.01, 0.8) in [
        transform for attack in job.attacks if isinstance(attack, Iterative) for transform in attack.gradient_transforms
    ]


def test_lists_make_a_grid_of_attacks_named_by_their_values(tmp_path: Path) -> None:
    job = load(tmp_path, GRID).job()
    names = [each.name for each in job.attacks]
    assert len(names) == len(set(names)) == 2 + 3 * 2 * 2 * 2 + 1
    assert names[:3] == ["noise[epsilon=4/255]", "noise[epsilon=8/255]", names[2]]
    assert names[2] == "gnp+mi+di+ti[gnp.beta=0.0,gnp.r=0.01,epsilon=4/255,steps=10]"
    assert names[-1] == "wanting"
    last = job.attacks[-2]
    assert load(tmp_path, GRID.replace('"noise"', '"gnp+fgsm"')).job().attacks[0].steps == 1  # type: ignore[union-attr]
    assert last == build(
        "gnp+mi+di+ti",
        name=names[-2],
        epsilon=Fraction(8, 255),
        steps=50,
        parts={"gnp": GradientNormPenalty("literal", "mean-abs", 0.1, 0.8), "ti": Smoothing("linear", 7)},
    )
    assert job.attacks[-1] == build(
        "ni", name="wanting", epsilon=Fraction(3), norm="l2", steps=20, loss="margin", target_class="least-likely"
    )
    assert [target.name for target in job.targets] == [
        "vgg19_bn.tv_in1k",
        "vgg19_bn.tv_in1k behind bits+jpeg",
        "random",
    ]
    assert [target.defenses for target in job.targets] == [(), (BitDepth(4), Jpeg(50)), (RandomResizePad(),)]
    assert job.sources == (
        EnsembleSpec((ModelSpec("resnet50.tv_in1k"), ModelSpec("vgg19_bn.tv_in1k")), "losses", "both"),
    )


def test_settings_of_parts_accept_fractions(tmp_path: Path) -> None:
    written = 'attack = "rap+mi"\nrap = { epsilon = "16/255", step_size = ["2/255", "4/255"] }'
    first, second = load(tmp_path, GRID.replace('attack = "noise"', written)).job().attacks[:8:4]
    assert [each.gradient_transforms for each in (first, second)] == [  # type: ignore[union-attr]
        (ReversePerturbation(16 / 255, 8, 2 / 255),),
        (ReversePerturbation(16 / 255, 8, 4 / 255),),
    ]
