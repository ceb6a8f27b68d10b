"""Files of results: damaged ones are refused by name."""

import pyarrow as pa
import pytest

from pipeline.errors import IntegrityError
from pipeline.results import schema


def clean_row(key: str) -> dict[str, object]:
    """One clean prediction."""
    return {
        **dict.fromkeys(("dataset", "shard", "target", "target_id", "policy", "defense"), "x"),
        **dict.fromkeys(("weights_sha256", "pixels_sha256"), "0"),
        "part": 0,
        "key": [key],
        "label": 1,
        "prediction": 1,
        "label_probability": 0.5,
        "abstained": False,
    }


def test_a_table_is_read_as_it_was_written() -> None:
    table = schema.build_table(schema.CLEAN, clean_row("abcdefgh"))
    assert schema.read_parquet(schema.to_parquet(table), name="x").equals(table)


def test_a_file_whose_text_is_not_utf_8_is_refused_by_name() -> None:
    table = schema.build_table(schema.CLEAN, clean_row("abcdefgh"))
    damaged = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.array([0, 8], pa.int32()).buffers()[1], pa.py_buffer(b"ab\xffdefgh")]
    )
    position = schema.CLEAN.get_field_index("key")
    data = schema.to_parquet(table.set_column(position, schema.CLEAN.field("key"), damaged))
    with pytest.raises(IntegrityError, match="results/x: not a Parquet file"):
        schema.read_parquet(data, name="results/x")
