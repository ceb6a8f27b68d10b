"""`gnp` with workers that can be told to break: a driver for faults that nobody outside a worker can inject.

    python -m tests.chaos.driver FOLDER generate RECIPE ...

FOLDER holds a file for each kind of fault, with how many are still to come: `fail-start` (a worker's constructor
raises), `sticky` (an item raises as a broken CUDA context does, and so does all that this process is given afterwards),
`memory` (the device holds two images at a time and no more), `poison` (a shard's name: whoever takes it dies). What was
injected is counted in `FOLDER/KIND.injected`.
"""

import fcntl
import os
import sys
from pathlib import Path
from typing import Any

import torch

from jobs import cli
from pipeline.engine import scheduler
from pipeline.engine.worker import Receipt, Worker
from pipeline.models.classifier import Classifier
from pipeline.plan.outline import Item


def take(folder: Path, kind: str) -> bool:
    """Whether a fault is to happen now; exactly as many are as the file says, whoever asks."""
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
    """A worker that breaks when it is told to.

    Attributes:
        folder: Who tells it; set on a subclass, which travels to the workers by value.
    """

    folder: Path

    def __init__(self, *arguments: Any) -> None:
        if take(self.folder, "fail-start"):
            raise RuntimeError("injected: no device for this worker")
        super().__init__(*arguments)
        self._broken = False
        if (self.folder / "memory").exists():
            self._shrink_memory()

    def run(self, item: Item, attempt: int, following: Item | None = None) -> Receipt:
        poison = self.folder / "poison"
        if poison.exists() and poison.read_text() == item.take.shard.name:
            with (self.folder / "poison.injected").open("a") as count:
                count.write("x")
            os._exit(139)
        self._broken = self._broken or take(self.folder, "sticky")
        if self._broken:
            self._stage.run = _illegal_access  # type: ignore[method-assign,assignment]
        return super().run(item, attempt, following)

    def _shrink_memory(self) -> None:
        whole = Classifier.forward

        folder = self.folder

        def forward(network: Classifier, images: torch.Tensor) -> torch.Tensor:
            if len(images) > 2:
                take(folder, "memory")
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB (injected)")
            return whole(network, images)

        setattr(Classifier, "forward", forward)  # noqa: B010  # a type checker rightly objects to it


def _illegal_access(*_: object, **__: object) -> None:
    raise RuntimeError("CUDA error: an illegal memory access was encountered (injected)")


if __name__ == "__main__":
    from tests.chaos import driver  # by its name, which workers can import

    told = type("ToldWorker", (driver.FaultyWorker,), {"folder": Path(sys.argv[1])})
    setattr(scheduler, "Worker", told)  # noqa: B010
    sys.argv = ["gnp", *sys.argv[2:]]
    cli.main()
