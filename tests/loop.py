"""`python -m tests.loop [FOLDER]`: what docs/training.md claims of `make loop`, held against what it has left."""

import json
import sys
from pathlib import Path

from pipeline.results.intervals import Rate

LESSONS = ("on-noise", "on-stored", "hardened")


def figures(store: Path, lesson: str) -> tuple[dict[str, dict[str, Rate]], dict[str, dict[str, Rate]]]:
    """Rates by held-out set and kind, before training and after it."""
    run = json.loads((store / "training" / lesson / "current.json").read_text())["run"]
    epochs = json.loads((store / "training" / lesson / "runs" / run / "epochs.json").read_text())["epochs"]
    before, after = (
        {name: {kind: Rate(*counts) for kind, counts in kinds.items()} for name, kinds in each["held_out"].items()}
        for each in (epochs[0], epochs[-1])
    )
    return before, after


def main() -> None:
    """Prints the rates, and ends with an error where one is not as claimed."""
    store = Path(sys.argv[1] if sys.argv[1:] else "build/loop") / "store"
    found = {lesson: figures(store, lesson) for lesson in LESSONS}
    (before, _), gained = found["hardened"], {}
    for name in before:
        for lesson, (_, after) in found.items():
            points = {
                kind: 100 * ((rate.rate or 0) - (before[name][kind].rate or 0)) for kind, rate in after[name].items()
            }
            gained[lesson] = points["transfer"]
            told = ", ".join(
                f"{kind} {100 * (rate.rate or 0):.1f}% ({points[kind]:+.1f})" for kind, rate in after[name].items()
            )
            print(f"{name}, {lesson}: {told}")  # noqa: T201
            assert points["clean"] >= -3, "it costs at most 3 points of clean accuracy"
        assert (before[name]["clean"].rate or 0) >= 0.9, "the task can be done"
        assert (before[name]["transfer"].rate or 1) < 0.4, "the untrained network is fooled"
        assert min(gained["on-stored"], gained["hardened"]) >= 20, "stored images teach what helps"
        assert gained["on-noise"] <= gained["on-stored"] / 2, "stored images teach more than noise does"


if __name__ == "__main__":
    main()
