"""Helpers that run both stages without Ray."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.ledger import Ledger, Unit
from pipeline.models import registry
from pipeline.models.classifier import Classifier
from pipeline.plan.resolve import Plan
from pipeline.stages import Generator, Scorer
from pipeline.storage import Storage
from tests.samples import list_pending

CPU = torch.device("cpu")


def new_ledger(folder: Path) -> Ledger:
    return Ledger(Storage(str(folder), create=True))


def resolve_weights(plan: Plan, ledger: Ledger) -> None:
    """Puts the weights of a plan's models into a store."""
    for model in (*(member for source in plan.sources for member in source.members), *plan.targets):
        registry.resolve_model(model.spec, ledger.storage, classes=plan.job.data.classes)


def run_stages(plan: Plan, ledger: Ledger, workers: int = 1) -> tuple[int, int]:
    """Runs both stages; returns the number of adversarial parts and of result files that they committed."""
    resolve_weights(plan, ledger)
    generator, scorer = Generator(plan, ledger, CPU), Scorer(plan, ledger, CPU)
    items = list_pending(plan, ledger, workers=workers)
    return sum(generator.run(item).parts for item in items), sum(scorer.run(item).parts for item in items)


def change_logits(patch: pytest.MonkeyPatch, change: Callable[[Tensor, Tensor], Tensor]) -> None:
    """From now on, every model's logits (B, classes) are what a function makes of them and of its inputs."""
    real = Classifier.classify
    patch.setattr(Classifier, "classify", lambda self, inputs: change(real(self, inputs), inputs))


def digests(ledger: Ledger) -> dict[Unit, str]:
    """SHA-256 of every committed unit's data."""
    return {
        marker.unit: marker.sha256
        for kind in ("original", "adversarial", "clean", "transfer")
        for marker in ledger.read_markers(ledger.list_units(kind))
    }
