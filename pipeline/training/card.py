"""What a training run came to: a card for people, events for TensorBoard; both of its figures alone."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from pipeline.results.intervals import Rate

# What accuracy is measured on, for people.
KINDS = {"clean": "clean", "transfer": "stored adversarial", "white_box": "white-box"}


def text(
    name: str,
    identity: Mapping[str, Any],
    epochs: Sequence[Mapping[str, Any]],
    *,
    weights: str,
    notices: Sequence[str] = (),
) -> str:
    """The card, in Markdown.

    Args:
        name: The lesson's.
        identity: What was trained, on what, how.
        epochs: Figures before training and after each epoch.
        weights: Where the trained weights lie.
        notices: What makes the figures less than they seem.
    """
    lines = [
        f"# {name}",
        "",
        f"Adversarially trained from `{identity['model']['model']}`, state {identity['model']['digest'][:12]}. "
        f"Weights: `{weights}`.",
        "",
        "Accuracy on what was held out, with 95% intervals (Wilson); stored adversarial images are from "
        "models and by attacks as the recipe names them; white-box ones are attacked on the model itself by "
        f"`{identity['attack']['name']}` at ε = {identity['attack']['epsilon']}, and rounded as stored.",
        "",
        *(line for notice in notices for line in (f"**{notice}**", "")),
        "| held out | images | | before | after |",
        "| --- | --- | --- | --- | --- |",
    ]
    for held_out in epochs[0]["held_out"]:
        for kind, called in KINDS.items():
            before, after = (Rate(*each["held_out"][held_out][kind]) for each in (epochs[0], epochs[-1]))
            lines.append(f"| {held_out} | {before.n} | {called} | {percent(before)} | {percent(after)} |")
    lines += [
        "",
        "| epoch | loss | " + " | ".join(_columns(epochs[0])) + " |",
        "| --- " * (2 + len(_columns(epochs[0]))) + "|",
    ]
    for each in epochs:
        loss = "" if each["loss"] is None else f"{each['loss']:.3f}"
        rates = [Rate(*each["held_out"][held_out][kind]) for held_out in each["held_out"] for kind in KINDS]
        cells = [f"{100 * rate.rate:.1f}%" if rate.rate is not None else "" for rate in rates]
        lines.append(f"| {each['epoch']} | {loss} | {' | '.join(cells)} |")
    described = json.dumps(identity, indent=1, sort_keys=True)
    return "\n".join([*lines, "", "What determines it:", "", "```json", described, "```", ""])


def events(epochs: Sequence[Mapping[str, Any]]) -> bytes:
    """TensorBoard's event file of the figures so far."""
    with tempfile.TemporaryDirectory() as folder:
        with SummaryWriter(folder) as writer:
            for each in epochs:
                if each["loss"] is not None:
                    writer.add_scalar("loss", each["loss"], each["epoch"], walltime=0)
                writer.add_scalar("learning rate", each["learning_rate"], each["epoch"], walltime=0)
                for held_out, kinds in each["held_out"].items():
                    for kind, counted in kinds.items():
                        rate = Rate(*counted).rate
                        if rate is not None:
                            writer.add_scalar(f"accuracy/{held_out}/{kind}", rate, each["epoch"], walltime=0)
        (file,) = Path(folder).iterdir()
        return file.read_bytes()


def _columns(figures: Mapping[str, Any]) -> list[str]:
    return [f"{held_out}, {called}" for held_out in figures["held_out"] for called in KINDS.values()]


def percent(rate: Rate) -> str:
    """A rate with its 95% interval."""
    if rate.rate is None or rate.interval is None:
        return "–"
    return f"{100 * rate.rate:.1f}% ({100 * rate.interval[0]:.1f} … {100 * rate.interval[1]:.1f})"
