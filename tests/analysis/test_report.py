import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from jobs import tables
from pipeline.analysis import report, sample_view
from pipeline.analysis.json_values import report_values
from pipeline.analysis.report import Report
from pipeline.data.sample import Part
from pipeline.errors import IntegrityError, MissingError
from pipeline.ledger import Ledger, Unit
from pipeline.results import schema
from pipeline.results.intervals import PooledRate, Rate
from pipeline.storage import Storage

DATASET = "data-0"
KEYS = ["a", "b", "c", "d"]
LABELS = [0, 1, 2, 3]


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(Storage(str(tmp_path / "store"), create=True))


def columns(target: str, predictions: list[int], keys: list[str]) -> dict[str, Any]:
    return {
        "dataset": DATASET,
        "shard": "s",
        "part": 0,
        "key": keys,
        "label": LABELS[: len(keys)],
        "target": target,
        "target_id": f"{target}-id",
        "policy": "direct",
        "defense": "",
        "abstained": False,
        "weights_sha256": "w",
        "pixels_sha256": ["p"] * len(keys),
        "prediction": predictions,
        "label_probability": [0.5] * len(keys),
    }


def commit_clean(ledger: Ledger, target: str, predictions: list[int], part: int = 0) -> None:
    unit = Unit(DATASET, Part("s", part, 2), target=f"{target}-id")
    keys = KEYS[: len(predictions)]
    ledger.commit(
        unit, schema.to_parquet(schema.build_table(schema.CLEAN, columns(target, predictions, keys))), "parquet", {}
    )


def commit_transfer(
    ledger: Ledger,
    target: str,
    predictions: list[int],
    *,
    part: int = 0,
    target_class: list[int | None] | None = None,
    keys: list[str] | None = None,
    digest: str = "",
    source: dict[str, str] | None = None,
) -> None:
    unit = Unit(DATASET, Part("s", part, 2), "net-id", "mi-id", f"{target}-id")
    rows = {
        **columns(target, predictions, keys or KEYS[: len(predictions)]),
        "source": "net",
        "source_id": "net-id",
        "attack": "mi",
        "attack_id": "mi-id",
        "epsilon": 8 / 255,
        "norm": "linf",
        "target_class": target_class,
    }
    images = Unit(DATASET, Part("s", part, 2), "net-id", "mi-id")
    ledger.commit(images, b"", "tar", {"source": source or {"digest": "net"}})
    ledger.commit(
        unit,
        schema.to_parquet(schema.build_table(schema.TRANSFER, rows)),
        "parquet",
        {"target": {"digest": digest or target}},
    )


def rates(summary: Report, target: str) -> dict[str, tuple[int, int]]:
    (row,) = (row for row in summary.success if row.target == target)
    return {name: (rate.count, rate.n) for name, rate in row.rates.items()}


def test_the_three_denominators(ledger: Ledger) -> None:
    commit_clean(ledger, "x", [0, 1, 2, 9])  # correct on a, b, c
    commit_clean(ledger, "y", [0, 9, 2, 3])  # correct on a, c, d
    commit_transfer(ledger, "x", [9, 1, 9, 9])  # wrong on a, c, d
    commit_transfer(ledger, "y", [0, 1, 9, 9])  # wrong on c, d
    summary = report.summarise(ledger)
    assert rates(summary, "x") == {"all": (3, 4), "target": (2, 3), "joint": (2, 2)}
    assert rates(summary, "y") == {"all": (2, 4), "target": (2, 3), "joint": (1, 2)}
    assert {(row.target, row.correct) for row in summary.accuracy} == {("x", Rate(3, 4)), ("y", Rate(3, 4))}


def test_transfer_is_pooled_over_targets_other_than_the_source(ledger: Ledger) -> None:
    for part in (0, 1):
        ledger.commit(Unit(DATASET, Part("s", part, 2)), b"", "tar", {"n_in": 4, "n_ok": 4, "n_quarantined": 0})
        for target, clean in (("x", [0, 1, 2, 9]), ("y", [0, 9, 2, 3]), ("net", [0, 1, 2, 3])):
            commit_clean(ledger, target, clean, part)
        commit_transfer(ledger, "x", [9, 1, 9, 9], part=part)
        commit_transfer(ledger, "y", [9, 1, 2, 9], part=part)
        commit_transfer(ledger, "net", [9, 9, 9, 9], part=part)
    (white_box,) = report.summarise(ledger).white_box
    assert (white_box.targets, white_box.rates["target"].count, white_box.rates["target"].n) == (1, 8, 8)
    (row,) = report.summarise(ledger).transfer
    assert (row.source, row.attack, row.targets) == ("net", "mi", 2)
    # Targets fooled of targets that count: a 2 of 2, b 0 of 1, c 1 of 2, d 1 of 1.
    assert row.rates["target"] == PooledRate(8, 12, 8, (2 * (4 + 1 + 1), 2 * (4 + 2 + 1), 2 * (4 + 1 + 4 + 1)))
    assert {name: (rate.count, rate.n) for name, rate in row.rates.items()} == {
        "all": (10, 16),
        "target": (8, 12),
        "joint": (6, 8),
    }
    console = Console(record=True, width=140, file=io.StringIO())
    tables.print_report(report.summarise(ledger), denominator="target", console=console)
    assert "67% 8/12" in console.export_text()
    values = report_values(report.summarise(ledger))["transfer"]
    assert values[0]["rates"]["target"]["rate"] == pytest.approx(8 / 12)


def test_a_renamed_source_does_not_count_as_transfer(ledger: Ledger) -> None:
    commit_clean(ledger, "x", [0, 1])
    commit_transfer(ledger, "x", [9, 9], digest="net")
    assert report.summarise(ledger).transfer == []


def test_the_source_of_external_images_is_known_by_its_name(ledger: Ledger) -> None:
    for target in ("x", "y"):
        commit_clean(ledger, target, [0, 1])
        commit_transfer(ledger, target, [9, 9], source={"told": "x"})
    summary = report.summarise(ledger)
    assert [(row.targets, row.rates["all"].n) for row in (*summary.transfer, *summary.white_box)] == [(1, 2), (1, 2)]


def test_rates_are_added_up_over_parts(ledger: Ledger) -> None:
    for part in (0, 1):
        commit_clean(ledger, "x", [0, 1, 9], part)
        commit_transfer(ledger, "x", [9, 1, 2], part=part)
    assert rates(report.summarise(ledger), "x") == {"all": (2, 6), "target": (2, 4), "joint": (2, 4)}


def test_a_targeted_attack_succeeds_on_the_target_class_only(ledger: Ledger) -> None:
    commit_clean(ledger, "x", [0, 1, 2, 3])
    commit_transfer(ledger, "x", [7, 7, 2, 8], target_class=[7, 6, 5, None])
    assert rates(report.summarise(ledger), "x")["all"] == (2, 4)


def test_a_target_that_has_not_scored_every_part_is_not_in_the_joint_denominator(ledger: Ledger) -> None:
    for part in (0, 1):
        commit_clean(ledger, "x", [0, 1], part)
        commit_transfer(ledger, "x", [9, 9], part=part)
    commit_clean(ledger, "late", [9, 9], 0)
    summary = report.summarise(ledger)
    assert summary.joint == {DATASET: ["x-id"]}
    assert rates(summary, "x")["joint"] == (4, 4)


def test_joint_denominator_is_empty_if_no_target_has_scored_every_part(ledger: Ledger) -> None:
    commit_clean(ledger, "x", [0, 1], 0)
    commit_transfer(ledger, "x", [9, 9], part=0)
    commit_clean(ledger, "y", [0, 1], 1)
    commit_transfer(ledger, "y", [9, 1], part=1)
    summary = report.summarise(ledger)
    assert summary.joint == {DATASET: []}
    assert rates(summary, "x") == {"all": (2, 2), "target": (2, 2), "joint": (0, 0)}
    assert rates(summary, "y") == {"all": (1, 2), "target": (1, 2), "joint": (0, 0)}


def test_missing_shards_and_results_of_plans_are_counted(ledger: Ledger) -> None:
    commit_clean(ledger, "x", [0, 1])
    ledger.record_plan({"dataset": DATASET, "shards": ["s", "t"], "sources": [], "attacks": [], "targets": ["x-id"]})
    assert report.summarise(ledger).missing_shards == 2
    ledger.commit(Unit(DATASET, Part("s", 0, 2)), b"", "tar", {"n_in": 2, "n_ok": 2, "n_quarantined": 0})
    summary = report.summarise(ledger)
    assert (summary.missing_shards, summary.missing_results) == (1, 2)


def test_names_are_not_read_as_markup(ledger: Ledger) -> None:
    row = report.Success(
        "d", "net", "n", "gnp[r=0.1][/b]", "m", 8 / 255, "linf", "x", "x", "direct", {"target": Rate(5, 10)}
    )
    summary = Report([row], [], [], [], {}, {"d": {"n_in": 1, "n_ok": 1, "n_quarantined": 0}}, 0, 0, 0)
    console = Console(record=True, width=100, file=io.StringIO())
    tables.print_report(summary, denominator="target", console=console)
    assert "gnp[r=0.1][/b]" in console.export_text()


@pytest.mark.parametrize("junk", [b"junk", b""])
def test_a_file_that_is_not_parquet_is_an_integrity_error(ledger: Ledger, junk: bytes) -> None:
    ledger.commit(Unit(DATASET, Part("s", 0, 1), target="x-id"), junk, "parquet", {})
    with pytest.raises(IntegrityError, match="not a Parquet file"):
        report.summarise(ledger)


def test_results_without_clean_predictions_are_left_out_and_counted(ledger: Ledger) -> None:
    commit_clean(ledger, "x", [0, 1])
    commit_transfer(ledger, "y", [9, 9])
    summary = report.summarise(ledger)
    assert summary.success == []
    assert summary.unscored == 1


def test_different_images_in_one_part_are_an_integrity_error(ledger: Ledger) -> None:
    commit_clean(ledger, "x", [0, 1])
    commit_transfer(ledger, "x", [9, 9], keys=["a", "z"])
    with pytest.raises(IntegrityError, match="holds other images"):
        report.summarise(ledger)


def test_a_file_without_a_marker_is_not_counted(ledger: Ledger) -> None:
    commit_clean(ledger, "x", [0, 1])
    commit_transfer(ledger, "x", [9, 1])
    (marker,) = ledger.read_markers(ledger.list_units("transfer"))
    before = report.summarise(ledger)
    ledger.storage.put(marker.object.replace(".parquet", "0.parquet"), ledger.read_data(marker))
    assert report.summarise(ledger) == before


def test_an_empty_store_reports_nothing(ledger: Ledger) -> None:
    summary = report.summarise(ledger)
    assert (summary.success, summary.accuracy, summary.images) == ([], [], {})
    console = Console(record=True, width=100)
    tables.print_report(summary, denominator="target", console=console)
    assert "nothing is scored yet" in console.export_text()
    with pytest.raises(MissingError, match="run generate first"):
        sample_view.strongest_attack(summary)


def test_a_table_shows_count_denominator_and_interval() -> None:
    row = report.Success(
        "d", "net", "net-id", "mi", "mi-id", 8 / 255, "linf", "x", "x-id", "direct", {"target": Rate(5, 10)}
    )
    accuracy = report.Accuracy("d", "x", "x-id", "direct", Rate(18, 20))
    images = {"d": {"n_in": 21, "n_ok": 20, "n_quarantined": 1}}
    console = Console(record=True, width=100, file=io.StringIO())
    tables.print_report(Report([row], [], [], [accuracy], {}, images, 2, 1, 7), denominator="target", console=console)
    shown = console.export_text()
    for piece in (
        "50% 5/10",
        "24–76%",
        "90% 18/20",
        "mi, 8/255",
        "20 images, 1 quarantined",
        "2 result files await",
        "1 planned shard and 7 planned results",
    ):
        assert piece in shown


def test_an_image_whose_label_is_the_target_class_does_not_count(ledger: Ledger) -> None:
    commit_clean(ledger, "x", [0, 1, 2, 3])
    commit_transfer(ledger, "x", [0, 2, 2, 2], target_class=[0, 2, 2, 2])  # equal to the label for a and c
    assert rates(report.summarise(ledger), "x") == {"all": (2, 2), "target": (2, 2), "joint": (2, 2)}
