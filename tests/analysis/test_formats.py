"""Reports as CSV, LaTeX and Markdown."""

import csv
import io

from jobs import formats
from pipeline.analysis import report
from pipeline.ledger import Ledger
from tests.analysis.conftest import ATTACKS


def test_csv_has_every_rate_of_the_report(scored: Ledger) -> None:
    summary = report.summarise(scored)
    rows = list(csv.DictReader(io.StringIO(formats.report_csv(summary))))
    assert len(rows) == len(summary.accuracy) + 3 * (len(summary.success) + len(summary.transfer))
    by_key = {(row["attack_id"], row["target_id"], row["target"], row["denominator"]): row for row in rows}
    assert len(by_key) == len(rows)
    for success in summary.success:
        row, rate = by_key[success.attack_id, success.target_id, success.target, "joint"], success.rates["joint"]
        assert (int(row["count"]), int(row["n"])) == (rate.count, rate.n)


def test_tables_for_papers_escape_names(scored: Ledger) -> None:
    summary = report.summarise(scored)
    latex = formats.report_table(summary, denominator="target", latex=True)
    assert r"\toprule" in latex
    assert r"\$x\$" in latex
    markdown = formats.report_table(summary, denominator="target", latex=False)
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 1 + len(ATTACKS) + 1
    assert len({line.count("|") - line.count("\\|") for line in lines}) == 1
