"""Fuzzed tar shards: each is read or refused, and no header makes the reader take memory that the file has not."""

import contextlib
import io
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given

from pipeline.data import shards
from pipeline.data.sample import RejectedSample, Sample
from pipeline.errors import ShardError
from tests.fuzz.fuzzing import fuzz_settings, only_gnp_errors, scratch
from tests.fuzz.tars import END, SIZES, composed_tars, corrupted_tars, padded, pax_member, tar_header

pytestmark = pytest.mark.timeout(300)


def check_tar(data: bytes) -> None:
    """Reads a tar from a file, as a spooled shard is read, and from memory; both give the same samples."""
    with tempfile.TemporaryFile(dir=scratch()) as file:
        file.write(data)
        with only_gnp_errors("tars"):
            shard = shards.Shard(file, name="fuzz")
            samples = list(shard.samples(range(len(shard) + 1), classes=10))
            assert len(samples) == len(shard)
            assert list(shards.read_samples(data, name="fuzz", classes=10)) == samples
            for sample in samples:
                assert isinstance(sample, (Sample, RejectedSample))
                sample.key.encode()
                if isinstance(sample, Sample):
                    assert len(sample.image) <= len(data)
                    assert 0 <= sample.label < 10
                    assert ".." not in sample.key.split("/")
                    assert not sample.key.startswith("/")
            list(shards.read_records(data, name="fuzz"))


@fuzz_settings(2000)
@given(composed_tars())
def test_a_tar_of_hostile_members_is_read_or_refused(data: bytes) -> None:
    check_tar(data)


@fuzz_settings(1500)
@given(corrupted_tars())
def test_a_corrupted_tar_is_read_or_refused(data: bytes) -> None:
    check_tar(data)


@pytest.mark.parametrize(
    "data",
    [
        pax_member(("GNU.sparse.map", "0,3"), ("GNU.sparse.size", str(1 << 40)))
        + tar_header("a.jpg", 3)
        + padded(b"abc")
        + END,
        tar_header("a.jpg", 3, kind=b"S", tail=b"00000000000\0" * 8 + b"\0" + SIZES[9]) + padded(b"abc") + END,
        tar_header("a.jpg", claimed=SIZES[9]) + END,
        tar_header("a", kind=b"L", claimed=SIZES[10]) + padded(b"a.jpg") + tar_header("a.jpg") + END,
        pax_member(("size", str(1 << 62))) + tar_header("a.jpg") + END,
        pax_member(("GNU.sparse.realsize", str(1 << 28))) + tar_header("a.jpg") + END,
    ],
    ids=["sparse by pax", "sparse", "size", "long name", "size by pax", "real size by pax"],
)
def test_a_member_that_claims_a_terabyte_takes_no_memory(data: bytes) -> None:
    with tempfile.TemporaryFile() as file, peak_memory() as peak:
        file.write(data)
        try:
            shard = shards.Shard(file, name="huge")
            samples = list(shard.samples(range(len(shard)), classes=10))
            assert all(isinstance(sample, RejectedSample) for sample in samples)
        except ShardError:
            pass
    assert peak() < 1 << 22


def test_a_label_of_two_hundred_megabytes_is_refused_unread() -> None:
    with tempfile.TemporaryFile() as file, peak_memory() as peak:
        file.write(tar_header("a.jpg", 3) + padded(b"abc") + tar_header("a.cls", 200 << 20))
        file.seek(200 << 20, io.SEEK_CUR)
        file.write(END)
        (sample,) = shards.Shard(file, name="huge").samples(range(2), classes=10)
    assert isinstance(sample, RejectedSample)
    assert "it has 209,715,200 bytes" in sample.reason
    assert peak() < 1 << 23  # the end of the archive is read by the megabyte


@contextlib.contextmanager
def peak_memory() -> Iterator[Callable[[], int]]:
    """Yields a function that returns, after the block, the most memory that Python allocated in it, in bytes."""
    tracemalloc.start()
    peak_bytes = [0]
    try:
        yield lambda: peak_bytes[0]
    finally:
        peak_bytes[0] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
