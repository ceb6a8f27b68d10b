"""What version 0.1 stored stays readable, and what it recorded stays what identities are made of.

`fixtures/store-0.1.tar.xz` is a whole store with its recipe, shards and checkpoint (made-up weights and images),
written by the code as it was before it was divided into packages, and `store-0.1.json` what that code read in it.
`identities.json` is what that code recorded for the two recipes beside it, but for the versions of attacks and of
random numbers, which are raised with every change of pixels.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import dataset
from pipeline.ledger import Ledger, make_id
from pipeline.models.defenses import describe_defenses
from pipeline.plan.recipe_reader import load_recipe
from pipeline.plan.resolve import attack_provenance
from pipeline.storage import Storage
from pipeline.training import job
from pipeline.training.recipe_reader import load_training_recipe
from tests.conftest import ROOT

FIXTURES = ROOT / "tests" / "fixtures"
BEFORE: dict[str, Any] = json.loads((FIXTURES / "store-0.1.json").read_text())
IDENTITIES: dict[str, Any] = json.loads((FIXTURES / "identities.json").read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("before")
    with tarfile.open(FIXTURES / "store-0.1.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


def gnp(folder: Path, *arguments: str) -> str:
    """What a command prints, with addresses as they are relative to the folder."""
    command = [sys.executable, "-c", "from jobs.cli import main; main()", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.replace(f"{folder}/", "")


def test_report_reads_the_same_rates(folder: Path) -> None:
    assert json.loads(gnp(folder, "report", "store", "--json")) == BEFORE["report"]


def test_ls_lists_the_same_objects(folder: Path) -> None:
    assert gnp(folder, "ls", "store").splitlines() == BEFORE["ls"]


def test_verify_finds_the_store_sound(folder: Path) -> None:
    assert gnp(folder, "verify", "store").strip() == BEFORE["verify"]


def test_generate_makes_only_what_newer_attacks_lack(folder: Path, tmp_path: Path) -> None:
    """Originals, and predictions on them, are those of the old store; its adversarial images stay beside the new."""
    copied = tmp_path / "copied"
    shutil.copytree(folder, copied)
    gnp(copied, "generate", "recipe.toml", "--store", "store")
    stores = [Ledger(Storage(f"{root}/store")) for root in (folder, copied)]
    for kind in ("original", "clean"):
        before, after = ({unit: ledger.read_marker(unit) for unit in ledger.list_units(kind)} for ledger in stores)
        assert before == after, kind
    made, all_made = (set(ledger.list_units("adversarial")) for ledger in stores)
    assert made < all_made
    assert len(all_made) == 2 * len(made)
    printed = gnp(copied, "generate", "recipe.toml", "--store", "store").strip()
    assert printed.splitlines()[-1] == BEFORE["nothing"]


def test_finalize_makes_the_same_version(folder: Path) -> None:
    assert gnp(folder, "finalize", "store").strip() == BEFORE["finalize"]


def test_training_reads_the_same_batches(folder: Path) -> None:
    examples = dataset.open(str(folder / "store")).examples(version="latest", pairs=True, batch_size=4, seed=3)
    assert [described_batch(batch) for batch in examples] == BEFORE["examples"]


def described_batch(batch: dict[str, Any]) -> dict[str, Any]:
    return {
        name: [list(value.shape), str(value.dtype), hashlib.sha256(value.numpy().tobytes()).hexdigest()]
        if isinstance(value, torch.Tensor)
        else [str(each) for each in value]
        for name, value in batch.items()
    }


def test_attacks_defenses_and_data_are_recorded_as_before() -> None:
    whole = load_recipe(FIXTURES / "identities.toml").job()
    records = {make_id(attack.name, attack_provenance(attack)): attack_provenance(attack) for attack in whole.attacks}
    assert records == IDENTITIES["attacks"]
    digests = {"/nrp.pth": "0" * 64, "/hgd.pth": "1" * 64}
    behind = {target.name: describe_defenses(target.defenses, digests) for target in whole.targets if target.defenses}
    assert behind == IDENTITIES["defenses"]
    assert make_id(whole.data.name, whole.data.image_settings) == IDENTITIES["data"]


def test_a_training_run_is_recorded_as_before() -> None:
    assert job._identity(load_training_recipe(FIXTURES / "identities-training.toml")) == IDENTITIES["training"]
