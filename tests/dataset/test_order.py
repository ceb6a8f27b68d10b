from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.dataset.order import EpochOrder, PartGroup, Reader, batch_sizes

COUNTS = st.lists(st.integers(1, 7), min_size=1, max_size=6)
EPOCHS = st.builds(
    EpochOrder,
    st.lists(COUNTS.map(lambda counts: PartGroup(np.array(counts))), min_size=1, max_size=3),
    seed=st.integers(0, 3),
    number=st.integers(0, 3),
    shuffled=st.booleans(),
    parts_at_once=st.integers(1, 5),
)


def read(epoch: EpochOrder, reader: Reader) -> list[tuple[int, int, int]]:
    """(group, part, image), in order."""
    windows = list(epoch.windows(reader))
    assert all(len(window) for window in windows)
    return [
        position
        for window in windows
        for position in zip(window.groups.tolist(), window.parts.tolist(), window.indices.tolist(), strict=True)
    ]


def readers(ranks: int, workers: int, *, padded: bool = False) -> list[Reader]:
    return [Reader(rank, ranks, worker, workers, padded=padded) for rank in range(ranks) for worker in range(workers)]


def everything(epoch: EpochOrder) -> list[tuple[int, int, int]]:
    return [
        (number, part, index)
        for number, group in enumerate(epoch.groups)
        for part, count in enumerate(group.sizes)
        for index in range(count)
    ]


@settings(deadline=None)
@given(EPOCHS, st.integers(1, 4), st.integers(1, 3))
def test_every_image_is_read_exactly_once_by_any_number_of_readers(epoch: EpochOrder, ranks: int, workers: int) -> None:
    positions = [position for reader in readers(ranks, workers) for position in read(epoch, reader)]
    assert sorted(positions) == everything(epoch)


@settings(deadline=None)
@given(EPOCHS, st.integers(1, 4), st.integers(1, 3))
def test_padded_ranks_read_the_same_number_and_every_image(epoch: EpochOrder, ranks: int, workers: int) -> None:
    total = len(everything(epoch))
    by_rank: dict[int, list[tuple[int, int, int]]] = {rank: [] for rank in range(ranks)}
    for reader in readers(ranks, workers, padded=True):
        positions = read(epoch, reader)
        assert epoch.count(reader) == len(positions)
        by_rank[reader.rank] += positions
    assert {len(positions) for positions in by_rank.values()} == {-(-total // ranks)}
    assert {position for positions in by_rank.values() for position in positions} == set(everything(epoch))


@settings(deadline=None)
@given(EPOCHS)
def test_an_order_is_reproducible_and_as_stored_unless_shuffled(epoch: EpochOrder) -> None:
    reader = Reader()
    assert read(epoch, reader) == read(epoch, reader)
    if not epoch.shuffled:
        assert read(epoch, reader) == everything(epoch)


def test_orders_differ_by_epoch_and_seed() -> None:
    groups = [PartGroup(np.full(8, 16))]
    epochs = EpochOrder(groups), EpochOrder(groups, number=1), EpochOrder(groups, seed=1)
    orders = [read(epoch, Reader()) for epoch in epochs]
    assert len({tuple(order) for order in orders}) == 3
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(orders[2])


def test_an_order_never_changes() -> None:
    """A run that is resumed after an upgrade must continue where it stopped."""
    epoch = EpochOrder([PartGroup(np.array([3, 2])), PartGroup(np.array([2]))], seed=5, number=2, parts_at_once=2)
    assert [position for reader in readers(2, 1) for position in read(epoch, reader)] == [
        (0, 0, 1),
        (0, 0, 0),
        (0, 0, 2),
        (0, 1, 1),
        (1, 0, 0),
        (0, 1, 0),
        (1, 0, 1),
    ]


@settings(deadline=None)
@given(COUNTS, st.floats(0, 3), st.integers(0, 5))
def test_a_weight_is_how_often_each_image_comes(counts: list[int], weight: float, seed: int) -> None:
    epoch = EpochOrder([PartGroup(np.array(counts), weight)], seed=seed)
    counts_read = Counter(read(epoch, Reader()))
    assert abs(sum(counts_read.values()) - weight * sum(counts)) <= 1
    assert all(int(weight) <= counts_read[position] <= int(weight) + 1 for position in everything(epoch))


def test_a_fraction_takes_other_images_every_epoch() -> None:
    group = PartGroup(np.full(20, 5), 0.5)
    seen = Counter(position for number in range(40) for position in read(EpochOrder([group], number=number), Reader()))
    assert len(seen) == 100
    assert max(seen.values()) < 36, "20 on average"


def test_a_small_weight_is_met_on_average() -> None:
    group = PartGroup(np.full(4, 5), 0.02)
    images = sum(len(read(EpochOrder([group], number=number), Reader())) for number in range(500))
    assert 150 < images < 250, "200 on average, though an epoch has less than one"


def test_every_group_is_spread_over_the_epoch() -> None:
    epoch = EpochOrder([PartGroup(np.full(40, 10)), PartGroup(np.full(10, 10))], parts_at_once=5)
    for window in epoch.windows(Reader()):
        assert 5 <= (window.groups == 1).sum() <= 15, "a fifth, give or take one of five parts"


@pytest.mark.parametrize("workers", [1, 3])
def test_a_part_is_read_by_two_workers_at_most(workers: int) -> None:
    epoch = EpochOrder([PartGroup(np.full(30, 50))])
    readers_of = Counter(
        part for reader in readers(2, workers) for part in {part for _, part, _ in read(epoch, reader)}
    )
    assert max(readers_of.values()) <= 2
    assert sum(readers_of.values()) <= 30 + 2 * workers - 1


def test_a_weight_of_zero_reads_nothing() -> None:
    assert read(EpochOrder([PartGroup(np.array([4]), 0.0)]), Reader(1, 2)) == []


@given(st.integers(0, 60), st.integers(1, 9), st.integers(1, 4), st.integers(1, 5))
def test_no_batch_is_of_one_image_and_a_resumed_reader_makes_the_same(
    total: int, batch_size: int, ranks: int, workers: int
) -> None:
    for reader in readers(ranks, workers, padded=True):
        count = sum(stop - start for start, stop in reader.ranges(total))
        sizes = batch_sizes(count, batch_size)
        assert sum(sizes) == count
        assert batch_size == 1 or 1 not in sizes or -(-total // ranks) == 1
        assert set(sizes[:-1]) <= {batch_size}
        assert len(sizes) == 0 or sizes[-1] <= batch_size + 1
        for done in range(len(sizes)):
            assert batch_sizes(count - sum(sizes[:done]), batch_size) == sizes[done:]
