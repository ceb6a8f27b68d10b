"""One sample by its key, the table of results, and `gnp show`."""

import io
import json
from pathlib import Path

import numpy as np
import polars
import pytest
from PIL import Image

from pipeline import dataset
from pipeline.analysis import drawing, picture, report, sample_view
from pipeline.data.sample import Part
from pipeline.ledger import Ledger, Unit
from tests.analysis.conftest import ATTACKS, IMAGES, TARGETS
from tests.journeys.journey import gnp
from tests.samples import CLASSES


def test_a_sample_is_read_by_its_key(scored: Ledger) -> None:
    store = dataset.open(scored.storage.url)
    sample = store.sample("image00003")
    assert (sample.key, sample.shard, sample.label) == ("image00003", "s", 3)
    assert len(sample.adversarial) == len(sample.views) == len(ATTACKS) + 1
    for image in sample.adversarial.values():
        assert 0 < np.abs(image.astype(int) - sample.original).max() <= 16
    assert all(len(view.targets) == TARGETS for view in sample.views)
    png = sample._repr_png_()
    assert png is not None
    assert png.startswith(b"\x89PNG")
    (dataset_id,) = report.of(scored.storage.url).images
    for key in ("s/image00003", f"{dataset_id}/s/image00003"):
        assert store.sample(key).key == "image00003"


def test_results_are_one_table(scored: Ledger) -> None:
    store = dataset.open(scored.storage.url)
    assert store.results().num_rows == IMAGES * (len(ATTACKS) + 1) * TARGETS
    assert store.results("clean").num_rows == IMAGES * TARGETS
    frame = polars.DataFrame(polars.from_arrow(store.results()))
    rows_by_attack = frame.filter(polars.col("source") == "tiny").group_by("attack").len()
    assert sorted(rows_by_attack["len"]) == [IMAGES * TARGETS] * (len(ATTACKS) + 1)


def test_show_prints_a_row_per_attack_and_writes_a_picture(scored: Ledger, tmp_path: Path) -> None:
    done = gnp("show", scored.storage.url, "image00003", "--attack", "mi", "--out", str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert "tiny →" in done.stdout
    assert Path(done.stdout.splitlines()[-1]).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("key", "attack", "message"),
    [("nobody", "mi", "no original of that key"), ("image00003", "x", "mi from tiny")],
)
def test_show_refuses_unknown_samples_and_attacks(
    scored: Ledger, tmp_path: Path, key: str, attack: str, message: str
) -> None:
    refused = gnp("show", scored.storage.url, key, "--attack", attack, "--out", str(tmp_path))
    assert refused.returncode == 2
    assert message in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def test_classes_other_than_imagenets_are_named_by_index(scored: Ledger) -> None:
    (dataset_id,) = report.summarise(scored).images
    assert sample_view.class_names(scored, dataset_id)(3) == "3"
    assert json.loads(json.dumps(scored.read_plan(scored.plan_keys()[0])))["data"]["classes"] == CLASSES


def test_an_abstention_is_marked_and_never_correct() -> None:
    names = ["espresso, coffee", "loupe"]
    assert sample_view.Prediction(0, 0.9, True, False).text(names.__getitem__) == "✓ espresso"
    assert sample_view.Prediction(1, 0.1, False, False).text(names.__getitem__) == "✗ loupe"
    assert sample_view.Prediction(0, 0.4, False, True).text(names.__getitem__) == "✗ espresso (abstains)"


@pytest.mark.parametrize("targets", [1, 4, 12])
def test_no_prediction_is_cut_off_the_picture(targets: int) -> None:
    prediction = sample_view.Prediction(0, 0.9, True, False)
    predictions = tuple(
        sample_view.TargetPredictions(f"target-{number}", f"target-{number}-0", prediction, prediction, False)
        for number in range(targets)
    )
    unit = Unit("d", Part("s", 0, 1), "source", "attack")
    view = sample_view.SampleView(unit, "key", 0, "source", "mi", 8 / 255, "linf", None, predictions)
    pixels = np.full((224, 224, 3), 128, np.uint8)
    figure = picture.draw(view, pixels, pixels, class_name=lambda _: "espresso")
    drawn = np.asarray(Image.open(io.BytesIO(drawing.png(figure))).convert("L"))
    for border in (drawn[:2], drawn[-2:], drawn[:, :2], drawn[:, -2:]):
        assert border.min() == 255, "text reaches the edge"
