"""The order in which a training epoch reads the images of a store: a pure function of seed, epoch and reader.

Parts are put in a random order in which every group of parts is spread evenly over the epoch, and the images of each
part in a random order too. That sequence is cut into one range per worker of each rank, so every image has exactly one
reader, and no part has more than two readers if there are more parts than workers. A worker goes through its range in
windows of a few parts, whose images it shuffles together.

No batch is of a single image, on which batch norm cannot be trained, unless batches of one are asked for or a rank has
one image in all: a last image joins the batch before it, and a rank of few images leaves workers without any.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class PartGroup:
    """Parts whose images are drawn with one weight.

    Attributes:
        sizes: (parts,) number of images of each part.
        weight: How often each image comes in an epoch; of a fraction, every epoch takes other images.
    """

    sizes: np.ndarray
    weight: float = 1.0


@dataclass(frozen=True)
class Reader:
    """One worker of one rank.

    Attributes:
        rank: The process of a distributed training run.
        ranks: Number of processes.
        worker: The worker of its data loader.
        workers: Number of workers of each data loader.
        padded: Every rank reads the same number of images; the last ranks read some from the beginning again.
    """

    rank: int = 0
    ranks: int = 1
    worker: int = 0
    workers: int = 1
    padded: bool = False

    def ranges(self, total: int) -> list[tuple[int, int]]:
        """This reader's share of a sequence, as (start, stop); several ranges where padding starts over."""
        start = self.rank * total // self.ranks
        stop = (self.rank + 1) * total // self.ranks
        if self.padded:
            per_rank = -(-total // self.ranks)
            start = self.rank * per_rank
            stop = (self.rank + 1) * per_rank
        count = stop - start
        workers = min(self.workers, max(1, count // 2))  # each gets two images or more
        if self.worker >= workers:
            return []
        start, stop = start + self.worker * count // workers, start + (self.worker + 1) * count // workers
        ranges = []
        while start < stop:
            end = min(stop, (start // total + 1) * total)
            ranges.append((start % total, start % total + end - start))
            start = end
        return ranges


def batch_sizes(images: int, batch_size: int) -> list[int]:
    """Sizes of a reader's batches, in order: a last image by itself joins the batch before it."""
    whole, rest = divmod(max(images, 0), batch_size)
    sizes = [batch_size] * whole + [rest] * (rest > 0)
    if rest == 1 and whole:
        sizes[-2:] = [batch_size + 1]
    return sizes


@dataclass(frozen=True)
class Window:
    """Images that are fetched together and read in this order.

    Attributes:
        groups: (images,) index of each image's group.
        parts: (images,) index of each image's part in its group.
        indices: (images,) index of each image in its part.
    """

    groups: np.ndarray
    parts: np.ndarray
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)


@dataclass(frozen=True)
class EpochOrder:
    """The order of one pass over a store.

    Attributes:
        groups: The parts.
        seed: Seed of every shuffle.
        number: The epoch, from 0; each has another order.
        shuffled: If false, groups, parts and images come in the order given.
        parts_at_once: Number of parts in a window.
    """

    groups: Sequence[PartGroup]
    seed: int = 0
    number: int = 0
    shuffled: bool = True
    parts_at_once: int = 4

    def windows(self, reader: Reader) -> Iterator[Window]:
        """The windows of a reader, in order; every call gives the same."""
        entries = self._entries()
        ends = entries[:, 3].cumsum()
        for start, stop in reader.ranges(int(ends[-1]) if len(ends) else 0):
            first, last = np.searchsorted(ends, [start, stop - 1], side="right")
            for begin in range(first, last + 1, self.parts_at_once):
                window = range(begin, min(begin + self.parts_at_once, last + 1))
                yield self._window(entries, ends, window, start, stop)

    def count(self, reader: Reader) -> int:
        """Number of images that a reader reads."""
        return sum(stop - start for start, stop in reader.ranges(int(self._entries()[:, 3].sum())))

    def _entries(self) -> np.ndarray:
        """(entries, 4): group, part, repetition of the part in this epoch, number of its images in that repetition."""
        entries = [np.empty((0, 4), np.int64)]
        positions = [np.empty(0)]
        for number in range(len(self.groups)):
            rows = self._group_entries(number)
            entries.append(rows)
            # Spread evenly over the epoch, so that every window has images of every group.
            spread = (np.arange(len(rows)) + 0.5) / len(rows) if self.shuffled else np.full(len(rows), number)
            positions.append(spread)
        return np.concatenate(entries)[np.concatenate(positions).argsort(kind="stable")]

    def _group_entries(self, number: int) -> np.ndarray:
        """The entries of one group, in random order: whole repetitions first, then the fraction of its weight."""
        group = self.groups[number]
        order = self._shuffle(len(group.sizes), 0, number)
        whole, fraction = divmod(group.weight, 1)
        entries = [np.empty((0, 4), np.int64)]
        for repetition in range(int(whole) + bool(fraction)):
            counts = group.sizes[order]
            if repetition == whole:  # rounded so that the counts of all parts add up to the fraction
                begin = np.random.SeedSequence([self.seed, self.number, 4, number]).generate_state(1)[0] / 2**32
                counts = np.diff(np.floor(np.round(fraction * counts.cumsum(), 6) + begin).astype(np.int64), prepend=0)
            columns = [np.full_like(order, number), order, np.full_like(order, repetition), counts]
            entries.append(np.column_stack(columns))
            order = order[self._shuffle(len(order), 1, number, repetition)]
        rows = np.concatenate(entries)
        return rows[rows[:, 3] > 0]

    def _window(self, entries: np.ndarray, ends: np.ndarray, window: range, start: int, stop: int) -> Window:
        groups, parts, indices = [], [], []
        for entry in window:
            group, part, repetition, count = entries[entry]
            images = self._shuffle(int(self.groups[group].sizes[part]), 2, group, part, repetition)[:count]
            begin = ends[entry] - count
            images = images[max(start - begin, 0) : stop - begin]
            groups.append(np.full(len(images), group))
            parts.append(np.full(len(images), part))
            indices.append(images)
        order = self._shuffle(sum(map(len, indices)), 3, window.start, start)
        return Window(*(np.concatenate(arrays)[order] for arrays in (groups, parts, indices)))

    def _shuffle(self, count: int, *purpose: int) -> np.ndarray:
        """(count,) a permutation that depends on seed, epoch and purpose; the same with every version of NumPy."""
        if not self.shuffled:
            return np.arange(count)
        seeds = np.random.SeedSequence([self.seed, self.number, *map(int, purpose)])
        return np.random.PCG64(seeds).random_raw(count).argsort(kind="stable")
