"""The rows of all result files in a few large Parquet files: `versions/ID/clean/00000.parquet`, `transfer/…`."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from pipeline.data.sample import Part
from pipeline.errors import IntegrityError
from pipeline.ledger import Ledger, Marker, Unit
from pipeline.results import schema

ROWS_PER_FILE = 2_000_000
_READERS = 16


def compact(ledger: Ledger, markers: Sequence[Marker], model_names: dict[str, str]) -> Iterator[bytes]:
    """Parquet files with the rows of result files, in their order.

    Args:
        ledger: The store.
        markers: Markers of one kind of result, in the order of their units.
        model_names: Filled while the files are read: identity of a source or target → its name in the rows.

    Raises:
        IntegrityError: As `checked_tables`.
    """
    tables = _with_names(checked_tables(ledger, markers), model_names)
    return schema.compact_tables(tables, rows_per_file=ROWS_PER_FILE)


def checked_tables(ledger: Ledger, markers: Sequence[Marker]) -> Iterator[tuple[Unit, schema.Table]]:
    """The tables of result files, in order, each checked against its marker; empty ones are left out.

    Args:
        ledger: The store.
        markers: Markers in the order of their units, so that the parts of a shard come one after another.

    Raises:
        IntegrityError: A file is damaged, does not match its marker, or holds a row that another file holds too.
    """
    shard: tuple[str, str] | None = None
    owners: dict[str, Part] = {}
    for marker, data in _read(ledger, markers):
        unit, where = marker.unit, ledger.storage.url_of(marker.object)
        table = schema.read_parquet(data, name=where)
        _require_match(marker, table, where)
        if shard != (unit.dataset, unit.part.shard):
            shard = (unit.dataset, unit.part.shard)
            owners = {}
        keys = table.column("key").to_pylist()
        # Every file has its own target, source and attack: a duplicate row is a key twice in it, or in two parts.
        if len(set(keys)) < len(keys) or any(owners.setdefault(key, unit.part) != unit.part for key in keys):
            raise IntegrityError(f"{where}: holds a duplicate row; run verify")
        if keys:
            yield unit, table


def _read(ledger: Ledger, markers: Sequence[Marker]) -> Iterator[tuple[Marker, bytes]]:
    """The verified data of markers, in order, read in parallel."""
    with ThreadPoolExecutor(_READERS) as pool:
        for start in range(0, len(markers), _READERS):
            batch = markers[start : start + _READERS]
            yield from zip(batch, pool.map(ledger.read_data, batch), strict=True)


def _require_match(marker: Marker, table: schema.Table, where: str) -> None:
    """Refuses a table with another number of rows than its marker records, or with rows of another unit."""
    unit = marker.unit
    if table.num_rows != marker.fact("n"):
        raise IntegrityError(f"{where}: holds {table.num_rows} rows, its marker says {marker.fact('n')}; run verify")
    expected = {"dataset": unit.dataset, "shard": unit.part.shard, "part": unit.part.index, "target_id": unit.target}
    if unit.attack:
        expected |= {"source_id": unit.source, "attack_id": unit.attack}
    if ("attack_id" in table.column_names) != bool(unit.attack):
        raise IntegrityError(f"{where}: holds another kind of result than its marker says; run verify")
    for column, value in expected.items():
        if table.num_rows and table.column(column).unique().to_pylist() != [value]:
            raise IntegrityError(f"{where}: its column {column} is not {value!r} throughout; run verify")


def _with_names(tables: Iterable[tuple[Unit, schema.Table]], names: dict[str, str]) -> Iterator[schema.Table]:
    for unit, table in tables:
        for identity, column in ((unit.source, "source"), (unit.target, "target")):
            if identity:
                names[identity] = table.column(column)[0].as_py()
        yield table
