"""Settings of `attack.build` as people write them."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import attack
from pipeline.attack.gradient_norm_penalty import GradientNormPenalty
from pipeline.attack.gradient_transforms import Smoothing
from pipeline.attack.input_transforms import DiverseInput
from tests.corpus.calls import network
from tests.corpus.cases import Refusal, case


@case("calls", "settings of parts in the words of a recipe", True)
def _(_: Path) -> bool:
    words = attack.build(
        "gnp+di+mi+ti",
        network(),
        epsilon="8/255",
        step_size=1,
        gnp={"form": "backward", "norm": "mean-abs", "r": "1/255", "beta": 1},
        di={"rate": 0.9},
        parts={"ti": {"kernel": "linear", "size": np.int64(7)}},
    )
    instances = attack.build(
        "gnp+di+mi+ti",
        network(),
        epsilon=8 / 255,
        step_size="1",
        parts={
            "gnp": GradientNormPenalty("backward", "mean-abs", float(Fraction(1, 255)), 1),
            "di": DiverseInput(rate=0.9),
            "ti": Smoothing("linear", 7),
        },
    )
    return words.attack == instances.attack


for words, settings, cause in (
    ("an unknown setting", {"step": 3}, "step: unknown setting; did you mean steps"),
    ("an unknown part", {"tim": {}}, "tim: unknown setting; did you mean ti"),
    ("an unknown part in parts", {"parts": {"gpn": {}}}, "parts.gpn: unknown setting; did you mean pgn"),
    ("a setting that no part has", {"gnp": {"bta": 1}}, r"gnp\.bta: unknown setting; did you mean beta"),
    ("a form that does not exist", {"gnp": {"form": "foward"}}, r"gnp\.form = 'foward': expected 'literal' or"),
    ("a number that is text", {"gnp": {"r": "far"}}, r"gnp\.r = 'far': not a finite number"),
    ("a number out of range", {"gnp": {"beta": -1}}, "gnp: beta = -1.0: must be a number from 0"),
    ("a part without a table", {"gnp": 0.5}, r"gnp = 0\.5: expected a dict"),
    ("a part of another kind", {"gnp": Smoothing()}, r"gnp = Smoothing.*expected a dict of settings, or a Gradient"),
    ("a part that is not named", {"di": {"rate": 0.9}}, "di is set, but attack = 'gnp.mi' does not name it"),
    ("steps as text", {"steps": "10"}, "steps = '10': expected a whole number or None"),
    ("steps as a float", {"steps": 10.5}, r"steps = 10\.5: expected a whole number"),
    ("steps that are true", {"steps": True}, "steps = True: expected a whole number"),
    ("a seed of None", {"seed": None}, "seed = None: expected a whole number"),
    ("a norm that does not exist", {"norm": "Linf"}, "norm = 'Linf': expected 'linf' or 'l2'"),
    ("a loss that does not exist", {"loss": "ce"}, "loss = 'ce': expected 'cross-entropy'"),
    ("a target class that does not exist", {"target_class": "any"}, "target_class = 'any': expected 'shard'"),
    ("a precision that does not exist", {"precision": "fp16"}, "precision = 'fp16': expected"),
    ("an epsilon of None", {"epsilon": None}, "epsilon = None: not a finite number"),
    ("an epsilon of 255 levels", {"epsilon": 8}, r"epsilon = 8: must lie in \(0, 1\]"),
    ("an epsilon without end", {"epsilon": float("inf")}, "epsilon = inf: not a finite number"),
    ("an epsilon that is NaN", {"epsilon": float("nan")}, "epsilon = nan: not a finite number"),
    ("an epsilon divided by 0", {"epsilon": "1/0"}, "epsilon = '1/0': not a finite number"),
    ("an epsilon of words", {"epsilon": "much"}, "epsilon = 'much': not a finite number"),
    ("an epsilon of many digits", {"epsilon": "1e999999999"}, "epsilon = '1e999999999': not a finite number"),
    ("an epsilon per pixel", {"epsilon": np.ones((8, 8))}, "epsilon = array.*: not a finite number"),
    ("an epsilon of 0", {"epsilon": 0}, "epsilon = 0: must lie in"),
):

    @case("calls", f"attack.build with {words}", Refusal(cause))
    def _(_: Path, settings: dict[str, Any] = settings) -> object:
        return attack.build("gnp+mi", network(), **settings)


@case("calls", "attack.build without a combination", Refusal("attack = None: expected a text"))
def _(_: Path) -> object:
    return attack.build(None, network())  # type: ignore[arg-type]
