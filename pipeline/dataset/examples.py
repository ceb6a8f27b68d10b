"""Adversarial images of a store as batches for training: PyTorch's `IterableDataset` over verified WebDataset shards.

examples = dataset.open("s3://bucket/prefix").examples(attacks=["gnp+mi"], batch_size=64, pairs=True)
for epoch in range(10):
    examples.set_epoch(epoch)
    for batch in examples.loader(workers=4):
        batch["images"], batch["clean"], batch["labels"]
"""

import io
import itertools
import multiprocessing
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing.context import BaseContext
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from pipeline.child_process import end_with_parent
from pipeline.data import codec
from pipeline.data.sample import Rejected, Sample
from pipeline.data.shards import Shard
from pipeline.dataset.order import Epoch, Kind, Reader, Window
from pipeline.dataset.snapshot import Piece, Snapshot, is_called
from pipeline.errors import IntegrityError, RecipeError, SampleError, ShardError
from pipeline.ledger import Marker
from pipeline.storage import Storage
from pipeline.storage.cache import Cache

# As `Examples` describes it.
Batch = dict[str, Any]


@dataclass(frozen=True)
class Mix:
    """What an epoch is made of, and in which order.

    Attributes:
        batch_size: Images of a batch; the last of a worker has fewer.
        pairs: Batches hold the clean image of each adversarial one too, as `clean`: for AdvProp and the like.
        clean: The share of clean images among adversarial ones, in [0, 1); those come in turn, or several times.
        weights: Attack (its name or identity) → how often each of its images comes in an epoch; by default once. Of a
            fraction, every epoch takes another share of them.
        seed: Of the order.
        shuffled: Else images come in the order in which the store has them.
        parts_at_once: So many parts are shuffled together. Held in memory, encoded, are those, as many that are read
            ahead, and for a moment as many that have been read; with pairs their originals too.
    """

    batch_size: int = 32
    pairs: bool = False
    clean: float = 0.0
    weights: Mapping[str, float] | None = None
    seed: int = 0
    shuffled: bool = True
    parts_at_once: int = 4

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.parts_at_once < 1:
            raise RecipeError(f"batch_size = {self.batch_size}, parts_at_once = {self.parts_at_once}: at least 1")
        if self.seed < 0:
            raise RecipeError(f"seed = {self.seed}: at least 0")
        if not 0 <= self.clean < 1:
            raise RecipeError(f"clean = {self.clean}: the share of clean images, at least 0 and less than 1")
        if self.clean and self.pairs:
            raise RecipeError("clean, pairs: every pair has its clean image; choose one of the two")
        for attack, weight in (self.weights or {}).items():
            if not 0 <= weight < 1000:
                raise RecipeError(
                    f"weights: {attack} = {weight}: how often each image comes, at least 0 and less than 1000"
                )


def forkserver() -> BaseContext:
    """How a data loader's workers are to be started: not forked from this process, and yet in no time.

    They are forked from a server that has imported what they need, and has asked no store for anything.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


@dataclass(frozen=True)
class _Group:
    """Parts of one source and attack, or originals; how often each of their images comes."""

    parts: tuple[Piece, ...]
    weight: float


@dataclass(frozen=True)
class _Row:
    """One image of an epoch: where it lies, and with pairs where its original does."""

    part: Piece
    index: int
    tar: Shard
    original: Shard | None


class Examples(IterableDataset[Batch]):
    """Batches of one pinned snapshot of a store; `Dataset.examples` makes one.

    Each batch is a dict: `images` (B, 3, H, W) uint8, channels last in memory, `labels` (B,) int64, `keys`, `datasets`,
    `sources` and `attacks` (identities, the last two empty of a clean image) lists of text, `adversarial` (B,) bool;
    with pairs `clean` (B, 3, H, W) uint8; where success was asked for `success` (B,) bool.

    Every chosen image is seen once an epoch by one worker of one rank, in an order that depends on seed, epoch and how
    many ranks and workers there are alone. Its state says how far a worker is, as torchdata's StatefulDataLoader wants
    it: another loader goes on from there with the same batches.

    Args:
        snapshot: What is read.
        mix: What an epoch is made of.
        rank: Which process of a distributed training run reads; by default as torch.distributed says.
        ranks: How many there are.
        padded: Each rank reads equally many images, the last ones some again.
        cache: Where objects are kept on this machine.
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
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if (rank is None) != (ranks is None):
            raise RecipeError("rank, ranks: say both, or neither")
        if rank is None or ranks is None:
            rank = torch.distributed.get_rank() if distributed else 0
            ranks = torch.distributed.get_world_size() if distributed else 1
        if not 0 <= rank < ranks:
            raise RecipeError(f"rank = {rank} of {ranks}: from 0 to {ranks - 1}")
        self.snapshot, self.mix = snapshot, mix
        self._reader, self._cache = Reader(rank, ranks, padded=padded), cache
        self._groups = _groups(snapshot, mix)
        # In shared memory, for workers that live on from epoch to epoch have copies of all else; -1 until one is set.
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
        self._epoch[0] = -1
        # What is being read, or was read last: its epoch, how many images of it have been given, and whether all.
        self._reading, self._position, self._ended = 0, 0, True
        self._resume: tuple[int, int] | None = None
        self._process = os.getpid()

    def set_epoch(self, epoch: int) -> None:
        """Which epoch the next pass is; each has an order of its own.

        Raises:
            RecipeError: It is negative.
        """
        if epoch < 0:
            raise RecipeError(f"epoch = {epoch}: epochs count from 0")
        self._epoch[0] = epoch

    def images_per_epoch(self) -> int:
        """How many images this rank reads in an epoch."""
        return self._order(self._next_epoch).count(self._reader)

    def batches_per_epoch(self, workers: int = 0) -> int:
        """How many batches this rank's workers make in an epoch."""
        order, size = self._order(self._next_epoch), self.mix.batch_size
        each = [replace(self._reader, worker=worker, workers=max(workers, 1)) for worker in range(max(workers, 1))]
        return sum(-(-order.count(reader) // size) for reader in each)

    def loader(self, *, workers: int = 0, **settings: Any) -> DataLoader[Batch]:
        """A data loader whose workers each read, verify and decode their own share.

        Args:
            workers: How many processes; 0 reads in this one.
            settings: What else `torch.utils.data.DataLoader` is to be told.
        """
        told: dict[str, Any] = {"multiprocessing_context": forkserver()} if workers else {}
        return DataLoader(self, batch_size=None, num_workers=workers, **{**told, **settings})

    def state_dict(self) -> dict[str, Any]:
        """How far this worker is."""
        begun = not self._ended or self._reading == self._next_epoch
        epoch, position = (self._reading, self._position) if begun else (self._next_epoch, 0)
        return {"epoch": epoch, "position": position, "order": self._identity()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where a worker of the same name was, unless another epoch has been set than it was in.

        Raises:
            RecipeError: The state is of another snapshot, mix, or number of ranks or workers.
        """
        if state["order"] != self._identity():
            raise RecipeError(
                f"state_dict: made with {state['order']}, this is {self._identity()}; resume with the same"
            )
        if int(self._epoch) < 0:
            self._epoch[0] = state["epoch"]
        self._reading, self._position, self._ended = state["epoch"], state["position"], False
        self._resume = state["epoch"], state["position"]

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
            end_with_parent()  # torch's own watch is of the server that has forked this worker, which waits for it
        resume, self._resume = self._resume, None
        epoch = self._next_epoch
        start = resume[1] if resume is not None and resume[0] == epoch else 0
        self._reading, self._position, self._ended = epoch, start, False
        return self._batches(epoch, start)

    def _batches(self, epoch: int, start: int) -> Iterator[Batch]:
        rows = self._rows(epoch, start)
        while some := list(itertools.islice(rows, self.mix.batch_size)):
            batch = self._batch(some)
            self._position += len(some)
            yield batch
        self._ended = True

    @property
    def _next_epoch(self) -> int:
        return max(int(self._epoch), 0)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_process"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _process=os.getpid())

    def _worker(self) -> Reader:
        info = get_worker_info()
        return self._reader if info is None else replace(self._reader, worker=info.id, workers=info.num_workers)

    def _identity(self) -> str:
        """What the order depends on, but for the epoch."""
        reader = self._worker()
        padded = ", padded" if reader.padded else ""
        return (
            f"snapshot {self.snapshot.id}, rank {reader.rank} of {reader.ranks}{padded}, worker {reader.worker} of "
            f"{reader.workers}, {self.mix}"
        )

    def _order(self, epoch: int) -> Epoch:
        mix = self.mix
        return Epoch(
            [Kind(np.array([len(part.chosen) for part in group.parts]), group.weight) for group in self._groups],
            mix.seed,
            epoch,
            shuffled=mix.shuffled,
            pieces_at_once=mix.parts_at_once,
        )

    def _rows(self, epoch: int, start: int) -> Iterator[_Row]:
        """This worker's images in order, from one on; the next window is fetched while this one is decoded."""
        stores = {url: Storage(url) for url in sorted({piece.url for piece in self.snapshot.pieces})}
        windows = list(self._order(epoch).windows(self._worker()))
        while windows and start >= len(windows[0]):
            start -= len(windows.pop(0))
        with ThreadPoolExecutor(1) as ahead:
            fetched = ahead.submit(self._fetch, stores, windows[0]) if windows else None
            for number, window in enumerate(windows):
                assert fetched is not None
                tars = fetched.result()
                if number + 1 < len(windows):
                    fetched = ahead.submit(self._fetch, stores, windows[number + 1])
                places = zip(window.kinds.tolist(), window.pieces.tolist(), window.indices.tolist(), strict=True)
                for kind, piece, index in itertools.islice(places, start if number == 0 else 0, None):
                    part = self._groups[kind].parts[piece]
                    yield _Row(part, int(part.chosen[index]), *tars[kind, piece])

    def _fetch(
        self, stores: Mapping[str, Storage], window: Window
    ) -> dict[tuple[int, int], tuple[Shard, Shard | None]]:
        """The tars of a window's parts, and with pairs those of their originals."""
        fetched = {}
        for kind, piece in dict.fromkeys(zip(window.kinds.tolist(), window.pieces.tolist(), strict=True)):
            part = self._groups[kind].parts[piece]
            storage = stores[part.url]
            clean = self._tar(storage, part.original) if self.mix.pairs and part.original else None
            fetched[kind, piece] = self._tar(storage, part.marker), clean
        return fetched

    def _tar(self, storage: Storage, marker: Marker) -> Shard:
        where = storage.at(marker.object)
        if self._cache is None:
            data = storage.get(marker.object, sha256_hex=marker.sha256)
        else:
            data = self._cache.read(storage, marker.object, marker.sha256)
        shard = Shard(io.BytesIO(data), name=where)
        if len(shard) != marker.facts["n"]:
            raise IntegrityError(f"{where}: holds {len(shard)} images, its marker says {marker.facts['n']}; run verify")
        return shard

    def _batch(self, rows: Sequence[_Row]) -> Batch:
        samples, images = zip(*(_sample(row.tar, row.index) for row in rows), strict=True)
        batch: Batch = {
            "images": _stacked(rows, images),
            "labels": torch.tensor([sample.label for sample in samples], dtype=torch.int64),
            "keys": [sample.key for sample in samples],
            "datasets": [row.part.marker.unit.dataset for row in rows],
            "sources": [row.part.marker.unit.source for row in rows],
            "attacks": [row.part.marker.unit.attack for row in rows],
            "adversarial": torch.tensor([bool(row.part.marker.unit.attack) for row in rows]),
        }
        if self.mix.pairs:
            originals, clean = zip(*(_sample(row.original, row.index) for row in rows if row.original), strict=True)
            if [each.key for each in originals] != batch["keys"]:
                raise IntegrityError(f"{rows[0].tar.name}: its images are not those of its originals; run verify")
            batch["clean"] = _stacked(rows, clean)
        if any(piece.success is not None for piece in self.snapshot.pieces):
            batch["success"] = torch.tensor(
                [row.part.success is not None and bool(row.part.success[row.index]) for row in rows]
            )
        return batch


def _groups(snapshot: Snapshot, mix: Mix) -> list[_Group]:
    """The snapshot's parts by source and attack, and where clean images are wanted those."""
    grouped: dict[tuple[str, str, str], list[Piece]] = defaultdict(list)
    for piece in snapshot.pieces:
        unit = piece.marker.unit
        grouped[unit.dataset, unit.source, unit.attack].append(piece)
    attacks = {attack for _, _, attack in grouped}
    for name in mix.weights or {}:
        if not any(is_called(attack, name) for attack in attacks):
            raise RecipeError(
                f"weights: {name!r} is none of the attacks that were chosen: {', '.join(sorted(attacks))}"
            )
    found = []
    for (_, _, attack), pieces in sorted(grouped.items()):
        weights = [weight for name, weight in (mix.weights or {}).items() if is_called(attack, name)]
        if len(weights) > 1:
            raise RecipeError(f"weights: {attack} is given {len(weights)}: {', '.join(map(str, weights))}; give it one")
        found.append(_Group(tuple(pieces), weights[0] if weights else 1.0))
    if mix.clean:
        clean = snapshot.originals
        adversarial = sum(group.weight * len(piece.chosen) for group in found for piece in group.parts)
        originals = sum(len(piece.chosen) for piece in clean)
        found.append(_Group(clean, mix.clean / (1 - mix.clean) * adversarial / originals))
    return found


def _sample(tar: Shard, index: int) -> tuple[Sample, np.ndarray]:
    """An image and its pixels, (H, W, 3) uint8."""
    (sample,) = tar.samples([index], classes=2**31)
    if isinstance(sample, Rejected):
        raise ShardError(f"{tar.name}: sample {sample.key}: {sample.reason}")
    try:
        return sample, codec.decode_rows(sample.image)
    except SampleError as error:
        raise ShardError(f"{tar.name}: sample {sample.key}: {error}") from error


def _stacked(rows: Sequence[_Row], images: Sequence[np.ndarray]) -> Tensor:
    """(B, 3, H, W) uint8, channels last in memory: what decoders give and convolutions like, without a copy more."""
    for row, image in zip(rows, images, strict=True):
        if image.shape != images[0].shape:
            raise RecipeError(
                f"{row.tar.name}: {image.shape[1]} x {image.shape[0]} pixels, {rows[0].tar.name}: "
                f"{images[0].shape[1]} x {images[0].shape[0]}; choose datasets of one size"
            )
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
