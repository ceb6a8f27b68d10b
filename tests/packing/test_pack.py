from pathlib import Path

import pytest

from pipeline.data.sample import Sample
from pipeline.errors import RecipeError
from pipeline.packing.pack import pack
from tests.data.reading import read
from tests.samples import jpeg


def write_images(folder: Path, *names: str) -> Path:
    for index, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(jpeg(index))
    return folder


def test_files_are_stored_unchanged_and_divided_into_shards(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "in", "cat/a.jpg", "cat/b.jpg", "dog/c.jpg")
    packed = pack(folder, str(tmp_path / "out"), name="pets", per_shard=2)
    assert packed.shards == ["pets-000000.tar", "pets-000001.tar"]
    found = [each for name in packed.shards for each in read((tmp_path / "out" / name).read_bytes())]
    assert found == [Sample("cat_a", jpeg(0), 0), Sample("cat_b", jpeg(1), 0), Sample("dog_c", jpeg(2), 1)]
    with pytest.raises(RecipeError, match="exists already"):
        pack(folder, str(tmp_path / "out"), name="pets", per_shard=10)


def test_a_table_may_name_target_classes(tmp_path: Path) -> None:
    write_images(tmp_path, "x.jpg")
    (tmp_path / "labels.csv").write_text("filename,label,targeted_label\nx.jpg,3,9\n")
    pack(tmp_path, str(tmp_path / "out"), name="images", per_shard=10)
    assert read((tmp_path / "out" / "images-000000.tar").read_bytes()) == [Sample("x", jpeg(0), 3, 9)]
