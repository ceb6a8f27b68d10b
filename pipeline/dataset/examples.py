"""Adversarial images of a store as batches for training: PyTorch's `IterableDataset` over verified WebDataset shards.

examples = dataset.open("s3://bucket/prefix").examples(attacks=["gnp+mi"], batch_size=64, pairs=True)
for epoch in range(10):
    examples.set_epoch(epoch)
    for batch in examples.loader(workers=4):
        batch["images"], batch["clean"], batch["labels"]
"""

import itertools
import multiprocessing
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from multiprocessing.context import BaseContext
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from pipeline.child_process import end_with_parent
from pipeline.dataset.batch import Batch, decode_batch
from pipeline.dataset.mix import Mix, weigh_parts
from pipeline.dataset.order import EpochOrder, PartGroup, Reader, batch_sizes
from pipeline.dataset.part_reader import PartReader
from pipeline.dataset.snapshot import Snapshot
from pipeline.errors import RecipeError
from pipeline.storage.cache import Cache


def forkserver_context() -> BaseContext:
    """The multiprocessing context for a data loader's workers: they start fast, and are not forked from this process.

    They are forked from a server that has imported this module and has not used a store, whose client hangs when
    forked.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


class Examples(IterableDataset[Batch]):
    """Batches of a snapshot; `Dataset.examples` makes one.

    Each batch is a dict: `images` (B, 3, H, W) uint8, channels last in memory; `labels` (B,) int64; `keys`, `datasets`,
    `sources` and `attacks`, lists of text (identities; source and attack of a clean image are empty); `adversarial`
    (B,) bool; with pairs `clean` (B, 3, H, W) uint8; if success was asked for `success` (B,) bool.

    Every selected image is read once per epoch by one worker of one rank. The order depends only on seed, epoch and
    numbers of ranks and workers. The state is that of torchdata's StatefulDataLoader: how far a worker is. Another
    loader resumes from it with the same batches.

    Args:
        snapshot: The images.
        mix: Composition and order of an epoch.
        rank: This process of a distributed training run; by default that of torch.distributed.
        ranks: Number of processes; by default that of torch.distributed.
        padded: Every rank reads the same number of images; the last ranks read some twice.
        cache: Local folder in which objects are kept.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        mix: Mix,
        *,
        rank: int | None = None,
        ranks: int | None = None,
        padded: bool = False,
        cache: Cache | None = None,
    ) -> None:
        rank, ranks = _rank_of_ranks(rank, ranks)
        self.snapshot = snapshot
        self.mix = mix
        self._reader = Reader(rank, ranks, padded=padded)
        self._cache = cache
        self._groups = weigh_parts(snapshot, mix)
        self._with_success = any(part.success is not None for part in snapshot.parts)
        # In shared memory, since workers that live for several epochs have copies of everything else; -1 if not set.
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
        self._epoch[0] = -1
        # The pass in progress, or the last one: its epoch, the number of images given so far, whether it has ended.
        self._current_epoch = 0
        self._position = 0
        self._ended = True
        self._resume_at: tuple[int, int] | None = None
        self._process = os.getpid()

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of the next pass; each has an order of its own.

        Raises:
            RecipeError: The epoch is negative, or no whole number.
        """
        if not hasattr(epoch, "__index__") or epoch < 0:
            raise RecipeError(f"epoch = {epoch!r}: epochs count from 0")
        self._epoch[0] = epoch

    def images_per_epoch(self) -> int:
        """Number of images that this rank reads in an epoch."""
        return self._order(self._next_epoch).count(self._reader)

    def batches_per_epoch(self, workers: int = 0) -> int:
        """Number of batches that this rank's workers make in an epoch."""
        order = self._order(self._next_epoch)
        workers = max(workers, 1)
        readers = [replace(self._reader, worker=worker, workers=workers) for worker in range(workers)]
        return sum(len(batch_sizes(order.count(reader), self.mix.batch_size)) for reader in readers)

    def loader(self, *, workers: int = 0, **settings: Any) -> DataLoader[Batch]:
        """A data loader whose workers read, verify and decode disjoint shares.

        Args:
            workers: Number of worker processes; 0 reads in this process.
            settings: Further arguments of `torch.utils.data.DataLoader`.
        """
        defaults: dict[str, Any] = {"multiprocessing_context": forkserver_context()} if workers else {}
        return DataLoader(self, batch_size=None, num_workers=workers, **{**defaults, **settings})

    def state_dict(self) -> dict[str, Any]:
        """The position of this worker, to resume from."""
        if not self._ended or self._current_epoch == self._next_epoch:
            epoch, position = self._current_epoch, self._position
        else:
            epoch, position = self._next_epoch, 0
        return {"epoch": epoch, "position": position, "order": self._order_identity()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resumes where a worker with the same number was, unless another epoch has been set.

        Raises:
            RecipeError: The state is of another snapshot, mix, rank, worker, or number of ranks or workers, or is none.
        """
        if not isinstance(state, Mapping) or not {"epoch", "position", "order"} <= state.keys():
            raise RecipeError("state_dict: not one of examples; pass what state_dict() returned")
        if state["order"] != self._order_identity():
            raise RecipeError(
                f"state_dict: made with {state['order']}, this is {self._order_identity()}; resume with the same"
            )
        if int(self._epoch) < 0:
            self._epoch[0] = state["epoch"]
        self._begin_pass(state["epoch"], state["position"])
        self._resume_at = state["epoch"], state["position"]

    def __iter__(self) -> Iterator[Batch]:
        """This worker's batches of the epoch.

        Raises:
            RecipeError: The worker was forked.
            IntegrityError: An object is damaged.
            StorageError: The store failed.
        """
        if os.getpid() != self._process:
            raise RecipeError(
                "loader: its workers were forked, in which the store's client hangs; pass "
                "multiprocessing_context='forkserver' (or 'spawn') to the DataLoader, or use Examples.loader"
            )
        if get_worker_info() is not None:
            end_with_parent()  # torch watches the worker's parent, which is the fork server and waits for the worker
        resume_at, self._resume_at = self._resume_at, None
        epoch = self._next_epoch
        start = resume_at[1] if resume_at is not None and resume_at[0] == epoch else 0
        self._begin_pass(epoch, start)
        return self._batches(epoch, start)

    def _begin_pass(self, epoch: int, position: int) -> None:
        self._current_epoch = epoch
        self._position = position
        self._ended = False

    def _batches(self, epoch: int, start: int) -> Iterator[Batch]:
        reader = PartReader(self._groups, with_originals=self.mix.pairs, cache=self._cache)
        windows = list(self._order(epoch).windows(self._worker_reader()))
        images = reader.images(windows, skip=start)
        for size in batch_sizes(sum(map(len, windows)) - start, self.mix.batch_size):
            stored = list(itertools.islice(images, size))
            batch = decode_batch(stored, pairs=self.mix.pairs, success=self._with_success)
            self._position += len(stored)
            yield batch
        self._ended = True

    @property
    def _next_epoch(self) -> int:
        return max(int(self._epoch), 0)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_process"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _process=os.getpid())

    def _worker_reader(self) -> Reader:
        info = get_worker_info()
        return self._reader if info is None else replace(self._reader, worker=info.id, workers=info.num_workers)

    def _order_identity(self) -> str:
        """All that the order depends on, except the epoch; states contain it, so the text is fixed."""
        reader = self._worker_reader()
        padded = ", padded" if reader.padded else ""
        return (
            f"snapshot {self.snapshot.id}, rank {reader.rank} of {reader.ranks}{padded}, worker {reader.worker} of "
            f"{reader.workers}, {self.mix}"
        )

    def _order(self, epoch: int) -> EpochOrder:
        mix = self.mix
        return EpochOrder(
            [PartGroup(np.array([len(part.indices) for part in group.parts]), group.weight) for group in self._groups],
            mix.seed,
            epoch,
            shuffled=mix.shuffled,
            parts_at_once=mix.parts_at_once,
        )


def _rank_of_ranks(rank: int | None, ranks: int | None) -> tuple[int, int]:
    """Rank and number of ranks; by default those of torch.distributed, or 0 of 1.

    Raises:
        RecipeError: Only one of the two is given, or the rank is out of range.
    """
    if (rank is None) != (ranks is None):
        raise RecipeError("rank, ranks: set both or neither")
    if rank is None or ranks is None:
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        rank = torch.distributed.get_rank() if distributed else 0
        ranks = torch.distributed.get_world_size() if distributed else 1
    if not 0 <= rank < ranks:
        raise RecipeError(f"rank = {rank} of {ranks}: from 0 to {ranks - 1}")
    return rank, ranks
