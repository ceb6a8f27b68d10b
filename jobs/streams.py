"""Standard output and error on any terminal: closed ones are ignored, and what one cannot show is written plainly."""

import codecs
import io
import os
import sys

_HANDLER = "gnp-plain"
# Characters that the program prints, and their equivalents in ASCII; of one character where they stand in tables.
_PLAIN = str.maketrans(
    {
        **dict.fromkeys("–‐‑−─━╌╴╶", "-"),
        **dict.fromkeys("│┃╷╵╎", "|"),
        **dict.fromkeys("┌┐└┘├┤┬┴┼╭╮╰╯┏┓┗┛┡┩╇╈┳┻╋", "+"),
        **dict.fromkeys("·•●▶▲", "*"),
        **dict.fromkeys("’‘′", "'"),
        **dict.fromkeys("“”", '"'),
        "\N{NO-BREAK SPACE}": " ",
        "—": "--",
        "…": "...",
        "×": "x",
        "→": ">",
        "←": "<",
        "↔": "<>",
        "±": "+-",
        "≤": "<=",
        "≥": ">=",
        "≠": "!=",
        "≈": "~",
        "ε": "eps",
        "α": "alpha",
        "β": "beta",
        "μ": "u",
        "\N{MICRO SIGN}": "u",
        "σ": "sigma",
        "∞": "inf",
        "²": "2",
        "₂": "2",
        "½": "1/2",
        "∇": "grad",
        "ℓ": "l",
        "‖": "||",
        "✓": "v",
        "✗": "x",
    }
)


def plain(text: str) -> str:
    """Text in ASCII: an equivalent of each character that has one, and `?` for the others."""
    return text.translate(_PLAIN).encode("ascii", "replace").decode("ascii")


def _replace(error: UnicodeError) -> tuple[str, int]:
    """Handler of codecs for what an encoding lacks, names of files that are no text included."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return plain(error.object[error.start : error.end]), error.end


def prepare_streams() -> None:
    """Makes standard output and error accept any text; where the parent process closed one, it is written nowhere."""
    codecs.register_error(_HANDLER, _replace)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_HANDLER)
