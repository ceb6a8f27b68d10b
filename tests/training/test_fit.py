"""Optimization in one process: reproducible steps, resumed states, attacked images, precision."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.data import codec
from pipeline.dataset.batch import Batch
from pipeline.models.load import load_model
from pipeline.models.spec import ModelSpec
from pipeline.storage import Storage
from pipeline.training import Schedule
from pipeline.training.fit import Trainer, learning_rate_factor
from pipeline.training.records import TrainingRecords
from tests.samples import CLASSES, SIDE, attack


def random_batch(count: int = 8, *, clean: int = 4) -> Batch:
    torch.manual_seed(1)
    return {
        "images": torch.randint(0, 256, (count, 3, SIDE, SIDE), dtype=torch.uint8),
        "labels": torch.arange(count) % CLASSES,
        "keys": [str(index) for index in range(count)],
        "adversarial": torch.arange(count) >= clean,
    }


def build_trainer(checkpoint: Path, **settings: Any) -> Trainer:
    network = load_model(ModelSpec("test_resnet", checkpoint=str(checkpoint), input_size=SIDE), classes=CLASSES)
    schedule = Schedule(**{"learning_rate": 1e-3, **settings})
    return Trainer(network.requires_grad_(True), schedule, attack("pgd"), steps=10, distributed=False)


def have_equal_weights(first: nn.Module, second: nn.Module) -> bool:
    first_state, second_state = first.state_dict(), second.state_dict()
    return all(torch.equal(first_state[name], second_state[name]) for name in first_state)


def test_the_learning_rate_rises_linearly_and_falls_as_half_a_cosine() -> None:
    factor = learning_rate_factor(110, 0.1)
    assert [factor(step) for step in (0, 4, 10)] == pytest.approx([1 / 11, 5 / 11, 1])
    assert factor(11) == 1
    assert factor(60) == pytest.approx(0.5 * (1 + math.cos(math.pi * 49 / 99)))
    assert factor(110) == pytest.approx(0)


def test_a_repeated_step_is_the_same(tiny_checkpoint: Path) -> None:
    settings = {"crafted": 0.5, "augment": "flip"}
    first, second, third = (build_trainer(tiny_checkpoint, **settings) for _ in range(3))
    losses = [trainer.step(random_batch(), seed=(0, 0, 0, 0)) for trainer in (first, second)]
    assert losses[0] == losses[1]
    assert have_equal_weights(first.network, second.network)
    third.step(random_batch(), seed=(0, 1, 0, 0))
    assert not have_equal_weights(first.network, third.network), "another epoch draws differently"


def test_a_resumed_trainer_continues_as_an_uninterrupted_one(tiny_checkpoint: Path, tmp_path: Path) -> None:
    whole, resumed = build_trainer(tiny_checkpoint), build_trainer(tiny_checkpoint)
    for step in range(3):
        whole.step(random_batch(), seed=(step,))
    records = TrainingRecords(Storage(str(tmp_path)), "name", "run")
    records.save_state(whole.state(), epoch=0, step=3)
    resumed.load(records.load_state() or {})
    for trainer in (whole, resumed):
        trainer.step(random_batch(), seed=(3,))
    assert have_equal_weights(whole.network, resumed.network)
    assert have_equal_weights(whole.averaged_network, resumed.averaged_network)
    assert whole.learning_rate == resumed.learning_rate


def test_training_lowers_the_loss_and_averages_the_weights(tiny_checkpoint: Path) -> None:
    trainer = build_trainer(tiny_checkpoint, ema=0.5)
    losses = [trainer.step(random_batch(), seed=(step,)) for step in range(10)]
    assert losses[-1] < losses[0]
    assert not have_equal_weights(trainer.network, trainer.averaged_network)
    without_average = build_trainer(tiny_checkpoint, ema=0.0)
    assert without_average.averaged_network is without_average.network


def test_only_clean_images_are_attacked_and_stay_within_the_budget(tiny_checkpoint: Path) -> None:
    trainer, batch = build_trainer(tiny_checkpoint, crafted=0.5), random_batch()
    before = codec.to_float(batch["images"])
    after = trainer._attack_some(before.clone(), batch["labels"], ~batch["adversarial"], batch["keys"])
    change = (after - before).abs().amax(dim=(1, 2, 3))
    assert (change[:2] > 0).all()
    assert (change[:2] <= 8 / 255 + 1e-6).all()
    assert (change[2:] == 0).all()


def test_bfloat16_keeps_weights_in_float32(tiny_checkpoint: Path) -> None:
    trainer = build_trainer(tiny_checkpoint, precision="bfloat16")
    assert math.isfinite(trainer.step(random_batch(), seed=(0,)))
    assert {parameter.dtype for parameter in trainer.network.parameters()} == {torch.float32}


def test_a_loss_that_is_not_finite_is_an_error(tiny_checkpoint: Path) -> None:
    trainer = build_trainer(tiny_checkpoint)
    with torch.no_grad():
        next(trainer.network.parameters()).fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="the loss is nan; lower learning_rate"):
        trainer.step(random_batch(), seed=(0,))
