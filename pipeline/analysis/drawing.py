"""Figures as PNG files, and as SVG elements of a page; the colours that figures share."""

import io
import re
from html import escape

import matplotlib
from matplotlib.figure import Figure

# Distinguishable with most kinds of colour blindness, and on light and dark backgrounds (Okabe and Ito).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
# Black in a figure becomes the text colour of the page.
_BLACK = re.compile(r"#000000\b", re.IGNORECASE)


def escape_dollars(text: str) -> str:
    """Text for a figure with every `$` escaped, since names can hold any character and `$…$` would be a formula."""
    return text.replace("$", r"\$")


def png(figure: Figure) -> bytes:
    """A figure as a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")  # or text that the layout has no room for is cut
    return buffer.getvalue()


def svg(figure: Figure, *, alt_text: str) -> str:
    """A figure as an `<svg>` element, legible on light and dark backgrounds; equal figures give equal text.

    Args:
        figure: Drawn in black on white, with colours that are visible on both backgrounds.
        alt_text: Description for readers who cannot see the figure.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "gnp"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    drawn = buffer.getvalue()
    drawn = _BLACK.sub("currentColor", drawn[drawn.index("<svg") :])
    return drawn.replace("<svg", f'<svg role="img" aria-label="{escape(alt_text)}" fill="currentColor"', 1)
