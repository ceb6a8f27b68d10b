"""Objects of a training run in a store: its last state, its figures and the trained weights.

    training/NAME/current.json                the last run of that name, and the versions that it reads
    training/NAME/runs/ID/state-….pt          the state to resume from
    training/NAME/runs/ID/state.json          key and hash of the last state: written after it
    training/NAME/runs/ID/epochs.json         figures after each epoch
    training/NAME/runs/ID/events/…            TensorBoard's events
    training/NAME/runs/ID/README.md           the card: written last
    training/NAME/weights.safetensors         weights of the last finished run

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
class TrainingRecords:
    """Reads and writes the objects of one training run.

    Attributes:
        storage: The store.
        name: Name of the training recipe.
        run: Identity of the run.
    """

    storage: Storage
    name: str
    run: str

    @property
    def folder(self) -> str:
        """Key prefix of the run."""
        return f"training/{slug(self.name)}/runs/{self.run}"

    @property
    def weights(self) -> str:
        """Key of the trained weights."""
        return f"training/{slug(self.name)}/weights.safetensors"

    def save_state(self, state: dict[str, Any], *, epoch: int, step: int, steps: int = 0) -> None:
        """Saves the state after `step` of the `steps` of an epoch, and deletes the state before it."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        data = buffer.getvalue()
        before = self.state_record()
        key = f"{self.folder}/state-{epoch:04d}-{step:08d}-{sha256(data)[:16]}.pt"
        self.storage.put(key, data)
        record = {"key": key, "sha256": sha256(data), "epoch": epoch, "step": step, "steps": steps}
        self.storage.put_record(f"{self.folder}/state.json", record, if_absent=False)
        if before and before["key"] != key:
            self.storage.delete([before["key"]])

    def load_state(self) -> dict[str, Any] | None:
        """The last saved state; None before the first.

        Raises:
            IntegrityError: It is damaged.
        """
        record = self.state_record()
        if record is None:
            return None
        data = self.storage.get(record["key"], sha256_hex=record["sha256"])
        state: Any = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
        if not isinstance(state, dict):
            raise IntegrityError(f"{self.storage.url_of(record['key'])}: not a training state")
        return state

    def state_record(self) -> dict[str, Any] | None:
        """Key and hash of the last saved state, its `epoch`, from 0, and the `step` of the epoch's `steps`."""
        try:
            return self.storage.get_record(f"{self.folder}/state.json")
        except MissingError:
            return None

    def read_figures(self) -> list[dict[str, Any]]:
        """Figures before training and after each finished epoch."""
        try:
            return list(self.storage.get_record(f"{self.folder}/epochs.json")["epochs"])
        except MissingError:
            return []

    def write_figures(self, epochs: list[dict[str, Any]]) -> None:
        """Replaces the figures."""
        self.storage.put_record(f"{self.folder}/epochs.json", {"epochs": epochs}, if_absent=False)

    @property
    def is_finished(self) -> bool:
        """Whether the run has finished."""
        try:
            self.storage.stat(f"{self.folder}/README.md")
        except MissingError:
            return False
        return True
