"""What a training run keeps in a store: its state from time to time, its figures, and the trained weights.

    training/NAME/current.json                which run of that name is the last, and which versions it reads
    training/NAME/runs/ID/state-….pt          the state to go on from
    training/NAME/runs/ID/state.json          which of those is the last, and its hash: written after it
    training/NAME/runs/ID/epochs.json         figures after each epoch
    training/NAME/runs/ID/events/…            TensorBoard's
    training/NAME/runs/ID/README.md           the card: written last
    training/NAME/weights.safetensors         of the last run that ended

Ray Train's own checkpoints go through an output stream, which publishes a cut-off file as if it were whole; here an
object is put at once, and then the small record that names it.
"""

import io
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.errors import IntegrityError, MissingError
from pipeline.ledger import slug
from pipeline.storage import Storage, sha256


@dataclass(frozen=True)
class Records:
    """Those of one run.

    Attributes:
        storage: The store.
        name: Of the lesson.
        run: The run's identity.
    """

    storage: Storage
    name: str
    run: str

    @property
    def folder(self) -> str:
        """The run's key."""
        return f"training/{slug(self.name)}/runs/{self.run}"

    @property
    def weights(self) -> str:
        """The key of the trained weights."""
        return f"training/{slug(self.name)}/weights.safetensors"

    def keep(self, state: dict[str, Any], *, epoch: int, step: int, steps: int = 0) -> None:
        """Keeps a state of `step` of the `steps` of an epoch, and lets the one before it go."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        data, before = buffer.getvalue(), self.last()
        key = f"{self.folder}/state-{epoch:04d}-{step:08d}-{sha256(data)[:16]}.pt"
        self.storage.put(key, data)
        said = {"key": key, "sha256": sha256(data), "epoch": epoch, "step": step, "steps": steps}
        self.storage.put_record(f"{self.folder}/state.json", said, once=False)
        if before and before["key"] != key:
            self.storage.delete([before["key"]])

    def kept(self) -> dict[str, Any] | None:
        """The last state that was kept; None before the first.

        Raises:
            IntegrityError: It is damaged.
        """
        last = self.last()
        if last is None:
            return None
        data = self.storage.get(last["key"], sha256_hex=last["sha256"])
        state: Any = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
        if not isinstance(state, dict):
            raise IntegrityError(f"{self.storage.at(last['key'])}: not a state of training")
        return state

    def last(self) -> dict[str, Any] | None:
        """What is said of the last state: its `epoch`, from 0, and of that the `step` of `steps`."""
        try:
            return self.storage.record(f"{self.folder}/state.json")
        except MissingError:
            return None

    def epochs(self) -> list[dict[str, Any]]:
        """Figures of the epochs that are over; first those before training."""
        try:
            return list(self.storage.record(f"{self.folder}/epochs.json")["epochs"])
        except MissingError:
            return []

    def note(self, epochs: list[dict[str, Any]]) -> None:
        """Records figures."""
        self.storage.put_record(f"{self.folder}/epochs.json", {"epochs": epochs}, once=False)

    @property
    def ended(self) -> bool:
        """Whether the run has come to its end."""
        try:
            self.storage.stat(f"{self.folder}/README.md")
        except MissingError:
            return False
        return True
