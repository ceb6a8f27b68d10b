import numpy as np
import pytest

from pipeline.results.intervals import PooledGain, PooledRate, Rate


@pytest.mark.parametrize(
    ("count", "n", "low", "high"),
    # Computed by hand from Wilson's formula with z = 1.959964.
    [(0, 10, 0.0, 0.27753), (5, 10, 0.23659, 0.76341), (18, 20, 0.69897, 0.97213), (20, 20, 0.83887, 1.0)],
)
def test_intervals_are_wilsons(count: int, n: int, low: float, high: float) -> None:
    found = Rate(count, n).interval
    assert found == pytest.approx((low, high), abs=1e-4)


def test_an_empty_denominator_has_no_rate() -> None:
    assert Rate(0, 0).rate is None
    assert Rate(0, 0).interval is None


@pytest.mark.parametrize(("images", "models", "alike"), [(20, 12, 0.8), (20, 3, 0.3), (200, 10, 0.9)])
def test_the_interval_of_a_gain_over_models_that_err_together_covers_as_often_as_it_says(
    images: int, models: int, alike: float
) -> None:
    random, chances, held = np.random.default_rng(0), [0.25, 0.1, 0.65], []
    for _ in range(800):
        shared = random.choice([1, -1, 0], p=chances, size=(images, 1))
        own = random.choice([1, -1, 0], p=chances, size=(images, models))
        counted = random.random((images, models)) < 0.8
        gained = np.where(random.random((images, models)) < alike, shared, own) * counted
        low, high = PooledGain.over(gained.sum(1), counted.sum(1)).interval or (0, 0)
        held.append(low <= 0.15 <= high)
    assert 0.93 < np.mean(held) <= 0.985


@pytest.mark.parametrize(("images", "models", "alike"), [(20, 12, 0.8), (20, 3, 0.3), (20, 3, 1), (100, 10, 0.9)])
@pytest.mark.parametrize("chance", [0.05, 0.4, 0.9])
def test_the_interval_of_models_that_err_together_covers_as_often_as_it_says(
    images: int, models: int, alike: float, chance: float
) -> None:
    random, held = np.random.default_rng(1), []
    for _ in range(400):
        shared, own = random.random((images, 1)) < chance, random.random((images, models)) < chance
        counted = random.random((images, models)) < 0.8
        wrong = np.where(random.random((images, models)) < alike, shared, own) & counted
        low, high = PooledRate.over(wrong.sum(1), counted.sum(1)).interval or (0, 0)
        held.append(low <= chance <= high)
    assert np.mean(held) > 0.94


def test_of_one_model_or_of_models_that_err_as_one_the_sample_is_the_images() -> None:
    wrong = np.arange(40) < 10
    one, three = (PooledRate.over(wrong * models, np.full(40, models)) for models in (1, 3))
    assert one.interval == pytest.approx(three.interval)
    # Agresti and Coull's, by hand, with Student's t of 43 for the normal's quantile.
    middle, reach = 12 / 44, 2.016692 * (12 / 44 * 32 / 44 / 44) ** 0.5
    assert one.interval == pytest.approx((middle - reach, middle + reach), abs=1e-6)


def test_models_that_err_apart_are_more_samples_than_images() -> None:
    apart = PooledRate.over(np.full(40, 1), np.full(40, 2))  # of each image's two models one errs
    alike = PooledRate.over(np.arange(40) % 2 * 2, np.full(40, 2))
    assert apart.rate == alike.rate
    assert np.diff(apart.interval or ()) < 0.5 * np.diff(alike.interval or ())


def test_sums_of_parts_are_the_sum_of_all() -> None:
    random = np.random.default_rng(2)
    wrong, counted = random.integers(0, 3, 30), random.integers(2, 5, 30)
    parts = PooledRate.over(wrong[:11], counted[:11]) + PooledRate.over(wrong[11:], counted[11:])
    assert parts == PooledRate.over(wrong, counted)
    nothing = PooledRate.over(np.zeros(0), np.zeros(0))
    assert (nothing.rate, nothing.interval) == (None, None)
    assert nothing + parts == parts
    assert PooledGain().interval is None
