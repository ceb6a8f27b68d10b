"""Figures as files: PNG for a folder, SVG to stand in a page."""

import io
import re
from html import escape

import matplotlib
from matplotlib.figure import Figure

# What is drawn in black, or on white, takes the colours of the page around it.
_INK = re.compile(r"#000000\b", re.IGNORECASE)


def plain(text: str) -> str:
    """Text for a figure in which a `$` is one, and begins no formula: a name can hold anything."""
    return text.replace("$", r"\$")


def png(figure: Figure) -> bytes:
    """A figure as a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def svg(figure: Figure, *, says: str) -> str:
    """A figure as an `<svg>` element, legible on light and on dark; the same figure gives the same text.

    Args:
        figure: In black on white, and in colours that stand out from either.
        says: What it shows, for those who do not see it.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "gnp"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    drawn = buffer.getvalue()
    drawn = _INK.sub("currentColor", drawn[drawn.index("<svg") :])
    return drawn.replace("<svg", f'<svg role="img" aria-label="{escape(says)}" fill="currentColor"', 1)
