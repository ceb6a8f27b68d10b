from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pytest

from pipeline.data.sample import Part
from pipeline.errors import IntegrityError
from pipeline.ledger import Ledger, Unit
from pipeline.maintenance import compaction
from pipeline.maintenance.finalize import finalize
from pipeline.results import schema
from tests.maintenance.stores import IMAGES, compacted_tables, new_ledger, path_of

VERSIONS = {"versions": {"gnp": "0"}}


def commit_clean_result(ledger: Ledger, part: Part, keys: list[str], **facts: Any) -> None:
    """Commits a clean result with all facts that finalize requires, unless given otherwise."""
    columns = {
        "dataset": "data-0",
        "shard": part.shard,
        "part": part.index,
        "key": keys,
        "label": [0] * len(keys),
        "target": "x",
        "target_id": "x-id",
        "policy": "direct",
        "defense": "",
        "abstained": False,
        "weights_sha256": "w",
        "pixels_sha256": ["p"] * len(keys),
        "prediction": [0] * len(keys),
        "label_probability": [0.5] * len(keys),
    }
    unit = Unit("data-0", part, target="x-id")
    all_facts = {"n": len(keys), "target": {"model": "x"}, **VERSIONS, **facts}
    ledger.commit(unit, schema.to_parquet(schema.build_table(schema.CLEAN, columns)), "parquet", all_facts)


def test_rows_are_split_into_files_of_at_most_rows_per_file(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = finalize(ledger)
    (one,) = compacted_tables(ledger, whole, "transfer")
    path_of(ledger, f"{whole.folder}/manifest.json").unlink()
    monkeypatch.setattr(compaction, "ROWS_PER_FILE", 3)
    tables = compacted_tables(ledger, finalize(ledger), "transfer")
    assert [table.num_rows for table in tables] == [3] * 8 + [2]
    assert [row for table in tables for row in table.to_pylist()] == one.to_pylist()


@pytest.mark.parametrize("most", [1, 2, 4, 7, 100])
def test_compaction_keeps_every_row_in_order(most: int, ledger: Ledger) -> None:
    markers = ledger.read_markers(sorted(ledger.list_units("transfer")))
    tables = [schema.read_parquet(ledger.read_data(marker), name="x") for marker in markers]
    files = [schema.read_parquet(data, name="x") for data in schema.compact_tables(tables, rows_per_file=most)]
    assert {table.num_rows for table in files[:-1]} <= {most}
    assert 0 < files[-1].num_rows <= most
    assert [row for table in files for row in table.to_pylist()] == [
        row for table in tables for row in table.to_pylist()
    ]


def test_two_divisions_of_a_shard_are_an_error(tmp_path: Path) -> None:
    ledger = new_ledger(tmp_path / "store")
    commit_clean_result(ledger, Part("s", 0, 1), ["a"])
    commit_clean_result(ledger, Part("s", 0, 2), ["a"])
    with pytest.raises(IntegrityError, match="other markers divide this shard into 1 parts"):
        finalize(ledger)


@pytest.mark.parametrize(("first", "second"), [(["a", "b"], ["c", "a"]), (["a"], ["b", "b"])])
def test_a_duplicate_row_is_an_error(tmp_path: Path, first: list[str], second: list[str]) -> None:
    ledger = new_ledger(tmp_path / "store")
    commit_clean_result(ledger, Part("s", 0, 2), first)
    commit_clean_result(ledger, Part("s", 1, 2), second)
    commit_clean_result(ledger, Part("t", 0, 1), first)
    with pytest.raises(IntegrityError, match=r"00001-of-00002.*holds a duplicate row"):
        finalize(ledger)


def test_a_key_in_two_shards_is_two_rows(tmp_path: Path) -> None:
    ledger = new_ledger(tmp_path / "store")
    for shard in ("s", "t"):
        commit_clean_result(ledger, Part(shard, 0, 1), ["a", "b"])
    assert finalize(ledger).rows == 4


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"n": 3}, "holds 2 rows, its marker says 3"),
        ({"n": -1}, "n = -1 is not a count"),
        ({"n": "2"}, "n = '2' is not a count"),
        ({"target": None}, "target = None is not a mapping"),
        ({"versions": []}, r"versions = \[\] is not a mapping"),
    ],
)
def test_impossible_facts_are_errors(tmp_path: Path, facts: dict[str, Any], message: str) -> None:
    ledger = new_ledger(tmp_path / "store")
    commit_clean_result(ledger, Part("s", 0, 1), ["a", "b"], **facts)
    with pytest.raises(IntegrityError, match=message):
        finalize(ledger)


def test_a_missing_fact_is_an_error(tmp_path: Path) -> None:
    ledger = new_ledger(tmp_path / "store")
    ledger.commit(Unit("data-0", Part("s", 0, 1)), b"", "tar", {"n_ok": 0, "n_in": 0})
    with pytest.raises(IntegrityError, match="does not say n_quarantined"):
        finalize(ledger)


def test_rows_of_another_unit_are_an_error(ledger: Ledger) -> None:
    clean, *_ = ledger.read_markers(sorted(ledger.list_units("clean")))
    for unit in (replace(clean.unit, target="other-0"), replace(clean.unit, dataset="other-0")):
        copied = new_ledger(path_of(ledger, "").parent / unit.dataset / unit.target)
        copied.commit(unit, ledger.read_data(clean), "parquet", clean.facts)
        with pytest.raises(IntegrityError, match=r"is not 'other-0' throughout"):
            finalize(copied)


def test_duckdb_reads_the_compacted_files(ledger: Ledger) -> None:
    version = finalize(ledger)
    query = "select source, attack, target, count(*), count(distinct (shard, key)) from '{}' group by all order by all"
    compacted = duckdb.execute(query.format(f"{ledger.storage.url_of(version.folder)}/transfer/*.parquet")).fetchall()
    assert compacted == [("tiny", name, "tiny", IMAGES, IMAGES) for name in ("noise", "target+mi")]
    committed = query.format(f"{ledger.storage.url_of('results/transfer')}/**/*.parquet")
    assert duckdb.execute(committed).fetchall() == compacted
