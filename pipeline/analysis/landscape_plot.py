"""Figure of the loss landscape: the median loss along a random direction and along the source's gradient."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from pipeline.analysis import drawing
from pipeline.analysis.landscape import OFFSETS, LossLandscape

_COLOURS = (*drawing.COLOURS, "#000000")


def draw(landscapes: Sequence[LossLandscape], *, title: str) -> Figure:
    """A column of two panels per model, a line per attack."""
    models = list(dict.fromkeys(row.model for row in landscapes))
    attacks = list(dict.fromkeys(row.attack for row in landscapes))
    figure = Figure(figsize=(1.5 + 3.1 * len(models), 6), layout="constrained")
    panels = figure.subplots(2, len(models), squeeze=False, sharex=True)
    for column, model in enumerate(models):
        for row in (row for row in landscapes if row.model == model):
            colour = _COLOURS[attacks.index(row.attack) % len(_COLOURS)]
            for axis, losses in zip(panels[:, column], (row.along_random, row.along_gradient), strict=True):
                axis.plot(OFFSETS, np.median(losses, axis=0), color=colour, label=row.attack)
        panels[0][column].set_title(model, fontsize=9)
        panels[1][column].set_xlabel("offset (L2)")
        for axis in panels[:, column]:
            axis.grid(alpha=0.25)
            axis.axvline(0, color="#888888", linewidth=0.8)
    panels[0][0].set_ylabel("loss, random direction")
    panels[1][0].set_ylabel("loss, source's gradient")
    handles, labels = panels[0][0].get_legend_handles_labels()
    columns = int(12 * figure.get_figwidth() / (max(map(len, labels)) + 8))  # about 12 letters per inch
    figure.legend(handles, labels, loc="outside lower center", ncols=max(1, columns), fontsize=8)
    figure.suptitle(title, fontsize=10)
    return figure
