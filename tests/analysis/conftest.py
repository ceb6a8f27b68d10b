"""A scored store that several test modules read."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from pipeline.ledger import Ledger
from pipeline.storage import Storage
from tests.samples import CLASSES, attack, make_plan, sample, tiny_job, write_shard
from tests.stages.runs import run_stages

# Names that must be escaped in HTML, in LaTeX and in figures.
HTML_NAME = "<script>alert(1)</script> & $x$"
FORMULA_NAME = r"i $\frac$ <i>"
# `mi` at a second budget is one more.
ATTACKS = ("i", "mi", "gnp+mi")
TARGETS, IMAGES = 5, 14


@pytest.fixture(scope="package")
def scored(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Ledger:
    """A store with three attacks, one of them at two budgets, on five targets, one of which is the source."""
    folder = tmp_path_factory.mktemp("scored")
    undecodable = {**sample(IMAGES), "jpg": b"no image"}
    write_shard(folder / "in" / "s.tar", [*(sample(index) for index in range(IMAGES)), undecodable])
    attacks = [attack(name, name=FORMULA_NAME if name == "i" else name) for name in ATTACKS]
    attacks.append(attack("mi", name="mi[epsilon=16/255]", epsilon=Fraction(16, 255)))
    job = tiny_job(folder / "in", tiny_checkpoint, attacks=attacks)
    targets = [job.targets[0]]
    for seed in range(1, TARGETS):
        torch.manual_seed(seed)
        checkpoint = folder / f"{seed}.safetensors"
        save_file(timm.create_model("test_resnet", num_classes=CLASSES).state_dict(), checkpoint)
        name = HTML_NAME if seed == 1 else f"other{seed}"
        targets.append(replace(job.targets[0], name=name, checkpoint=str(checkpoint)))
    plan = make_plan(replace(job, targets=tuple(targets)))
    ledger = Ledger(Storage(str(folder / "store"), create=True))
    ledger.record_plan(plan.to_record())
    run_stages(plan, ledger)
    return ledger
