"""Tables of labels and Parquet files that people pack with `gnp shards`."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.io

from tests.corpus.cases import Refusal, case
from tests.corpus.folders import JPEG, packed, write
from tests.samples import jpeg


@case("labels", "linked images", {"1": 4})
def _(folder: Path) -> object:
    write(folder / "in", "labels.csv", data=b"filename,label\n1.jpg,4\n")
    write(folder / "elsewhere", "1.jpg")
    (folder / "in" / "1.jpg").symlink_to(folder / "elsewhere" / "1.jpg")
    return packed(folder / "in", folder / "out")


VAL = "ILSVRC2012_val_00000002"
# Tables by file name, their text, and the labels of images 1.jpg and ILSVRC2012_val_00000002.JPEG.
TABLES: Mapping[str, tuple[str, str, object]] = {
    "labels.csv": ("labels.csv", f"filename,label\n1.jpg,3\n{VAL}.JPEG,7\n", {"1": 3, VAL: 7}),
    "labels.csv from a spreadsheet": ("labels.csv", "\ufefffilename,label,note\r\n1.jpg, 3 ,\r\n", {"1": 3}),
    "labels.csv without suffixes": ("labels.csv", "filename,label\n1,3\n", {"1": 3}),
    "labels.csv of synsets": ("labels.csv", "filename,label\n1.jpg,n01443537\n", {"1": 1}),
    "labels.csv of names": ("labels.csv", "filename,label\n1.jpg,cat\n", Refusal("'cat' is no class index; --classes")),
    "labels.csv with other columns": (
        "labels.csv",
        "name,class\n1.jpg,1\n",
        Refusal("expected the columns filename,label; found name,class"),
    ),
    "labels.csv of a missing image": ("labels.csv", "filename,label\n3.jpg,1\n", Refusal("line 2: no file '3.jpg'")),
    "labels.csv that leaves the folder": (
        "labels.csv",
        "filename,label\n../secret.jpg,1\n",
        Refusal("no file '../secret.jpg'"),
    ),
    "labels.csv with an absolute path": (
        "labels.csv",
        "filename,label\n/etc/passwd,1\n",
        Refusal("no file '/etc/passwd'"),
    ),
    "labels.csv with negative target": (
        "labels.csv",
        "filename,label,targeted_label\n1.jpg,1,-5\n",
        Refusal("targeted label '-5' is no class"),
    ),
    "labels.csv with a huge number": (
        "labels.csv",
        f"filename,label\n1.jpg,{'1' * 5000}\n",
        Refusal("is no class index"),
    ),
    "labels.csv with a fraction": ("labels.csv", "filename,label\n1.jpg,3.0\n", Refusal("'3.0' is no class index")),
    "labels.csv with a short row": ("labels.csv", "label,filename\n1\n", Refusal("no file ''")),
    "labels.csv with a listed text": ("labels.csv", "filename,label\n1.jpg,3\nlabels.csv,1\n", {"1": 3}),
    "labels.csv with semicolons": (
        "labels.csv",
        "filename;label\n1.jpg;3\n",
        Refusal("found filename;label; separate them by commas"),
    ),
    "labels.csv with two columns of labels": (
        "labels.csv",
        "filename,label,label\n1.jpg,3,4\n",
        Refusal("two columns are called 'label'"),
    ),
    "labels.csv with an image twice": (
        "labels.csv",
        "filename,label\n1.jpg,3\n1.jpg,4\n",
        Refusal("1.jpg: the table of labels names it twice"),
    ),
    "labels.csv with a name that two files have": (
        "labels.csv",
        "filename,label\n2,3\n",
        Refusal("line 2: '2' may be 2.jpg or 2.png; write the whole name"),
    ),
    "labels.csv from Windows paths": (
        "labels.csv",
        "filename,label\nimages\\1.jpg,3\n",
        Refusal(r"no file .*; names are relative to it, with /"),
    ),
    "labels.csv, empty": ("labels.csv", "", Refusal("expected the columns filename,label")),
    "labels.csv without rows": ("labels.csv", "filename,label\n", Refusal("no labelled images")),
    "labels.csv with a NUL": ("labels.csv", "filename,label\n1\0.jpg,3\n", Refusal("labels.csv")),
    "NIPS 2017's, which counts from 1": ("images.csv", "ImageId,TrueLabel,TargetClass\n1,6,10\n", {"1": 5}),
    "NIPS 2017's with a 0": ("images.csv", "ImageId,TrueLabel\n1,0\n", Refusal("label '-1' is no class index")),
    "Kaggle's ImageNet": (
        "LOC_val_solution.csv",
        f"ImageId,PredictionString\n{VAL},n01443537 1 2 3 4 n01440764 1 2 3 4 \n",
        {VAL: 1},
    ),
    "Caffe's ImageNet": ("val.txt", f"{VAL}.JPEG 65\n", {VAL: 65}),
    "Tiny ImageNet's": ("val_annotations.txt", "1.jpg\tn01443537\t0\t32\t44\t62\n", {"1": 1}),
    "TensorFlow's ImageNet": ("imagenet_2012_validation_synset_labels.txt", "n01440764\nn01443537\n", {VAL: 1}),
    "ImageNet's ground truth without its kit": (
        "ILSVRC2012_validation_ground_truth.txt",
        "490\n361\n",
        Refusal("another order than the class indices.*meta.mat"),
    ),
    "synsets for fewer images": (
        "imagenet_2012_validation_synset_labels.txt",
        "n01440764\n",
        Refusal("has 1 lines, and none for ILSVRC"),
    ),
    "a line without a label": ("val.txt", "1.jpg 3\n2.jpg\n", Refusal("line 2: expected a file name and a label")),
}
for name, (table, text, expected) in TABLES.items():

    @case("labels", name, expected)
    def _(folder: Path, table: str = table, text: str = text) -> object:
        write(folder, "secret.jpg")
        write(folder / "in", "1.jpg", "2.jpg", "2.png", f"{VAL}.JPEG")
        write(folder / "in", table, data=text.encode())
        return packed(folder / "in", folder / "out")


@case("labels", "ImageNet's ground truth with its kit", {VAL: 7})
def _(folder: Path) -> object:
    write(folder / "val", f"{VAL}.JPEG")
    write(folder / "kit", "ILSVRC2012_validation_ground_truth.txt", data=b"2\n3\n")
    rows = np.array(
        [(1, "n01440764"), (2, "n01443537"), (3, "n01514668")], dtype=[("ILSVRC2012_ID", "O"), ("WNID", "O")]
    )
    scipy.io.savemat(folder / "kit" / "meta.mat", {"synsets": rows})
    return packed(folder / "val", folder / "out", labels=folder / "kit" / "ILSVRC2012_validation_ground_truth.txt")


@case("labels", "a kit's meta.mat that is none", Refusal("meta.mat: not the development kit's"))
def _(folder: Path) -> object:
    write(folder / "in", f"{VAL}.JPEG")
    write(folder / "in", "ILSVRC2012_validation_ground_truth.txt", data=b"2\n3\n")
    return packed(write(folder / "in", "meta.mat", data=b"nothing"), folder / "out")


@case("labels", "names with --classes", {"1": 1})
def _(folder: Path) -> object:
    write(folder / "in", "1.jpg")
    write(folder / "in", "labels.csv", data=b"filename,label\n1.jpg,cat\n")
    write(folder, "names", data=b"dog\ncat\n")
    return packed(folder / "in", folder / "out", classes=folder / "names")


@case("labels", "two tables", Refusal("labels.csv and val.txt both hold labels; choose one with --labels"))
def _(folder: Path) -> object:
    write(folder / "in", "1.jpg")
    write(folder / "in", "labels.csv", data=b"filename,label\n1.jpg,3\n")
    return packed(write(folder / "in", "val.txt", data=b"1.jpg 4\n"), folder / "out")


@case("labels", "images in images/, as TransferAttack has them", {"1": 3})
def _(folder: Path) -> object:
    write(folder / "in", "images/1.png")
    write(folder / "in", "labels.csv", data=b"filename,label\n1.png,3\n")
    return packed(folder / "in", folder / "out")


@case("labels", "images and no labels", Refusal("no labelled images; expected one sub-folder per class, a labels.csv"))
def _(folder: Path) -> object:
    return packed(write(folder / "in", "1.jpg", "2.jpg"), folder / "out")


@case("labels", "a table that cannot be read as text", Refusal("cannot be read as UTF-8"))
def _(folder: Path) -> object:
    write(folder / "in", "1.jpg")
    return packed(
        write(folder / "in", "labels.csv", data="filename,label\n1.jpg,é\n".encode("latin-1")), folder / "out"
    )


IMAGES = [{"bytes": JPEG, "path": "n01443537_7.JPEG"}, {"bytes": jpeg(1), "path": "n01440764_5.JPEG"}]
NAMED = {b"huggingface": json.dumps({"info": {"features": {"label": {"names": ["tench", "goldfish"]}}}}).encode()}


def write_parquet(path: Path, columns: Mapping[str, object], metadata: Mapping[bytes, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(dict(columns)).replace_schema_metadata(dict(metadata)), path)
    return path


# Columns and metadata of a Parquet file, and its keys and labels.
PARQUET: Mapping[str, tuple[Mapping[str, object], Mapping[bytes, bytes], object]] = {
    "as on the Hub": ({"image": IMAGES, "label": [1, 0]}, NAMED, {"n01443537_7": 1, "n01440764_5": 0}),
    "without paths": (
        {"image": [{"bytes": JPEG, "path": None}] * 2, "label": [1, 0]},
        {},
        {"val-000000": 1, "val-000001": 0},
    ),
    "of plain bytes": ({"image": [JPEG, JPEG], "label": [1, 0]}, {}, {"val-000000": 1, "val-000001": 0}),
    "with names for labels": ({"image": [JPEG], "label": ["goldfish"]}, NAMED, {"val-000000": 1}),
    "with digits for names": (
        {"image": [JPEG], "label": [1]},
        {b"huggingface": json.dumps({"info": {"features": {"label": {"names": ["1", "0"]}}}}).encode()},
        {"val-000000": 1},
    ),
    "of a split without labels": (
        {"image": [JPEG], "label": [-1]},
        NAMED,
        Refusal("row 0: the label -1.*a split without labels"),
    ),
    "with labels that are fractions": (
        {"image": [JPEG], "label": [1.5]},
        {},
        Refusal("the label 1.5 is no class index"),
    ),
    "with other columns": (
        {"img": [JPEG], "fine": [1]},
        {},
        Refusal("expected the columns image and label; found img, fine"),
    ),
    "of one path twice": ({"image": [IMAGES[0]] * 2, "label": [1, 1]}, {}, {"val-000000": 1, "val-000001": 1}),
    "of decoded pixels": (
        {"image": [[1, 2]], "label": [1]},
        {},
        Refusal("type list<.*encoded images are wanted"),
    ),
    "with a missing image": ({"image": [None, IMAGES[1]], "label": [1, 0]}, {}, {"val-000001": 0}),
    "with an empty image": ({"image": [b"", JPEG], "label": [1, 0]}, {}, {"val-000001": 0}),
}
for name, (columns, metadata, expected) in PARQUET.items():

    @case("labels", f"Parquet {name}", expected)
    def _(folder: Path, columns: Mapping[str, object] = columns, metadata: Mapping[bytes, bytes] = metadata) -> object:
        return packed(write_parquet(folder / "in" / "val.parquet", columns, metadata).parent, folder / "out")


# The order of names in --classes, and the labels of goldfish and tench in a file that numbers them 1 and 0.
PARQUET_CLASSES: Mapping[str, tuple[bytes, object]] = {
    "in another order": (b"goldfish\ntench\n", {"val-000000": 0, "val-000001": 1}),
    "without one of the file's": (
        b"goldfish\n",
        Refusal("row 1: --classes names no class 'tench'"),
    ),
}
for name, (data, expected) in PARQUET_CLASSES.items():

    @case("labels", f"Parquet with --classes {name}", expected)
    def _(folder: Path, data: bytes = data) -> object:
        write(folder, "names", data=data)
        path = write_parquet(folder / "val.parquet", {"image": [JPEG, JPEG], "label": [1, 0]}, NAMED)
        return packed(path, folder / "out", classes=folder / "names")


@case("labels", "Parquet of several splits", Refusal("several splits .test, train.; pack each by itself"))
def _(folder: Path) -> object:
    for name in ("train-00000-of-00001", "test-00000-of-00001"):
        write_parquet(folder / "in" / f"{name}.parquet", {"image": [JPEG], "label": [1]}, {})
    return packed(folder / "in", folder / "out")


@case("labels", "Parquet one folder below", Refusal("one folder below; did you mean .*/data"))
def _(folder: Path) -> object:
    write_parquet(folder / "in" / "data" / "train.parquet", {"image": [JPEG], "label": [1]}, {})
    return packed(folder / "in", folder / "out")


@case("labels", "Parquet cut off", Refusal("not a readable Parquet file"))
def _(folder: Path) -> object:
    return packed(write(folder / "in", "val.parquet", data=b"PAR1" + b"x" * 99) / "val.parquet", folder / "out")
