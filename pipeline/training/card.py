"""Reports of a training run: a card in Markdown and TensorBoard events; both depend only on the run's figures."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from pipeline.results.intervals import Rate

# Names in tables of the kinds of images that accuracy is measured on.
KIND_LABELS = {"clean": "clean", "transfer": "stored adversarial", "white_box": "white-box"}


def render(
    name: str,
    identity: Mapping[str, Any],
    epochs: Sequence[Mapping[str, Any]],
    *,
    weights: str,
    notices: Sequence[str] = (),
) -> str:
    """The card, in Markdown.

    Args:
        name: Name of the training recipe.
        identity: Everything that determines the run.
        epochs: Figures before training and after each epoch.
        weights: Address of the trained weights.
        notices: Warnings about the figures.
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
        *_summary_table(epochs[0], epochs[-1]),
        "",
        *_epoch_table(epochs),
        "",
        "What determines it:",
        "",
        "```json",
        json.dumps(identity, indent=1, sort_keys=True),
        "```",
        "",
    ]
    return "\n".join(lines)


def _summary_table(first: Mapping[str, Any], last: Mapping[str, Any]) -> list[str]:
    """Accuracy before and after training, with intervals."""
    lines = ["| held out | images | | before | after |", "| --- | --- | --- | --- | --- |"]
    for held_out in first["held_out"]:
        for kind, label in KIND_LABELS.items():
            before, after = (Rate(*epoch["held_out"][held_out][kind]) for epoch in (first, last))
            lines.append(f"| {held_out} | {before.n} | {label} | {format_rate(before)} | {format_rate(after)} |")
    return lines


def _epoch_table(epochs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Loss and accuracy before training and after each epoch."""
    columns = [f"{held_out}, {label}" for held_out in epochs[0]["held_out"] for label in KIND_LABELS.values()]
    lines = ["| epoch | loss | " + " | ".join(columns) + " |", "| --- " * (2 + len(columns)) + "|"]
    for epoch in epochs:
        loss = "" if epoch["loss"] is None else f"{epoch['loss']:.3f}"
        rates = [Rate(*epoch["held_out"][held_out][kind]) for held_out in epoch["held_out"] for kind in KIND_LABELS]
        cells = [f"{100 * rate.rate:.1f}%" if rate.rate is not None else "" for rate in rates]
        lines.append(f"| {epoch['epoch']} | {loss} | {' | '.join(cells)} |")
    return lines


def tensorboard_events(epochs: Sequence[Mapping[str, Any]]) -> bytes:
    """TensorBoard's event file of the figures."""
    with tempfile.TemporaryDirectory() as folder:
        with SummaryWriter(folder) as writer:
            for epoch in epochs:
                number = epoch["epoch"]
                if epoch["loss"] is not None:
                    writer.add_scalar("loss", epoch["loss"], number, walltime=0)
                writer.add_scalar("learning rate", epoch["learning_rate"], number, walltime=0)
                for held_out, kinds in epoch["held_out"].items():
                    for kind, counts in kinds.items():
                        rate = Rate(*counts).rate
                        if rate is not None:
                            writer.add_scalar(f"accuracy/{held_out}/{kind}", rate, number, walltime=0)
        (file,) = Path(folder).iterdir()
        return file.read_bytes()


def format_rate(rate: Rate) -> str:
    """A rate with its 95% interval, in percent."""
    if rate.rate is None or rate.interval is None:
        return "–"
    return f"{100 * rate.rate:.1f}% ({100 * rate.interval[0]:.1f} … {100 * rate.interval[1]:.1f})"
