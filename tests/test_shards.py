import io
import tarfile
from pathlib import Path

import pytest
import webdataset

from pipeline import shards
from pipeline.errors import GnpError, MissingError, RecipeError, ShardError
from pipeline.sample import Rejected, Sample
from pipeline.storage import Storage
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


def image_folder(folder: Path) -> Path:
    for name in ("dog/b.jpg", "cat/a.b.jpg", "cat/c.PNG", "cat/notes.txt", "loose.jpg"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(1))
    return folder


def test_an_image_folder_becomes_shards(tmp_path: Path) -> None:
    out = tmp_path / "out"
    names, left_out = shards.from_folder(image_folder(tmp_path / "in"), str(out), name="pets", per_shard=2)
    assert names == ["pets-000000.tar", "pets-000001.tar"]
    assert [path.name for path in left_out] == ["loose.jpg", "notes.txt"]
    found = [each for name in names for each in read((out / name).read_bytes())]
    assert [(each.key, each.label) for each in found if isinstance(each, Sample)] == [
        ("cat_a_b", 0),
        ("cat_c", 0),
        ("dog_b", 1),
    ]
    assert (out / "classes.json").read_text().split() == ["{", '"cat":', "0,", '"dog":', "1", "}"]


def test_shards_are_not_written_among_others_of_their_name(tmp_path: Path) -> None:
    image_folder(tmp_path / "in")
    shards.from_folder(tmp_path / "in", str(tmp_path / "out"), name="pets", per_shard=1)
    with pytest.raises(RecipeError, match="exists already"):
        shards.from_folder(tmp_path / "in", str(tmp_path / "out"), name="pets", per_shard=10)


def test_links_into_a_cache_are_read_under_their_own_names(tmp_path: Path) -> None:
    write_shard(tmp_path / "blobs" / "3f2a", [sample(0)])
    (tmp_path / "snap").mkdir()
    (tmp_path / "snap" / "val-0000.tar").symlink_to("../blobs/3f2a")
    (shard,) = shards.find([f"{tmp_path}/snap/val-{{0000..0000}}.tar"])
    assert shard.name == "val-0000"
    with shards.spool(shard) as spooled:
        assert len(spooled) == 1


def test_a_folder_with_labels_becomes_shards(tmp_path: Path) -> None:
    for name in ("x.jpg", "y.jpg"):
        (tmp_path / name).write_bytes(jpeg(2))
    (tmp_path / "labels.csv").write_text("filename,label,extra\ny.jpg,7,\nx.jpg,3,\n")
    shards.from_folder(tmp_path, str(tmp_path / "out"), name="images", per_shard=10)
    found = read((tmp_path / "out" / "images-000000.tar").read_bytes())
    assert [(each.key, each.label) for each in found if isinstance(each, Sample)] == [("y", 7), ("x", 3)]


@pytest.mark.parametrize(
    ("csv", "message"),
    [
        ("name,class\nx.jpg,1\n", "expected the columns filename,label"),
        ("filename,label\nnone.jpg,1\n", r"line 2: no file 'none\.jpg'"),
        ("filename,label\n../secret.jpg,1\n", "no file"),
        ("filename,label\nx.jpg,cat\n", "'cat' is no class index"),
        ("filename,label\nx.jpg," + "1" * 5000 + "\n", "is no class index"),
        ("filename,label\nx.jpg,é\n", "cannot be read as UTF-8"),
        ("filename,label\n", "no images"),
        ("label,filename\n1\n", "no file"),
    ],
)
def test_a_wrong_labels_file_is_refused_by_line(tmp_path: Path, csv: str, message: str) -> None:
    (tmp_path / "secret.jpg").write_bytes(jpeg(0))
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "x.jpg").write_bytes(jpeg(0))
    (folder / "labels.csv").write_text(csv, encoding="latin-1")
    with pytest.raises(GnpError, match=message):
        shards.from_folder(folder, str(tmp_path / "out"), name="images", per_shard=10)


def test_coinciding_keys_are_refused(tmp_path: Path) -> None:
    for name in ("c/a.b.jpg", "c/a_b.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(jpeg(0))
    with pytest.raises(RecipeError, match="both have the key"):
        shards.from_folder(tmp_path, str(tmp_path / "out"), name="images", per_shard=10)
