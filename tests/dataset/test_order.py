from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.dataset.order import Epoch, Kind, Reader

COUNTS = st.lists(st.integers(1, 7), min_size=1, max_size=6)
EPOCHS = st.builds(
    Epoch,
    st.lists(COUNTS.map(lambda counts: Kind(np.array(counts))), min_size=1, max_size=3),
    seed=st.integers(0, 3),
    number=st.integers(0, 3),
    shuffled=st.booleans(),
    pieces_at_once=st.integers(1, 5),
)


def read(epoch: Epoch, reader: Reader) -> list[tuple[int, int, int]]:
    """(kind, piece, image), in order."""
    windows = list(epoch.windows(reader))
    assert all(len(window) for window in windows)
    return [
        place
        for window in windows
        for place in zip(window.kinds.tolist(), window.pieces.tolist(), window.indices.tolist(), strict=True)
    ]


def readers(ranks: int, workers: int, *, padded: bool = False) -> list[Reader]:
    return [Reader(rank, ranks, worker, workers, padded=padded) for rank in range(ranks) for worker in range(workers)]


def everything(epoch: Epoch) -> list[tuple[int, int, int]]:
    return [
        (number, piece, index)
        for number, kind in enumerate(epoch.kinds)
        for piece, count in enumerate(kind.counts)
        for index in range(count)
    ]


@settings(deadline=None)
@given(EPOCHS, st.integers(1, 4), st.integers(1, 3))
def test_every_image_is_read_exactly_once_however_many_read(epoch: Epoch, ranks: int, workers: int) -> None:
    found = [place for reader in readers(ranks, workers) for place in read(epoch, reader)]
    assert sorted(found) == everything(epoch)


@settings(deadline=None)
@given(EPOCHS, st.integers(1, 4), st.integers(1, 3))
def test_padded_ranks_read_equally_many_and_every_image(epoch: Epoch, ranks: int, workers: int) -> None:
    total = len(everything(epoch))
    by_rank: dict[int, list[tuple[int, int, int]]] = {rank: [] for rank in range(ranks)}
    for reader in readers(ranks, workers, padded=True):
        mine = read(epoch, reader)
        assert epoch.count(reader) == len(mine)
        by_rank[reader.rank] += mine
    assert {len(found) for found in by_rank.values()} == {-(-total // ranks)}
    assert {place for found in by_rank.values() for place in found} == set(everything(epoch))


@settings(deadline=None)
@given(EPOCHS)
def test_the_same_again_and_another_epoch_in_another_order(epoch: Epoch) -> None:
    reader = Reader()
    assert read(epoch, reader) == read(epoch, reader)
    if not epoch.shuffled:
        assert read(epoch, reader) == everything(epoch)


def test_orders_differ_by_epoch_and_seed() -> None:
    kinds = [Kind(np.full(8, 16))]
    orders = [read(each, Reader()) for each in (Epoch(kinds), Epoch(kinds, number=1), Epoch(kinds, seed=1))]
    assert len({tuple(each) for each in orders}) == 3
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(orders[2])


def test_an_order_is_what_it_has_always_been() -> None:
    """A run that is resumed after an upgrade must go on where it was."""
    epoch = Epoch([Kind(np.array([3, 2])), Kind(np.array([2]))], seed=5, number=2, pieces_at_once=2)
    assert [place for reader in readers(2, 1) for place in read(epoch, reader)] == [
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
    epoch = Epoch([Kind(np.array(counts), weight)], seed=seed)
    found = Counter(read(epoch, Reader()))
    assert abs(sum(found.values()) - weight * sum(counts)) <= 1
    assert all(int(weight) <= found[place] <= int(weight) + 1 for place in everything(epoch))


def test_a_fraction_takes_other_images_every_epoch() -> None:
    kind = Kind(np.full(20, 5), 0.5)
    seen = Counter(place for number in range(40) for place in read(Epoch([kind], number=number), Reader()))
    assert len(seen) == 100
    assert max(seen.values()) < 36, "20 on average"


def test_of_a_small_share_each_image_has_its_turn() -> None:
    seen = sum(len(read(Epoch([Kind(np.full(4, 5), 0.02)], number=number), Reader())) for number in range(500))
    assert 150 < seen < 250, "200 on average, though an epoch has less than one"


def test_every_kind_is_spread_over_the_epoch() -> None:
    epoch = Epoch([Kind(np.full(40, 10)), Kind(np.full(10, 10))], pieces_at_once=5)
    for window in epoch.windows(Reader()):
        assert 5 <= (window.kinds == 1).sum() <= 15, "a fifth, give or take one of five pieces"


@pytest.mark.parametrize("workers", [1, 3])
def test_a_part_is_read_by_two_workers_at_most(workers: int) -> None:
    epoch = Epoch([Kind(np.full(30, 50))])
    asked = Counter(piece for reader in readers(2, workers) for piece in {piece for _, piece, _ in read(epoch, reader)})
    assert max(asked.values()) <= 2
    assert sum(asked.values()) <= 30 + 2 * workers - 1


def test_of_nothing_nothing_is_read() -> None:
    assert read(Epoch([Kind(np.array([4]), 0.0)]), Reader(1, 2)) == []
