"""`python -m tests.loop [FOLDER]`: checks the results of `make loop` against the claims in docs/training.md."""

import json
import sys
from pathlib import Path

from pipeline.results.intervals import Rate

RECIPES = ("on-noise", "on-stored", "hardened")


def figures(store: Path, recipe: str) -> tuple[dict[str, dict[str, Rate]], dict[str, dict[str, Rate]]]:
    """Rates by held-out set and kind of image, before and after training."""
    run = json.loads((store / "training" / recipe / "current.json").read_text())["run"]
    epochs = json.loads((store / "training" / recipe / "runs" / run / "epochs.json").read_text())["epochs"]
    before, after = (
        {name: {kind: Rate(*counts) for kind, counts in kinds.items()} for name, kinds in epoch["held_out"].items()}
        for epoch in (epochs[0], epochs[-1])
    )
    return before, after


def main() -> None:
    """Prints the rates; fails where one is not as claimed."""
    store = Path(sys.argv[1] if sys.argv[1:] else "build/loop") / "store"
    rates = {recipe: figures(store, recipe) for recipe in RECIPES}
    before, _ = rates["hardened"]
    gained = {}
    for name in before:
        for recipe, (_, after) in rates.items():
            points = {
                kind: 100 * ((rate.rate or 0) - (before[name][kind].rate or 0)) for kind, rate in after[name].items()
            }
            gained[recipe] = points["transfer"]
            line = ", ".join(
                f"{kind} {100 * (rate.rate or 0):.1f}% ({points[kind]:+.1f})" for kind, rate in after[name].items()
            )
            print(f"{name}, {recipe}: {line}")  # noqa: T201
            assert points["clean"] >= -3, "training costs at most 3 points of clean accuracy"
        assert (before[name]["clean"].rate or 0) >= 0.9, "the untrained network solves the task"
        assert (before[name]["transfer"].rate or 1) < 0.4, "the untrained network is fooled"
        assert min(gained["on-stored"], gained["hardened"]) >= 20, "training on stored images helps"
        assert gained["on-noise"] <= gained["on-stored"] / 2, (
            "training on stored images helps more than training on noise"
        )


if __name__ == "__main__":
    main()
