"""`gnp` with workers that fail on purpose: a driver for faults that can only be injected inside a worker.

    python -m tests.chaos.driver FOLDER generate RECIPE ...

FOLDER holds a file per kind of fault with the number that is left to inject: `fail-start` (a worker's constructor
raises), `sticky` (an item raises as with a broken CUDA context, and so does every later item of the process), `memory`
(the device holds no more than two images), `poison` (name of a shard whose worker dies). `FOLDER/KIND.injected` gets a
byte per injection.
"""

import fcntl
import os
import sys
from pathlib import Path
from typing import Any

import torch

from jobs import cli
from pipeline.engine import actors
from pipeline.engine.worker import ItemResult, Worker
from pipeline.models.classifier import Classifier
from pipeline.plan.outline import Item


def take_fault(folder: Path, kind: str) -> bool:
    """Takes one fault of a kind, if any is left, and counts it; safe among processes."""
    path = folder / kind
    if not path.exists():
        return False
    with path.open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        left = int(file.read() or 0)
        if left <= 0:
            return False
        file.seek(0)
        file.truncate()
        file.write(str(left - 1))
    with (folder / f"{kind}.injected").open("a") as count:
        count.write("x")
    return True


class FaultyWorker(Worker):
    """A worker that fails as FOLDER says.

    Attributes:
        folder: FOLDER; set on a subclass, which Ray pickles by value.
    """

    folder: Path

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._broken = False
        if (self.folder / "memory").exists():
            self._shrink_memory()

    def load(self) -> None:
        if take_fault(self.folder, "fail-start"):
            raise RuntimeError("injected: no device for this worker")
        super().load()

    def run(self, item: Item, attempt: int, following: Item | None = None) -> ItemResult:
        poison = self.folder / "poison"
        if poison.exists() and poison.read_text() == item.selection.shard.name:
            with (self.folder / "poison.injected").open("a") as count:
                count.write("x")
            os._exit(139)
        self._broken = self._broken or take_fault(self.folder, "sticky")
        if self._broken:
            self._stage.run = _illegal_access  # type: ignore[method-assign,assignment]
        return super().run(item, attempt, following)

    def _shrink_memory(self) -> None:
        forward_whole_batch = Classifier.forward
        folder = self.folder

        def forward(network: Classifier, images: torch.Tensor) -> torch.Tensor:
            if len(images) > 2:
                take_fault(folder, "memory")
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB (injected)")
            return forward_whole_batch(network, images)

        setattr(Classifier, "forward", forward)  # noqa: B010  # mypy refuses to assign a method


def _illegal_access(*_: object, **__: object) -> None:
    raise RuntimeError("CUDA error: an illegal memory access was encountered (injected)")


if __name__ == "__main__":
    from tests.chaos import driver  # by the name under which workers can import it

    worker = type("ConfiguredWorker", (driver.FaultyWorker,), {"folder": Path(sys.argv[1])})
    setattr(actors, "Worker", worker)  # noqa: B010
    sys.argv = ["gnp", *sys.argv[2:]]
    cli.main()
