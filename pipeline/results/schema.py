"""The Parquet schemas, written and read in one place.

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

# DuckDB's own size of a row group: its threads take one each.
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

Kind = Literal["clean", "transfer"]
SCHEMAS: dict[Kind, pa.Schema] = {"clean": CLEAN, "transfer": TRANSFER}


def table(schema: pa.Schema, columns: Mapping[str, Sequence[Any] | Any]) -> Table:
    """Columns as a table.

    Args:
        schema: `CLEAN` or `TRANSFER`.
        columns: One sequence per column, or one value that holds for every row; `key` is always a sequence.
    """
    rows = len(columns["key"])
    arrays = []
    for field in schema:
        value = columns[field.name]
        repeated = [value] * rows if value is None or isinstance(value, (str, int, float)) else value
        arrays.append(pa.array(repeated, type=field.type))
    return pa.Table.from_arrays(arrays, schema=schema)


def write(table: Table) -> bytes:
    """A Parquet file in memory; the same table gives the same bytes."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def together(kind: Kind, tables: Iterable[Table]) -> Table:
    """The rows of many tables as one.

    Args:
        kind: `clean`, or `transfer`.
        tables: All of that kind's schema; of none, an empty table.
    """
    return pa.concat_tables([SCHEMAS[kind].empty_table(), *tables]).unify_dictionaries()


def compact(tables: Iterable[Table], *, rows_per_file: int) -> Iterator[bytes]:
    """Parquet files of the rows of many tables, in order; the same tables give the same bytes.

    No more than one file's tables are held at a time.

    Args:
        tables: All of `CLEAN`, or all of `TRANSFER`.
        rows_per_file: Rows in every file but the last; a table is cut where a file is full.
    """
    return map(_file, _filled(tables, rows_per_file))


def read(data: bytes, *, name: str) -> Table:
    """The table of a Parquet file that `write` made.

    Args:
        data: The file, whole.
        name: What to call it in errors.

    Raises:
        IntegrityError: The bytes are no such file.
    """
    try:
        table = pq.read_table(io.BytesIO(data))
        names = ", ".join(table.column_names)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise IntegrityError(f"{name}: not a Parquet file") from error
    if not (table.schema.equals(CLEAN) or table.schema.equals(TRANSFER)):
        raise IntegrityError(f"{name}: not a table of results: it has the columns {names}")
    return table


def _filled(tables: Iterable[Table], most: int) -> Iterator[list[Table]]:
    """Tables in lists of `most` rows together, the last of fewer; a table is cut where a list is full."""
    held: list[Table] = []
    rows = 0
    for table in tables:
        start = 0
        while rows + table.num_rows - start >= most:
            yield [*held, table.slice(start, most - rows)]
            start += most - rows
            held, rows = [], 0
        if start < table.num_rows:
            held.append(table.slice(start))
            rows += table.num_rows - start
    if held:
        yield held


def _file(tables: Sequence[Table]) -> bytes:
    buffer = io.BytesIO()
    whole = pa.concat_tables(tables).unify_dictionaries()
    pq.write_table(whole, buffer, compression="zstd", row_group_size=_ROW_GROUP)
    return buffer.getvalue()
