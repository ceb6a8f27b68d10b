"""What a training run stores: accuracies, states, the card and TensorBoard's events."""

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import pytest
import torch
from tensorboardX.proto import event_pb2
from torch import Tensor, nn

from pipeline.dataset.batch import Batch
from pipeline.errors import IntegrityError
from pipeline.results.intervals import Rate
from pipeline.storage import Storage
from pipeline.training import card
from pipeline.training.accuracy import measure_originals, measure_transfer
from pipeline.training.records import TrainingRecords
from tests.samples import attack


class Threshold(nn.Module):
    """Predicts 0 where the first value is below a half, otherwise 1."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, images: Tensor) -> Tensor:
        first = (images[:, 0, 0, 0] - 0.5) * self.scale
        return torch.stack([-first, first], dim=1)


def test_accuracy_counts_correct_predictions() -> None:
    pixels = torch.zeros(4, 3, 2, 2, dtype=torch.uint8)
    pixels[:, 0, 0, 0] = torch.tensor([0, 120, 135, 255])
    batch: Batch = {"images": pixels, "labels": torch.tensor([0, 0, 1, 0]), "keys": list("abcd")}
    accuracy = measure_originals(Threshold(), [batch, batch], attack("i", epsilon=Fraction(16, 255)))
    assert (accuracy.clean, accuracy.white_box, accuracy.transfer) == (Rate(6, 8), Rate(2, 8), Rate(0, 0))
    assert measure_transfer(Threshold(), [batch]).transfer == Rate(3, 4)


def test_only_the_last_state_is_stored_and_a_damaged_one_is_refused(storage: Storage) -> None:
    records = TrainingRecords(storage, "my lesson", "r")
    assert records.load_state() is None
    for step in (1, 2):
        records.save_state({"step": step, "tensor": torch.full((3,), step)}, epoch=0, step=step)
    state = records.load_state()
    assert state is not None
    assert (state["step"], state["tensor"].tolist()) == (2, [2, 2, 2])
    (key,) = (stored.key for stored in storage.list(f"{records.folder}") if stored.key.endswith(".pt"))
    assert key.startswith("training/my-lesson/runs/r/state-0000-00000002-")
    storage.put(key, b"damaged")
    with pytest.raises(IntegrityError, match="damaged"):
        records.load_state()


def test_the_card_and_the_events_have_the_figures() -> None:
    def figures(epoch: int, loss: float | None, correct: int) -> dict[str, Any]:
        counts = {"clean": [9, 10], "transfer": [correct, 10], "white_box": [0, 0]}
        return {"epoch": epoch, "loss": loss, "learning_rate": 0.1, "held_out": {"vit": counts}}

    identity = {"model": {"model": "m", "digest": "d" * 64}, "attack": {"name": "i", "epsilon": "8/255"}}
    epochs = [figures(0, None, 1), figures(1, 0.5, 8)]
    text = card.render("name", identity, epochs, weights="somewhere", notices=["held_out vit: a notice"])
    assert "\n\n**held_out vit: a notice**\n\n| held out" in text
    assert "| vit | 10 | stored adversarial | 10.0% (1.8 … 40.4) | 80.0% (49.0 … 94.3) |" in text
    assert "| vit | 0 | white-box | – | – |" in text
    assert "| 1 | 0.500 | 90.0% | 80.0% |  |" in text
    events = dict(scalars(card.tensorboard_events(epochs)))
    assert events["accuracy/vit/transfer"] == pytest.approx(0.8)


def scalars(data: bytes) -> Iterator[tuple[str, float]]:
    """Tags and values in an event file: records of length, its checksum, the event, its checksum."""
    start = 0
    while start < len(data):
        size = int.from_bytes(data[start : start + 8], "little")
        event = event_pb2.Event.FromString(data[start + 12 : start + 12 + size])
        yield from ((value.tag, value.simple_value) for value in event.summary.value)
        start += 16 + size
