"""The report of a store as one HTML page, which needs no network and no other file."""

import base64
import hashlib
from datetime import UTC, datetime
from importlib.resources import files

import jinja2

from pipeline.analysis.page.content import gather
from pipeline.analysis.page.figures import as_points
from pipeline.analysis.page.gallery import RULES
from pipeline.analysis.report import budget
from pipeline.analysis.sample_view import short
from pipeline.ledger import Ledger
from pipeline.results.denominators import DENOMINATOR_LABELS, Denominator
from pipeline.version import VERSION


def render(ledger: Ledger, *, store: str = "", base: str = "mi", denominator: Denominator = "target") -> str:
    """The page as HTML, with its style, script and images inside.

    Names from the store are escaped, and only the page's own script runs.

    Args:
        ledger: The store.
        store: Name of the store on the page; by default its address.
        base: Name of the base attack of gains.
        denominator: Which images count in gains and figures.

    Raises:
        IntegrityError: A stored file is damaged.
        StorageError: The store failed.
    """
    style, script = ((files(__name__) / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__name__, ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(
        content=gather(ledger, base=base, denominator=denominator),
        store=store or ledger.storage.url,
        denominator_labels=DENOMINATOR_LABELS,
        rules=RULES,
        short=short,
        budget=budget,
        as_points=as_points,
        style=style,
        script=script,
        script_sha256=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        version=VERSION,
        now=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
