import json
from fractions import Fraction

import pytest

from pipeline.attack.gradient_norm_penalty import GradientNormPenalty
from pipeline.attack.loop import Iterative
from pipeline.attack.noise import Noise
from pipeline.attack.recipe import build, provenance

EPSILON = Fraction(16, 255)
PENALTY = GradientNormPenalty("literal", "l2", 0.01, 0.8)


def test_names_build_attacks_with_published_defaults() -> None:
    assert build("i", epsilon=EPSILON, steps=10) == Iterative("i", EPSILON, 10, EPSILON / 10, decay=0.0)
    assert build("gnp+mi", epsilon=EPSILON, steps=10) == Iterative(
        "gnp+mi", EPSILON, 10, EPSILON / 10, decay=1.0, gradient_transforms=(PENALTY,)
    )
    assert build("noise", epsilon=EPSILON, seed=3) == Noise("noise", EPSILON, seed=3)


def test_provenance_is_json_and_differs_between_attacks() -> None:
    recorded = provenance(build("gnp+mi", epsilon=EPSILON, steps=10))
    assert json.loads(json.dumps(recorded)) == recorded
    assert recorded["epsilon"] == "16/255"
    assert recorded["transforms"] == [
        {"kind": "GradientNormPenalty", "form": "literal", "norm": "l2", "r": 0.01, "beta": 0.8}
    ]
    assert recorded != provenance(build("gnp+mi", epsilon=EPSILON, steps=11))


@pytest.mark.parametrize(
    ("combination", "settings", "message"),
    [
        ("gnp", {}, "expected noise, or one of fgsm, i, pgd, mi, ni"),
        ("gpn+mi", {}, "gpn"),
        ("mi+i", {}, "expected"),
        ("mi+mi", {}, "expected"),
        ("noise+mi", {}, "expected"),
        ("mi", {"epsilon": Fraction(0)}, "epsilon = 0"),
        ("mi", {"epsilon": Fraction(16)}, "epsilon = 16"),
        ("mi", {"epsilon": Fraction(1, 1000)}, "below 1/255"),
        ("mi", {"steps": 0}, "steps = 0"),
        ("mi", {"step_size": Fraction(0)}, "step_size = 0"),
        ("mi", {"decay": -1.0}, "decay = -1"),
        ("mi", {"decay": float("nan")}, "decay = nan"),
        ("mi", {"name": "x" * 101}, "longer than 100"),
        ("noise", {"decay": 1.0}, "takes no decay"),
    ],
)
def test_a_faulty_setting_is_refused_by_name(combination: str, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(combination, **{"epsilon": EPSILON, **settings})  # type: ignore[arg-type]
