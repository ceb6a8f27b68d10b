"""The Parquet schemas of stored predictions, and how their files are written and read.

One row per image × target. Two kinds of file: clean predictions, and transfer results (predictions on adversarial
images). Names repeat in every row, so that any file can be queried by itself; dictionary encoding makes them cheap.
"""

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import IntegrityError

Table: TypeAlias = pa.Table

# DuckDB's default size of a row group: each of its threads takes one.
_ROW_GROUP = 122_880

_TEXT = pa.dictionary(pa.int32(), pa.string())

_IMAGE = [
    pa.field("dataset", _TEXT, nullable=False, metadata={"meaning": "identity of the prepared images"}),
    pa.field("shard", _TEXT, nullable=False, metadata={"meaning": "the input shard's name"}),
    pa.field("part", pa.int32(), nullable=False, metadata={"meaning": "which part of the shard, from 0"}),
    pa.field("key", pa.string(), nullable=False, metadata={"meaning": "WebDataset key; unique in its shard"}),
    pa.field("label", pa.int32(), nullable=False, metadata={"meaning": "true class"}),
]
_TARGET = [
    pa.field("target", _TEXT, nullable=False, metadata={"meaning": "name of the model scored"}),
    pa.field("target_id", _TEXT, nullable=False, metadata={"meaning": "name and fingerprint of the model scored"}),
    pa.field("policy", _TEXT, nullable=False, metadata={"meaning": "how the image became the model's input"}),
    pa.field("defense", _TEXT, nullable=False, metadata={"meaning": "what the model is behind; empty for nothing"}),
    pa.field("weights_sha256", _TEXT, nullable=False, metadata={"meaning": "digest of the target's state dict"}),
    pa.field("pixels_sha256", pa.string(), nullable=False, metadata={"meaning": "digest of the uint8 pixels scored"}),
    pa.field("prediction", pa.int32(), nullable=False, metadata={"meaning": "the target's argmax"}),
    pa.field("label_probability", pa.float32(), nullable=False, metadata={"meaning": "softmax at the true class"}),
    pa.field("abstained", pa.bool_(), nullable=False, metadata={"meaning": "it does not answer; prediction is ahead"}),
]
_ATTACK = [
    pa.field("source", _TEXT, nullable=False, metadata={"meaning": "name of the model attacked"}),
    pa.field("source_id", _TEXT, nullable=False, metadata={"meaning": "name and fingerprint of the model attacked"}),
    pa.field("attack", _TEXT, nullable=False, metadata={"meaning": "name of the attack"}),
    pa.field("attack_id", _TEXT, nullable=False, metadata={"meaning": "name and fingerprint of the attack"}),
    pa.field("epsilon", pa.float64(), nullable=False, metadata={"meaning": "budget on [0, 1]"}),
    pa.field("norm", _TEXT, nullable=False, metadata={"meaning": "of the budget: linf or l2"}),
    pa.field("target_class", pa.int32(), metadata={"meaning": "class a targeted attack wants; null if untargeted"}),
]

CLEAN = pa.schema(_IMAGE + _TARGET)
TRANSFER = pa.schema(_IMAGE + _ATTACK + _TARGET)

ResultKind = Literal["clean", "transfer"]
SCHEMAS: dict[ResultKind, pa.Schema] = {"clean": CLEAN, "transfer": TRANSFER}


def build_table(schema: pa.Schema, columns: Mapping[str, Sequence[Any] | Any]) -> Table:
    """A table of columns.

    Args:
        schema: `CLEAN` or `TRANSFER`.
        columns: For each column a sequence, or one value for every row; `key` is always a sequence.
    """
    rows = len(columns["key"])
    arrays = []
    for field in schema:
        value = columns[field.name]
        repeated = [value] * rows if value is None or isinstance(value, (str, int, float)) else value
        arrays.append(pa.array(repeated, type=field.type))
    return pa.Table.from_arrays(arrays, schema=schema)


def to_parquet(table: Table) -> bytes:
    """A Parquet file in memory; the same table gives the same bytes."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def concatenate(kind: ResultKind, tables: Iterable[Table]) -> Table:
    """The rows of several tables as one table.

    Args:
        kind: `clean` or `transfer`.
        tables: Tables with the schema of that kind; without any, the result is empty.
    """
    return pa.concat_tables([SCHEMAS[kind].empty_table(), *tables]).unify_dictionaries()


def compact_tables(tables: Iterable[Table], *, rows_per_file: int) -> Iterator[bytes]:
    """Parquet files of the rows of many tables, in order; the same tables give the same bytes.

    No more than one file's tables are in memory at a time.

    Args:
        tables: All of `CLEAN`, or all of `TRANSFER`.
        rows_per_file: Rows in every file except the last; a table is cut where a file is full.
    """
    return map(_compacted_parquet, _group_rows(tables, rows_per_file))


def read_parquet(data: bytes, *, name: str) -> Table:
    """The table in a Parquet file that `to_parquet` wrote.

    Args:
        data: The whole file.
        name: The file's name in errors.

    Raises:
        IntegrityError: The bytes are not such a file.
    """
    try:
        table = pq.read_table(io.BytesIO(data))
        table.validate(full=True)  # reading alone does not notice text that is not UTF-8
        names = ", ".join(table.column_names)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise IntegrityError(f"{name}: not a Parquet file") from error
    if not (table.schema.equals(CLEAN) or table.schema.equals(TRANSFER)):
        raise IntegrityError(f"{name}: not a table of results: it has the columns {names}")
    return table


def _group_rows(tables: Iterable[Table], size: int) -> Iterator[list[Table]]:
    """Tables in groups of `size` rows, the last of fewer; a table is cut where a group is full."""
    group: list[Table] = []
    rows = 0
    for table in tables:
        start = 0
        while rows + table.num_rows - start >= size:
            yield [*group, table.slice(start, size - rows)]
            start += size - rows
            group = []
            rows = 0
        if start < table.num_rows:
            group.append(table.slice(start))
            rows += table.num_rows - start
    if group:
        yield group


def _compacted_parquet(tables: Sequence[Table]) -> bytes:
    buffer = io.BytesIO()
    table = pa.concat_tables(tables).unify_dictionaries()
    pq.write_table(table, buffer, compression="zstd", row_group_size=_ROW_GROUP)
    return buffer.getvalue()
