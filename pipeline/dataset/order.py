"""In which order a training epoch reads the images of a store: a pure function of seed, epoch and who asks.

Pieces (the chosen images of one stored part) are put in a random order, each kind of piece spread evenly over the whole
epoch, and the images of each in a random order too. That sequence is cut into one stretch for each worker of each rank,
so that every image is somebody's, and no piece is read by more than two where there are more pieces than workers. A
worker goes through its stretch in windows of a few pieces, whose images it shuffles together.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Kind:
    """Pieces that are drawn alike.

    Attributes:
        counts: (pieces,) how many images each has.
        weight: How often each image comes in an epoch: 1 is once; of a fraction, another share of them every epoch.
    """

    counts: np.ndarray
    weight: float = 1.0


@dataclass(frozen=True)
class Reader:
    """Who reads: one worker of one rank.

    Attributes:
        rank: Which process of a distributed training run.
        ranks: How many there are.
        worker: Which worker of its data loader.
        workers: How many that has.
        padded: Every rank reads equally many, the last ones some images again from the beginning.
    """

    rank: int = 0
    ranks: int = 1
    worker: int = 0
    workers: int = 1
    padded: bool = False

    def stretches(self, total: int) -> list[tuple[int, int]]:
        """What this reader has of a sequence, as (start, stop); several where padding begins it again."""
        start, stop = self.rank * total // self.ranks, (self.rank + 1) * total // self.ranks
        if self.padded:
            each = -(-total // self.ranks)
            start, stop = self.rank * each, (self.rank + 1) * each
        count = stop - start
        start, stop = start + self.worker * count // self.workers, start + (self.worker + 1) * count // self.workers
        found = []
        while start < stop:
            end = min(stop, (start // total + 1) * total)
            found.append((start % total, start % total + end - start))
            start = end
        return found


@dataclass(frozen=True)
class Window:
    """Some images that are read at once and in this order.

    Attributes:
        kinds: (images,) which kind each is of.
        pieces: (images,) which of the kind's pieces.
        indices: (images,) which of the piece's images.
    """

    kinds: np.ndarray
    pieces: np.ndarray
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)


@dataclass(frozen=True)
class Epoch:
    """One pass over a store.

    Attributes:
        kinds: What is read.
        seed: Of every shuffle.
        number: Which epoch, from 0; each has an order of its own.
        shuffled: Else kinds, pieces and images come in the order in which they stand.
        pieces_at_once: How many pieces are shuffled together, and held in memory, encoded.
    """

    kinds: Sequence[Kind]
    seed: int = 0
    number: int = 0
    shuffled: bool = True
    pieces_at_once: int = 4

    def windows(self, reader: Reader) -> Iterator[Window]:
        """What a reader reads, in its order; every call gives the same."""
        entries = self._entries()
        ends = entries[:, 3].cumsum()
        for start, stop in reader.stretches(int(ends[-1]) if len(ends) else 0):
            first, last = np.searchsorted(ends, [start, stop - 1], side="right")
            for begin in range(first, last + 1, self.pieces_at_once):
                some = range(begin, min(begin + self.pieces_at_once, last + 1))
                yield self._window(entries, ends, some, start, stop)

    def count(self, reader: Reader) -> int:
        """How many images a reader reads."""
        return sum(stop - start for start, stop in reader.stretches(int(self._entries()[:, 3].sum())))

    def _entries(self) -> np.ndarray:
        """(entries, 4): kind, piece, which time the piece comes in this epoch, how many of its images then."""
        found, places = [np.empty((0, 4), np.int64)], [np.empty(0)]
        for number, kind in enumerate(self.kinds):
            order = self._shuffle(len(kind.counts), 0, number)
            whole, rest = divmod(kind.weight, 1)
            mine = []
            for time in range(int(whole) + bool(rest)):
                counts = kind.counts[order]
                if time == whole:  # so that over all pieces it comes to the share that was asked for
                    begin = np.random.SeedSequence([self.seed, self.number, 4, number]).generate_state(1)[0] / 2**32
                    counts = np.diff(np.floor(np.round(rest * counts.cumsum(), 6) + begin).astype(np.int64), prepend=0)
                mine.append(np.column_stack([np.full_like(order, number), order, np.full_like(order, time), counts]))
                order = order[self._shuffle(len(order), 1, number, time)]
            rows = np.concatenate([found[0], *mine])
            rows = rows[rows[:, 3] > 0]
            found.append(rows)
            # Evenly over the epoch, so that every window has something of every kind.
            places.append((np.arange(len(rows)) + 0.5) / len(rows) if self.shuffled else np.full(len(rows), number))
        return np.concatenate(found)[np.concatenate(places).argsort(kind="stable")]

    def _window(self, entries: np.ndarray, ends: np.ndarray, some: range, start: int, stop: int) -> Window:
        kinds, pieces, indices = [], [], []
        for entry in some:
            kind, piece, time, taken = entries[entry]
            whole = self._shuffle(int(self.kinds[kind].counts[piece]), 2, kind, piece, time)[:taken]
            begin = ends[entry] - taken
            mine = whole[max(start - begin, 0) : stop - begin]
            kinds.append(np.full(len(mine), kind))
            pieces.append(np.full(len(mine), piece))
            indices.append(mine)
        order = self._shuffle(sum(map(len, indices)), 3, some.start, start)
        return Window(*(np.concatenate(each)[order] for each in (kinds, pieces, indices)))

    def _shuffle(self, count: int, *which: int) -> np.ndarray:
        """(count,) a permutation that depends on seed, epoch and what it is for; the same with every NumPy."""
        if not self.shuffled:
            return np.arange(count)
        seeds = np.random.SeedSequence([self.seed, self.number, *map(int, which)])
        return np.random.PCG64(seeds).random_raw(count).argsort(kind="stable")
