"""Fuzzed objects of a store: parts of images and Parquet results are read or refused."""

import io
import random

import pytest
from hypothesis import example, given
from PIL import Image

from pipeline.data import parts, shards
from pipeline.results import schema
from tests.fuzz.fuzzing import corrupt, fuzz_settings, only_gnp_errors, seeds
from tests.fuzz.tars import TARS

pytestmark = pytest.mark.timeout(300)


def valid_parts() -> list[bytes]:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), 77).save(buffer, "PNG")
    images = [{"__key__": f"k{index}", "png": buffer.getvalue(), "cls": b"1"} for index in range(2)]
    return [shards.write_tar(images), shards.write_tar([{**image, "json": b"{}"} for image in images])]


PARTS = valid_parts()


@fuzz_settings(400)
@given(seeds)
def test_a_corrupted_part_is_read_or_refused(seed: int) -> None:
    rng = random.Random(seed)
    data = corrupt(rng.choice(PARTS), rng, [*PARTS, *TARS])
    with only_gnp_errors("parts"):
        images = parts.decode_tar(data, name="fuzz")
        assert len(images.keys) == len(images.labels) == len(images.pixels)


def valid_results() -> list[bytes]:
    shared = {"dataset": "d", "shard": "s", "part": 0, "key": [f"k{i}" for i in range(20)], "label": list(range(20))}
    target = {"target": "t", "target_id": "t-0", "policy": "direct", "weights_sha256": "0", "pixels_sha256": ["0"] * 20}
    scored = {"defense": "", "prediction": 3, "label_probability": 0.5, "abstained": False}
    attack = {
        "source": "n",
        "source_id": "n-0",
        "attack": "a",
        "attack_id": "a-0",
        "epsilon": 0.1,
        "norm": "l2",
        "target_class": None,
    }
    return [
        schema.to_parquet(schema.build_table(schema.CLEAN, {**shared, **target, **scored})),
        schema.to_parquet(schema.build_table(schema.TRANSFER, {**shared, **target, **scored, **attack})),
    ]


RESULTS = valid_results()


@fuzz_settings(400)
@given(seeds)
@example(510510)  # a column's name that is no UTF-8
def test_corrupted_results_are_read_or_refused(seed: int) -> None:
    rng = random.Random(seed)
    data = corrupt(rng.choice(RESULTS), rng, RESULTS)
    with only_gnp_errors("results"):
        schema.read_parquet(data, name="fuzz").to_pydict()
