from pathlib import Path

import pytest

from pipeline.data import pack
from pipeline.data.sample import Sample
from pipeline.errors import GnpError, RecipeError
from tests.data.reading import read
from tests.samples import jpeg


def image_folder(folder: Path) -> Path:
    for name in ("dog/b.jpg", "cat/a.b.jpg", "cat/c.PNG", "cat/notes.txt", "loose.jpg"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(1))
    return folder


def test_an_image_folder_is_packed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    names, left_out = pack.pack_folder(image_folder(tmp_path / "in"), str(out), name="pets", per_shard=2)
    assert names == ["pets-000000.tar", "pets-000001.tar"]
    assert [path.name for path in left_out] == ["loose.jpg", "notes.txt"]
    found = [each for name in names for each in read((out / name).read_bytes())]
    assert [(each.key, each.label) for each in found if isinstance(each, Sample)] == [
        ("cat_a_b", 0),
        ("cat_c", 0),
        ("dog_b", 1),
    ]
    assert (out / "classes.json").read_text().split() == ["{", '"cat":', "0,", '"dog":', "1", "}"]


def test_existing_shards_of_the_same_name_are_an_error(tmp_path: Path) -> None:
    image_folder(tmp_path / "in")
    pack.pack_folder(tmp_path / "in", str(tmp_path / "out"), name="pets", per_shard=1)
    with pytest.raises(RecipeError, match="exists already"):
        pack.pack_folder(tmp_path / "in", str(tmp_path / "out"), name="pets", per_shard=10)


def test_a_folder_with_labels_csv_is_packed(tmp_path: Path) -> None:
    for name in ("x.jpg", "y.jpg"):
        (tmp_path / name).write_bytes(jpeg(2))
    (tmp_path / "labels.csv").write_text("filename,label,extra\ny.jpg,7,\nx.jpg,3,\n")
    pack.pack_folder(tmp_path, str(tmp_path / "out"), name="images", per_shard=10)
    found = read((tmp_path / "out" / "images-000000.tar").read_bytes())
    assert [(each.key, each.label) for each in found if isinstance(each, Sample)] == [("y", 7), ("x", 3)]


def test_the_nips_2017_set_is_packed(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "0c7ac4a8c9dfa802.png").write_bytes(jpeg(2))
    table = "ImageId,URL,x1,TrueLabel,TargetClass\n0c7ac4a8c9dfa802,https://example.org/a,0,6,10\n"
    (tmp_path / "images.csv").write_text(table)
    pack.pack_folder(tmp_path, str(tmp_path / "out"), name="images", per_shard=10)
    (found,) = read((tmp_path / "out" / "images-000000.tar").read_bytes())
    assert isinstance(found, Sample)
    assert (found.key, found.label, found.target_class) == ("0c7ac4a8c9dfa802", 5, 9), "its tables count from 1"
    (tmp_path / "images.csv").write_text(table.replace(",6,", ",0,"))
    with pytest.raises(RecipeError, match="the label '-1' is no class index"):
        pack.pack_folder(tmp_path, str(tmp_path / "again"), name="images", per_shard=10)


def test_transferattacks_folder_is_packed_and_keys_are_its_file_names(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "ILSVRC2012_val_00000003.png").write_bytes(jpeg(2))
    (tmp_path / "labels.csv").write_text("filename,label\nILSVRC2012_val_00000003.png,7\n")
    pack.pack_folder(tmp_path, str(tmp_path / "out"), name="images", per_shard=10)
    (found,) = read((tmp_path / "out" / "images-000000.tar").read_bytes())
    assert isinstance(found, Sample)
    assert (found.key, found.label) == ("ILSVRC2012_val_00000003", 7)


def test_labels_csv_may_name_target_classes(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(jpeg(2))
    (tmp_path / "labels.csv").write_text("filename,label,targeted_label\nx.jpg,3,9\n")
    pack.pack_folder(tmp_path, str(tmp_path / "out"), name="images", per_shard=10)
    (found,) = read((tmp_path / "out" / "images-000000.tar").read_bytes())
    assert isinstance(found, Sample)
    assert (found.label, found.target_class) == (3, 9)


@pytest.mark.parametrize(
    ("csv", "message"),
    [
        ("name,class\nx.jpg,1\n", "expected the columns filename,label"),
        ("filename,label\nnone.jpg,1\n", r"line 2: no file 'none\.jpg'"),
        ("filename,label\n../secret.jpg,1\n", "no file"),
        ("filename,label\nx.jpg,cat\n", "'cat' is no class index"),
        ("filename,label,targeted_label\nx.jpg,1,-5\n", "the targeted label '-5' is no class index"),
        ("filename,label\nx.jpg," + "1" * 5000 + "\n", "is no class index"),
        ("filename,label\nx.jpg,é\n", "cannot be read as UTF-8"),
        ("filename,label\n", "no images"),
        ("label,filename\n1\n", "no file"),
    ],
)
def test_a_wrong_labels_csv_is_refused_with_its_line(tmp_path: Path, csv: str, message: str) -> None:
    (tmp_path / "secret.jpg").write_bytes(jpeg(0))
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "x.jpg").write_bytes(jpeg(0))
    (folder / "labels.csv").write_text(csv, encoding="latin-1")
    with pytest.raises(GnpError, match=message):
        pack.pack_folder(folder, str(tmp_path / "out"), name="images", per_shard=10)


def test_equal_keys_are_refused(tmp_path: Path) -> None:
    for name in ("c/a.b.jpg", "c/a_b.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(jpeg(0))
    with pytest.raises(RecipeError, match="both have the key"):
        pack.pack_folder(tmp_path, str(tmp_path / "out"), name="images", per_shard=10)
