"""The table, Markdown, the page and the run that scored them warn of labels that look wrong."""

import io
from pathlib import Path

from rich.console import Console

from jobs import formats, tables
from pipeline.analysis import page
from pipeline.analysis.report import summarise
from pipeline.ledger.progress import StageTotals
from pipeline.stages import Scorer
from tests.samples import attack, list_pending, make_plan, sample, tiny_job, write_shard
from tests.stages.runs import CPU, new_ledger, run_stages


def test_labels_that_no_target_predicts_are_told_everywhere(tmp_path: Path, tiny_checkpoint: Path) -> None:
    labelled = [{**sample(index), "cls": b"9"} for index in range(20)]  # the untrained network predicts another
    write_shard(tmp_path / "in" / "s.tar", labelled)
    plan = make_plan(tiny_job(tmp_path / "in", tiny_checkpoint, attacks=(attack("fgsm"),), part_size=8))
    ledger = new_ledger(tmp_path / "store")
    ledger.record_plan(plan.to_record())
    run_stages(plan, ledger)
    report = summarise(ledger)
    (warning,) = report.label_warnings.values()
    assert "no target classifies clean images better than by chance (tiny 0 of 20 correct)" in warning
    table = io.StringIO()
    tables.print_report(report, denominator="target", console=Console(file=table, width=100))
    markdown = formats.report_table(report, denominator="target", latex=False)
    for text in (table.getvalue(), markdown, page.render(ledger).replace("&#39;", "'")):
        assert warning in text


def test_a_run_counts_what_it_scored(tmp_path: Path, tiny_checkpoint: Path) -> None:
    write_shard(tmp_path / "in" / "s.tar", [sample(index) for index in range(20)])
    plan = make_plan(tiny_job(tmp_path / "in", tiny_checkpoint, attacks=(attack("fgsm"),), part_size=8))
    ledger = new_ledger(tmp_path / "store")
    run_stages(plan, ledger)
    ledger.storage.delete([unit.marker_key for unit in ledger.list_units("clean")])
    scored = sum((Scorer(plan, ledger, CPU).run(item) for item in list_pending(plan, ledger)), StageTotals())
    (accuracy,) = summarise(ledger).accuracy
    assert (scored.clean, scored.correct) == ({"tiny": 20}, {"tiny": accuracy.correct.count})
