"""A store as one page: it needs no network, and no program but a browser."""

import base64
import hashlib
from datetime import UTC, datetime
from importlib.resources import files

import jinja2

from pipeline.analysis import picture
from pipeline.analysis.page.content import gather, points
from pipeline.analysis.page.gallery import RULES
from pipeline.analysis.report import budget
from pipeline.ledger import Ledger
from pipeline.results.predictions import COUNTED, Denominator
from pipeline.version import VERSION


def render(ledger: Ledger, *, store: str = "", base: str = "mi", denominator: Denominator = "target") -> str:
    """The page's HTML, which holds all that it shows.

    What names in the store say is text, whatever it looks like: it is escaped, and no script but the page's own runs.

    Args:
        ledger: The store.
        store: What the page calls it; by default its address.
        base: Name of the attack that gains are over.
        denominator: Which images count in gains and figures.

    Raises:
        IntegrityError: Something stored is damaged.
        StorageError: The store failed.
    """
    template, style, script = (
        (files(__name__) / name).read_text(encoding="utf-8") for name in ("page.html", "page.css", "page.js")
    )
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(template).render(
        content=gather(ledger, base=base, denominator=denominator),
        store=store or ledger.storage.url,
        counted_as=COUNTED,
        rules=RULES,
        short=picture.short,
        budget=budget,
        points=points,
        style=style,
        script=script,
        script_sha256=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        version=VERSION,
        when=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
