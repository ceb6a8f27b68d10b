"""Samples of shards, and writing shards."""

import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import pytest

from pipeline.data import shard_list, shards
from pipeline.data.sample import RejectedSample, Sample
from pipeline.errors import MissingError, ShardError, StorageError
from pipeline.storage import Storage, sha256
from tests.conftest import ROOT
from tests.data.reading import read
from tests.samples import CLASSES, jpeg, sample, write_shard


def test_samples_are_read_in_order_and_writing_is_deterministic() -> None:
    samples = [sample(index) for index in range(5)]
    data = shards.write_tar(samples)
    assert data == shards.write_tar(samples)
    expected = [Sample(each["__key__"], each["jpg"], int(each["cls"])) for each in samples]
    assert read(data) == expected


def test_an_empty_tar_has_no_samples() -> None:
    assert read(shards.write_tar([])) == []


def test_an_unusable_sample_is_rejected_with_a_reason_and_the_others_are_read() -> None:
    found = read(
        shards.write_tar(
            [
                sample(0),
                {"__key__": "unlabelled", "jpg": jpeg(1)},
                {"__key__": "imageless", "cls": b"3"},
                {"__key__": "word", "jpg": jpeg(1), "cls": b"cat"},
                {"__key__": "beyond", "jpg": jpeg(1), "cls": b"10"},
                {"__key__": "negative", "jpg": jpeg(1), "cls": b"-1"},
                {"__key__": "\udcff", "jpg": jpeg(1), "cls": b"1"},
                {"__key__": "../../etc/passwd", "jpg": jpeg(1), "cls": b"1"},
                sample(1),
                sample(0),
            ]
        )
    )
    reasons = {each.key: each.reason for each in found if isinstance(each, RejectedSample)}
    assert [each.key for each in found if isinstance(each, Sample)] == ["image00000", "image00001"]
    assert len(found) == 10
    assert "not UTF-8" in reasons["\\udcff"]
    assert "no cls" in reasons["unlabelled"]
    assert "no image" in reasons["imageless"]
    assert "whole number" in reasons["word"]
    assert "outside 0..9" in reasons["beyond"]
    assert "outside 0..9" in reasons["negative"]
    assert "outside its folder" in reasons["../../etc/passwd"]
    assert "earlier in the shard" in reasons["image00000"]


def test_members_that_webdataset_skips_are_rejected() -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, kind in (
            ("folder", tarfile.DIRTYPE),
            ("__meta__.json", tarfile.REGTYPE),
            ("README", tarfile.REGTYPE),
            (".hidden.jpg", tarfile.REGTYPE),
            ("linked.jpg", tarfile.SYMTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type = kind
            tar.addfile(info)
    found = read(buffer.getvalue())
    assert [each.key for each in found] == ["__meta__", "README", ".hidden.jpg", "linked.jpg"]
    assert all(isinstance(each, RejectedSample) for each in found)


def test_a_duplicate_file_is_an_error_of_the_shard() -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for _ in range(2):
            info = tarfile.TarInfo("a.jpg")
            info.size = 3
            tar.addfile(info, io.BytesIO(b"abc"))
    with pytest.raises(ShardError, match="duplicate"):
        read(buffer.getvalue())


def open_shard(data: bytes) -> shards.Shard:
    return shards.Shard(io.BytesIO(data), name="test")


def test_samples_by_index_equal_those_of_a_whole_read() -> None:
    samples = [sample(index) for index in range(23)]
    samples[7] = {"__key__": "unlabelled", "jpg": jpeg(7)}
    data = shards.write_tar(samples)
    whole, shard = read(data), open_shard(data)
    assert len(shard) == len(whole) == 23
    for stride in (1, 3, 5, 23, 100):
        for offset in range(min(stride, 23)):
            indices = range(offset, 23, stride)
            found = list(shard.samples(indices, classes=CLASSES))
            assert found == [whole[index] for index in indices]
    assert list(shard.samples([22, 0, 7, 7], classes=CLASSES)) == [whole[22], whole[0], whole[7], whole[7]]
    assert list(shard.samples([23, 10**9], classes=CLASSES)) == []


def test_a_shard_is_downloaded_whole_with_its_hash(
    store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    data = shards.write_tar([sample(index) for index in range(5)])
    Storage(store_url, create=True).put("in/s.tar", data)
    (file,) = shard_list.find_shards([f"{store_url}/in/s.tar"])
    with shards.download_shard(file) as shard:
        assert (shard.sha256, shard.size_bytes, shard.name) == (sha256(data), len(data), "s")
        assert list(shard.samples(range(9), classes=CLASSES)) == read(data)
    assert [path.name for path in tmp_path.iterdir() if path.name != "store"] == [], "the temporary file is removed"


def test_a_missing_or_damaged_shard_leaves_no_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    path = write_shard(tmp_path / "s.tar", [sample(0)])
    (file,) = shard_list.find_shards([str(path)])
    path.write_bytes(path.read_bytes()[:-10240])
    with pytest.raises(ShardError), shards.download_shard(file):
        pass
    path.unlink()
    with pytest.raises(MissingError, match=r"s\.tar: no such object"), shards.download_shard(file):
        pass
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_full_disk_is_an_error_before_the_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_shard(tmp_path / "s.tar", [sample(0)])
    (file,) = shard_list.find_shards([str(path)])
    usage = shutil.disk_usage(tmp_path)._replace(free=file.size_bytes - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    message = r"bytes do not fit into .* are free; set TMPDIR to a larger disk"
    with pytest.raises(StorageError, match=message) as full, shards.download_shard(file):
        pass
    assert "\n" not in str(full.value)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=file.size_bytes))
    with shards.download_shard(file) as shard:
        assert len(shard) == 1


def test_a_huge_member_is_rejected_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "_MAX_MEMBER_BYTES", 100_000)
    data = shards.write_tar([sample(0), {"__key__": "huge", "jpg": b"\0" * 100_001, "cls": b"1"}, sample(1)])
    reasons = [each.reason if isinstance(each, RejectedSample) else "" for each in read(data)]
    assert reasons == ["", "100,001 bytes as it would be unpacked: more than 100,000, or sparse", ""]


def test_a_sparse_member_is_rejected(tmp_path: Path) -> None:
    with (tmp_path / "bomb.jpg").open("wb") as file:
        file.truncate(1 << 30)
    (tmp_path / "bomb.cls").write_bytes(b"1")
    command = ["tar", "--sparse", "--format=pax", "-cf", "s.tar", "bomb.jpg", "bomb.cls"]
    subprocess.run(command, cwd=tmp_path, check=True)
    data = (tmp_path / "s.tar").read_bytes()
    assert len(data) < 100_000
    (found,) = read(data)
    assert isinstance(found, RejectedSample)
    assert "sparse" in found.reason


MEASURE_MEMORY = """
import sys
from pipeline.data import shard_list, shards
from tests.scale.processes import peak_mb
(file,) = shard_list.find_shards([sys.argv[1]])
before = peak_mb()
with shards.download_shard(file) as shard:
    size = sum(len(each.image) for each in shard.samples(range(len(shard)), classes=10))
print(size, peak_mb() - before)
"""


def test_a_shard_is_read_in_a_quarter_of_its_size_in_memory(tmp_path: Path) -> None:
    count, each = 60, 10_000_000
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for index in range(count):
            for name, data in ((f"{index}.jpg", b"\xff" * each), (f"{index}.cls", b"1")):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    command = [sys.executable, "-c", MEASURE_MEMORY, str(tmp_path / "s.tar")]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    size, grown_mb = done.stdout.split()
    assert int(size) == count * each
    assert float(grown_mb) < 150


@pytest.mark.parametrize("extension", ["__bad__", "__KEY__", "__url__", "__local_path__"])
def test_an_extension_that_webdataset_reserves_loses_no_sample(extension: str) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in (("a.jpg", jpeg(0)), ("a.cls", b"1"), (f"a.{extension}", b"x")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    kept, rejected = read(buffer.getvalue())
    assert isinstance(kept, Sample)
    assert isinstance(rejected, RejectedSample)
    assert "keeps for itself" in rejected.reason
