import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import pytest
import webdataset

from pipeline.data import shards, tars
from pipeline.data.sample import Rejected, Sample
from pipeline.errors import MissingError, RecipeError, ShardError, StorageError
from pipeline.storage import Storage, sha256
from tests.conftest import ROOT
from tests.samples import CLASSES, jpeg, sample, write_shard


def read(data: bytes) -> list[Sample | Rejected]:
    return list(shards.read(data, name="test", classes=CLASSES))


def test_what_is_written_is_read_in_order_and_the_same_bytes_each_time() -> None:
    samples = [sample(index) for index in range(5)]
    data = shards.write(samples)
    assert data == shards.write(samples)
    expected = [Sample(each["__key__"], each["jpg"], int(each["cls"])) for each in samples]
    assert read(data) == expected


def test_an_empty_tar_holds_nothing() -> None:
    assert read(shards.write([])) == []


@pytest.mark.parametrize("cut", ["member boundary", "inside a member", "inside a header", "before the end", "all"])
def test_a_truncated_tar_is_an_error_and_never_fewer_images(cut: str) -> None:
    data = shards.write([sample(index) for index in range(4)])
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        member = tar.getmembers()[4]
        tar.getmembers()
        end = tar.offset
    at = {
        "member boundary": member.offset,
        "inside a member": member.offset_data + 10,
        "inside a header": member.offset + 100,
        "before the end": end + 512,
        "all": 0,
    }[cut]
    with pytest.raises(ShardError, match="test"):
        read(data[:at])


def test_a_damaged_header_is_an_error_although_tarfile_stops_there_in_silence() -> None:
    data = bytearray(shards.write([sample(index) for index in range(4)]))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        at = tar.getmembers()[5].offset
    data[at + 3] ^= 0xFF
    assert len(list(webdataset.tariterators.tar_file_iterator(io.BytesIO(bytes(data))))) == 5
    with pytest.raises(ShardError, match="damaged at byte"):
        read(bytes(data))


@pytest.mark.parametrize("junk", [b"", b"not a tar", b"\x1f\x8b" + b"x" * 2000, b"\xff" * 20480])
def test_what_is_no_tar_is_an_error(junk: bytes) -> None:
    with pytest.raises(ShardError):
        read(junk)


def test_a_sample_that_cannot_be_used_is_rejected_with_its_reason_and_the_rest_goes_on() -> None:
    found = read(
        shards.write(
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
    reasons = {each.key: each.reason for each in found if isinstance(each, Rejected)}
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


def test_what_webdataset_passes_over_is_rejected_and_not_lost() -> None:
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
    assert all(isinstance(each, Rejected) for each in found)


def test_one_file_twice_is_an_error_of_the_shard() -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for _ in range(2):
            info = tarfile.TarInfo("a.jpg")
            info.size = 3
            tar.addfile(info, io.BytesIO(b"abc"))
    with pytest.raises(ShardError, match="duplicate"):
        read(buffer.getvalue())


def test_braces_globs_and_lists_name_shards(store_url: str) -> None:
    storage = Storage(store_url, create=True)
    for name in (
        "val-0000.tar",
        "val-0001.tar",
        "val-0002.tar",
        "notes.txt",
        "deeper/val-0003.tar",
        "again/val-0000.tar",
    ):
        storage.put(name, b"x" * 7)
    braces = shards.find([f"{storage.url}/val-{{0000..0001}}.tar"])
    assert [(shard.name, shard.size_bytes) for shard in braces] == [("val-0000", 7), ("val-0001", 7)]
    assert [shard.name for shard in shards.find([f"{storage.url}/*.tar"])] == ["val-0000", "val-0001", "val-0002"]
    listed = shards.find([f"{storage.url}/val-0002.tar", f"{storage.url}/val-0000.tar"])
    assert [shard.name for shard in listed] == ["val-0002", "val-0000"]
    with pytest.raises(MissingError, match=r"val-0003\.tar"):
        shards.find([f"{storage.url}/val-{{0000..0009}}.tar"])
    with pytest.raises(MissingError, match="test-"):
        shards.find([f"{storage.url}/test-*.tar"])
    with pytest.raises(RecipeError, match="is named twice, 'val-0000'"):
        shards.find([f"{storage.url}/*.tar", f"{storage.url}/val-0000.tar"])
    with pytest.raises(RecipeError, match="braces do not match"):
        shards.find([f"{storage.url}/val-{{0000..0001.tar"])
    with pytest.raises(RecipeError, match=r"would be called as .*/val-0000\.tar"):
        shards.find([f"{storage.url}/val-0000.tar", f"{storage.url}/again/val-0000.tar"])
    with pytest.raises(RecipeError, match=r"not a \.tar"):
        shards.find([f"{storage.url}/notes.txt"])
    with pytest.raises(RecipeError, match="file name only"):
        shards.find([f"{storage.url}/*/val-0003.tar"])


def test_links_into_a_cache_are_read_under_their_own_names(tmp_path: Path) -> None:
    write_shard(tmp_path / "blobs" / "3f2a", [sample(0)])
    (tmp_path / "snap").mkdir()
    (tmp_path / "snap" / "val-0000.tar").symlink_to("../blobs/3f2a")
    (shard,) = shards.find([f"{tmp_path}/snap/val-{{0000..0000}}.tar"])
    assert shard.name == "val-0000"
    with shards.spool(shard) as spooled:
        assert len(spooled) == 1


def opened(data: bytes) -> shards.Shard:
    return shards.Shard(io.BytesIO(data), name="test")


def test_samples_by_index_are_those_of_a_whole_read() -> None:
    samples = [sample(index) for index in range(23)]
    samples[7] = {"__key__": "unlabelled", "jpg": jpeg(7)}
    data = shards.write(samples)
    whole, shard = read(data), opened(data)
    assert len(shard) == len(whole) == 23
    for stride in (1, 3, 5, 23, 100):
        for offset in range(min(stride, 23)):
            indices = range(offset, 23, stride)
            found = list(shard.samples(indices, classes=CLASSES))
            assert found == [whole[index] for index in indices]
    assert list(shard.samples([22, 0, 7, 7], classes=CLASSES)) == [whole[22], whole[0], whole[7], whole[7]]
    assert list(shard.samples([23, 10**9], classes=CLASSES)) == []


def test_a_shard_is_spooled_whole_with_its_hash(
    store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    data = shards.write([sample(index) for index in range(5)])
    Storage(store_url, create=True).put("in/s.tar", data)
    (file,) = shards.find([f"{store_url}/in/s.tar"])
    with shards.spool(file) as shard:
        assert (shard.sha256, shard.size_bytes, shard.name) == (sha256(data), len(data), "s")
        assert list(shard.samples(range(9), classes=CLASSES)) == read(data)
    assert [path.name for path in tmp_path.iterdir() if path.name != "store"] == [], "nothing is left of it"


def test_a_shard_that_is_gone_or_damaged_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    path = write_shard(tmp_path / "s.tar", [sample(0)])
    (file,) = shards.find([str(path)])
    path.write_bytes(path.read_bytes()[:-10240])
    with pytest.raises(ShardError), shards.spool(file):
        pass
    path.unlink()
    with pytest.raises(MissingError, match=r"s\.tar: no such object"), shards.spool(file):
        pass
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_disk_without_room_is_one_line_before_anything_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_shard(tmp_path / "s.tar", [sample(0)])
    (file,) = shards.find([str(path)])
    usage = shutil.disk_usage(tmp_path)._replace(free=file.size_bytes - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    said = r"bytes do not fit into .* are free; set TMPDIR to a larger disk"
    with pytest.raises(StorageError, match=said) as full, shards.spool(file):
        pass
    assert "\n" not in str(full.value)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=file.size_bytes))
    with shards.spool(file) as shard:
        assert len(shard) == 1


def test_an_image_larger_than_any_photograph_is_rejected_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "MOST_BYTES", 100_000)
    data = shards.write([sample(0), {"__key__": "huge", "jpg": b"\0" * 100_001, "cls": b"1"}, sample(1)])
    reasons = [each.reason if isinstance(each, Rejected) else "" for each in read(data)]
    assert reasons == ["", "100,001 bytes as it would be unpacked: more than 100,000, or sparse", ""]


def test_a_sparse_member_that_would_unpack_to_a_terabyte_is_rejected(tmp_path: Path) -> None:
    with (tmp_path / "bomb.jpg").open("wb") as file:
        file.truncate(1 << 30)
    (tmp_path / "bomb.cls").write_bytes(b"1")
    command = ["tar", "--sparse", "--format=pax", "-cf", "s.tar", "bomb.jpg", "bomb.cls"]
    subprocess.run(command, cwd=tmp_path, check=True)
    data = (tmp_path / "s.tar").read_bytes()
    assert len(data) < 100_000
    (found,) = read(data)
    assert isinstance(found, Rejected)
    assert "sparse" in found.reason


def test_a_tar_of_more_members_than_memory_holds_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tars, "_MOST_MEMBERS", 10)
    assert len(read(shards.write([sample(index) for index in range(5)]))) == 5
    with pytest.raises(ShardError, match="test"):
        read(shards.write([sample(index) for index in range(6)]))


READING = """
import sys
from pipeline import shards, tars
from tests.scale import peak_mb
(file,) = shards.find([sys.argv[1]])
before = peak_mb()
with shards.spool(file) as shard:
    size = sum(len(each.image) for each in shard.samples(range(len(shard)), classes=10))
print(size, peak_mb() - before)
"""


def test_a_shard_is_read_in_a_quarter_of_the_memory_that_it_would_take(tmp_path: Path) -> None:
    count, each = 60, 10_000_000
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for index in range(count):
            for name, data in ((f"{index}.jpg", b"\xff" * each), (f"{index}.cls", b"1")):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    command = [sys.executable, "-c", READING, str(tmp_path / "s.tar")]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    size, grown_mb = done.stdout.split()
    assert int(size) == count * each
    assert float(grown_mb) < 150


def raw_header(name: str, kind: bytes = b"0", size: bytes = b"00000000000\0", *, extended: bytes = b"\0") -> bytes:
    """A header whose checksum is right, whatever else it says."""
    info = tarfile.TarInfo(name)
    info.type = kind
    block = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    block[124:136] = size
    block[482:483] = extended
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def pax(body: bytes) -> bytes:
    return raw_header("pax", b"x", b"%011o\0" % len(body)) + body + bytes(-len(body) % 512)


@pytest.mark.parametrize(
    "members",
    [
        raw_header("a", b"L", b"\x80" + (1 << 60).to_bytes(11, "big")),  # tarfile would ask for that much memory
        raw_header("a.jpg", size=b"\xff" * 10 + b"\xfe\x00"),  # CVE-2025-8194: round in a circle for ever
        pax(b"1" * 16_000) + raw_header("a.jpg"),  # CVE-2024-6232: a second for each such header
        pax(b"26 GNU.sparse.realsize=99\n") + raw_header("a.jpg"),  # would read what lies behind it
        raw_header("a.jpg", b"S", extended=b"\1") + b"x",  # goes on, where the file is at its end
        pax(b"9 a=bcde\n") * 500 + raw_header("a.jpg"),
    ],
    ids=["long name", "negative", "digits", "real size", "sparse", "chain"],
)
def test_a_hostile_header_is_an_error_of_the_shard(members: bytes, tmp_path: Path) -> None:
    for end in (bytes(1024), b""):
        with pytest.raises(ShardError, match="test"):
            read(members + end)
        (tmp_path / "spooled.tar").write_bytes(members + end)
        with (tmp_path / "spooled.tar").open("rb") as file, pytest.raises(ShardError, match="test"):
            shards.Shard(file, name="test")


@pytest.mark.parametrize("extension", ["__bad__", "__KEY__", "__url__", "__local_path__"])
def test_an_extension_that_webdataset_keeps_for_itself_loses_no_sample(extension: str) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in (("a.jpg", jpeg(0)), ("a.cls", b"1"), (f"a.{extension}", b"x")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    kept, passed_over = read(buffer.getvalue())
    assert isinstance(kept, Sample)
    assert isinstance(passed_over, Rejected)
    assert "keeps for itself" in passed_over.reason
