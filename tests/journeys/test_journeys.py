"""Whole runs, from recipe to report, on real photographs and weights, in a folder and on a real S3 server."""

import functools
import io
import json
import os
import tarfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import duckdb
import numpy as np
import polars
import pyarrow.dataset
import pyarrow.fs
import pytest
import ray
import timm
import torch
import torchvision
import webdataset
from PIL import Image
from safetensors.torch import load_file

from infra import local_s3
from pipeline.analysis import drawing, picture, report, sample_view
from pipeline.ledger import Ledger
from pipeline.models.class_names import class_name
from pipeline.storage import Storage
from tests.journeys.journey import IMAGES, RECIPE, Journey, gnp

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def _shared_ray(ray_on_four_devices: None) -> Iterator[None]:
    """Every run here joins the Ray of the test process instead of starting one."""
    del ray_on_four_devices
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
        yield


@pytest.fixture(scope="module", params=["folder", pytest.param("s3", marks=pytest.mark.journey)])
def journey(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, demo_assets: Path, _shared_ray: None
) -> Journey:
    folder = tmp_path_factory.mktemp("journey")
    store = str(folder / "store")
    if request.param == "s3":
        request.getfixturevalue("s3")
        store = f"s3://demo/{uuid.uuid4().hex}"
    recipe = folder / "recipe.toml"
    recipe.write_text(RECIPE.format(assets=demo_assets))
    empty = Journey(recipe, store, "")
    done = empty.generate()
    assert done.returncode == 0, done.stderr
    return Journey(recipe, store, done.stdout)


def test_a_run_prints_progress_and_its_outcome(journey: Journey) -> None:
    assert "attacked 10/10 parts, scored 45/45 files" in journey.output
    assert "done: 2 items" in journey.output
    assert f"({2 * IMAGES} images attacked, 0 quarantined)" in journey.output


def test_a_second_run_does_nothing(journey: Journey) -> None:
    before = sorted(Storage(journey.store).list(), key=lambda item: item.key)
    done = journey.generate()
    assert done.returncode == 0
    assert "nothing to do" in done.stdout
    assert sorted(Storage(journey.store).list(), key=lambda item: item.key) == before


def test_the_report_has_every_rate_under_every_denominator(journey: Journey) -> None:
    summary = json.loads(gnp("report", journey.store, "--json").stdout)
    assert {(row["attack"], row["target"]) for row in summary["success"]} == {
        (attack, target) for attack in ("noise", "gnp+mi") for target in ("lite1", "lite2", "squeezenet")
    }
    for row in summary["success"]:
        rates = row["rates"]
        assert rates["all"]["n"] == IMAGES
        assert rates["joint"]["n"] <= rates["target"]["n"] <= IMAGES
        assert rates["target"]["interval"][0] <= rates["target"]["rate"] <= rates["target"]["interval"][1]
    shown = gnp("report", journey.store).stdout
    assert "gnp+mi, 8/255" in shown
    assert "squeezenet" in shown


def test_the_store_is_sound(journey: Journey) -> None:
    done = gnp("verify", journey.store)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (
        0,
        f"{5 + 10 + 15 + 30} objects re-read, {2 * IMAGES} adversarial images measured: all sound",
    )


def pil_resized(image: Image.Image, side: int, how: Image.Resampling) -> np.ndarray:
    """Resizes with PIL in float: (side, side, 3) in [0, 1]."""
    planes = [plane.convert("F").resize((side, side), how) for plane in image.split()]
    return np.stack([np.asarray(plane) for plane in planes], axis=-1) / 255


@functools.cache
def network(assets: Path, target: str) -> torch.nn.Module:
    model: torch.nn.Module = (
        torchvision.models.squeezenet1_1() if target == "squeezenet" else timm.create_model(f"tf_efficientnet_{target}")
    )
    model.load_state_dict(load_file(assets / "weights" / f"{target}.safetensors"))
    return model.eval()


def independent_probabilities(assets: Path, target: str, png: bytes) -> np.ndarray:
    """A target's probabilities, computed only with PIL, timm and torchvision."""
    image = Image.open(io.BytesIO(png)).convert("RGB")
    if target == "lite1":  # direct: 224 → 240, bicubic
        inputs = (pil_resized(image, 240, Image.Resampling.BICUBIC) - 0.5) / 0.5
    elif target == "lite2":  # crop: 224 → 256, centre 224, → 260, bicubic
        resized = pil_resized(image, 256, Image.Resampling.BICUBIC)[16:240, 16:240]
        planes = [Image.fromarray(resized[..., channel].astype(np.float32)) for channel in range(3)]
        again = [np.asarray(plane.resize((260, 260), Image.Resampling.BICUBIC)) for plane in planes]
        inputs = (np.stack(again, axis=-1) - 0.5) / 0.5
    else:  # 224 → 224: nothing to resize
        inputs = np.asarray(image).astype(np.float64) - [123.68, 116.779, 103.939]
    with torch.inference_mode():
        logits = network(assets, target)(torch.from_numpy(inputs).permute(2, 0, 1)[None].float())
    return np.asarray(logits.softmax(dim=1)[0])


def stored_pngs(journey: Journey, kind: str) -> Iterator[tuple[str, str, bytes]]:
    """Yields (address, key, png) of every committed image, read with tarfile."""
    storage = Storage(journey.store)
    for address in journey.listed(kind):
        data = storage.get(address.removeprefix(f"{storage.url}/"))
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            for member in tar:
                if member.name.endswith(".png"):
                    file = tar.extractfile(member)
                    assert file is not None
                    yield address, member.name.removesuffix(".png"), file.read()


def table(journey: Journey, kind: str) -> polars.DataFrame:
    """Every committed row of a kind, read by Polars from the addresses of `gnp ls`."""
    return polars.read_parquet(journey.listed(kind), storage_options=polars_options(journey))


def polars_options(journey: Journey) -> dict[str, str] | None:
    if not journey.store.startswith("s3://"):
        return None
    return {
        "aws_endpoint_url": os.environ["AWS_ENDPOINT_URL"],
        "aws_access_key_id": os.environ["AWS_ACCESS_KEY_ID"],
        "aws_secret_access_key": os.environ["AWS_SECRET_ACCESS_KEY"],
        "aws_region": os.environ["AWS_DEFAULT_REGION"],
        "aws_allow_http": "true",
    }


@pytest.mark.parametrize("kind", ["clean", "transfer"])
def test_stored_predictions_agree_with_an_independent_program(journey: Journey, demo_assets: Path, kind: str) -> None:
    rows = {
        (row["target"], row["attack_id"] if kind == "transfer" else "", row["key"]): row
        for row in table(journey, kind).iter_rows(named=True)
    }
    checked = 0
    for address, key, png in stored_pngs(journey, "original" if kind == "clean" else "adversarial"):
        attack = (
            "" if kind == "clean" else next(part for part in address.split("/") if part.startswith(("noise", "gnp")))
        )
        for target in ("lite1", "lite2", "squeezenet"):
            row = rows[target, attack, key]
            probabilities = independent_probabilities(demo_assets, target, png)
            assert row["label_probability"] == pytest.approx(probabilities[row["label"]], abs=1e-4)
            assert probabilities.max() - probabilities[row["prediction"]] < 1e-4, "argmax differs beyond a tie"
            checked += 1
    assert checked == 3 * IMAGES * (1 if kind == "clean" else 2)


def test_duckdb_and_polars_read_the_listed_objects_without_orphans(journey: Journey) -> None:
    plant_orphans(journey)
    frame = table(journey, "transfer")
    assert len(frame) == 2 * 3 * IMAGES
    fooled = polars.col("prediction") != polars.col("label")
    by_polars = frame.group_by("attack", "target").agg(fooled.sum().alias("fooled"), polars.len().alias("n"))
    with duckdb.connect() as connection:
        connection.register("results", scan(journey))
        by_duckdb = connection.execute(
            "select attack, target, count(*) filter (prediction <> label), count(*) from results group by all"
        ).fetchall()
    assert sorted(by_duckdb) == sorted(by_polars.rows())
    assert {n for *_, n in by_duckdb} == {IMAGES}
    summary = json.loads(gnp("report", journey.store, "--json").stdout)
    assert {(row["attack"], row["target"]): row["rates"]["all"]["count"] for row in summary["success"]} == {
        (attack, target): fooled for attack, target, fooled, _ in by_duckdb
    }


def scan(journey: Journey) -> pyarrow.dataset.Dataset:
    """The listed files as an Arrow dataset, which DuckDB can query, in a folder and on S3."""
    listed = journey.listed("transfer")
    if not journey.store.startswith("s3://"):
        return pyarrow.dataset.dataset(listed)
    filesystem = pyarrow.fs.S3FileSystem(
        endpoint_override=os.environ["AWS_ENDPOINT_URL"],
        access_key=os.environ["AWS_ACCESS_KEY_ID"],
        secret_key=os.environ["AWS_SECRET_ACCESS_KEY"],
        region=os.environ["AWS_DEFAULT_REGION"],
    )
    return pyarrow.dataset.dataset([address.removeprefix("s3://") for address in listed], filesystem=filesystem)


def test_plain_webdataset_reads_the_listed_shards_without_orphans(journey: Journey) -> None:
    plant_orphans(journey)
    listed = journey.listed("adversarial")
    if journey.store.startswith("s3://"):
        listed = [presigned(address) for address in listed]
    samples = list(webdataset.WebDataset(listed, shardshuffle=False).decode("pil"))
    assert len(samples) == 2 * IMAGES
    assert {sample["json"]["attack"]["name"] for sample in samples} == {"noise", "gnp+mi"}
    assert all(sample["png"].size == (224, 224) for sample in samples)
    assert all(sample["cls"] == sample["json"]["label"] for sample in samples)


def presigned(address: str) -> str:
    bucket, _, key = address.removeprefix("s3://").partition("/")
    parameters = {"Bucket": bucket, "Key": key}
    url = local_s3.client(dict(os.environ)).generate_presigned_url("get_object", Params=parameters)
    return f"pipe:curl -sf '{url}'"


def plant_orphans(journey: Journey) -> None:
    """Copies committed objects to names without a marker, like those of a writer that died."""
    storage = Storage(journey.store)
    for kind in ("adversarial", "transfer"):
        key = journey.listed(kind)[0].removeprefix(f"{storage.url}/")
        stem, _, extension = key.rpartition(".")
        storage.put(f"{stem[:-16]}{'0' * 16}.{extension}", storage.get(key))


def test_a_picture_names_the_classes(journey: Journey, tmp_path: Path) -> None:
    ledger = Ledger(Storage(journey.store))
    view = sample_view.best_sample(ledger, sample_view.strongest_attack(report.summarise(ledger)))
    figure = picture.draw(view, *sample_view.read_images(ledger, view), class_name=class_name)
    image = Image.open(io.BytesIO(drawing.png(figure)))
    assert image.format == "PNG"
    assert image.width > 900


def test_status_shows_that_all_is_done_and_by_which_run(journey: Journey) -> None:
    done = journey.gnp("status", journey.store)
    assert (done.returncode, done.stderr) == (0, "")
    first, second, *runs = done.stdout.splitlines()
    assert first.startswith("plan ")
    assert first.endswith(": complete")
    assert second == "  attacked 10/10 parts, scored 45/45 files"
    assert any(": done, last heartbeat " in run and f"{2 * IMAGES} images attacked" in run for run in runs)
    assert journey.gnp("status", journey.store, "--quarantined").stdout == ""


def test_verify_can_audit_a_share_of_the_parts(journey: Journey) -> None:
    for share, parts in (("1e-9", 1), ("0.5", None), ("1", 5)):
        done = journey.gnp("verify", journey.store, "--sample", share, "--seed", "1")
        assert done.returncode == 0
        line = done.stdout.splitlines()[-1]
        assert line.endswith("adversarial images measured: all sound")
        assert (" parts, " in line) == (parts != 5)
        if parts is not None:
            assert line.startswith(f"{parts * 12} objects re-read")
    for wrong in ("0", "1.5"):
        assert journey.gnp("verify", journey.store, "--sample", wrong).returncode == 2


def test_a_version_is_made_once_and_can_be_read_by_other_programs(journey: Journey) -> None:
    done, again = (journey.gnp("finalize", journey.store) for _ in range(2))
    assert (done.returncode, done.stderr) == (0, "")
    assert again.stdout == done.stdout
    where, _, line = done.stdout.strip().partition(": ")
    images, rows = 2 * IMAGES, 3 * IMAGES + 2 * 3 * IMAGES
    assert line == f"{images} adversarial images, {rows} rows, {5 + 10 + 15 + 30} objects"
    frame = polars.read_parquet(f"{where}/transfer/*.parquet", storage_options=polars_options(journey))
    assert frame.sort(frame.columns).equals(table(journey, "transfer").sort(frame.columns))
    storage = Storage(journey.store)
    assert json.loads(storage.get("latest.json"))["version"] == where.rpartition("/")[2]
    assert journey.gnp("verify", journey.store).returncode == 0


def test_only_garbage_is_listed_and_removed(journey: Journey) -> None:
    assert journey.gnp("gc", journey.store).stdout == "0 things, 0 bytes; --delete removes them\n"
    plant_orphans(journey)
    before = {item.key for item in Storage(journey.store).list()}
    listed = journey.gnp("gc", journey.store, "--older-than", "0")
    *lines, last = listed.stdout.splitlines()
    found = {line.partition(": ")[0] for line in lines}
    assert last.startswith(f"{len(lines)} things, ")
    assert found < before
    assert {key.split("/")[0] for key in found} == {"shards", "results", "runs", "claims"}
    assert sum(line.split(": ")[1].startswith("data without a marker") for line in lines) == 2
    assert {item.key for item in Storage(journey.store).list()} == before, "nothing is removed without --delete"
    removed = journey.gnp("gc", journey.store, "--older-than", "0", "--delete")
    assert removed.stdout.splitlines()[-1] == f"{len(lines)} of {len(lines)} removed"
    assert {item.key for item in Storage(journey.store).list()} == before - found
    assert journey.gnp("verify", journey.store).returncode == 0
    assert "nothing to do" in journey.generate().stdout


def test_an_incomplete_store_is_finalized_only_with_partial(journey: Journey) -> None:
    storage = Storage(journey.store)
    lost = max(item.key for item in storage.list("markers/transfer"))
    marker = storage.get(lost)
    storage.delete([lost])
    try:
        refused = journey.gnp("finalize", journey.store)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert "0 shards and 1 results that runs set out to make are missing" in refused.stderr
        partial = journey.gnp("finalize", journey.store, "--partial")
        assert (partial.returncode, partial.stdout.strip()[-11:]) == (0, ", 1 MISSING")
        assert ": incomplete" in journey.gnp("status", journey.store).stdout
        audited = journey.gnp("verify", journey.store, "--sample", "1e-9")
        assert (audited.returncode, "missing; run the same command again" in audited.stdout) == (1, True)
    finally:
        storage.put(lost, marker)
    assert journey.gnp("verify", journey.store, "--sample", "1e-9").returncode == 0
