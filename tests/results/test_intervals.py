import numpy as np
import pytest

from pipeline.results.intervals import PooledGain, PooledRate, Rate


@pytest.mark.parametrize(
    ("count", "n", "low", "high"),
    # Computed by hand from Wilson's formula with z = 1.959964.
    [(0, 10, 0.0, 0.27753), (5, 10, 0.23659, 0.76341), (18, 20, 0.69897, 0.97213), (20, 20, 0.83887, 1.0)],
)
def test_the_interval_of_a_rate_is_wilsons(count: int, n: int, low: float, high: float) -> None:
    assert Rate(count, n).interval == pytest.approx((low, high), abs=1e-4)


def test_an_empty_denominator_has_no_rate() -> None:
    assert Rate(0, 0).rate is None
    assert Rate(0, 0).interval is None


@pytest.mark.parametrize(("images", "models", "correlation"), [(20, 12, 0.8), (20, 3, 0.3), (200, 10, 0.9)])
def test_the_interval_of_a_gain_has_its_coverage_over_correlated_models(
    images: int, models: int, correlation: float
) -> None:
    random, chances, covered = np.random.default_rng(0), [0.25, 0.1, 0.65], []
    for _ in range(800):
        shared = random.choice([1, -1, 0], p=chances, size=(images, 1))
        own = random.choice([1, -1, 0], p=chances, size=(images, models))
        counted = random.random((images, models)) < 0.8
        gained = np.where(random.random((images, models)) < correlation, shared, own) * counted
        low, high = PooledGain.over(gained.sum(1), counted.sum(1)).interval or (0, 0)
        covered.append(low <= 0.15 <= high)
    assert 0.93 < np.mean(covered) <= 0.985


@pytest.mark.parametrize(("images", "models", "correlation"), [(20, 12, 0.8), (20, 3, 0.3), (20, 3, 1), (100, 10, 0.9)])
@pytest.mark.parametrize("chance", [0.05, 0.4, 0.9])
def test_the_interval_of_a_rate_has_its_coverage_over_correlated_models(
    images: int, models: int, correlation: float, chance: float
) -> None:
    random, covered = np.random.default_rng(1), []
    for _ in range(400):
        shared, own = random.random((images, 1)) < chance, random.random((images, models)) < chance
        counted = random.random((images, models)) < 0.8
        wrong = np.where(random.random((images, models)) < correlation, shared, own) & counted
        low, high = PooledRate.over(wrong.sum(1), counted.sum(1)).interval or (0, 0)
        covered.append(low <= chance <= high)
    assert np.mean(covered) > 0.94


def test_models_that_err_on_the_same_images_count_as_one() -> None:
    wrong = np.arange(40) < 10
    one, three = (PooledRate.over(wrong * models, np.full(40, models)) for models in (1, 3))
    assert one.interval == pytest.approx(three.interval)
    # Agresti and Coull's, by hand, with Student's t of 43 for the normal's quantile.
    middle, reach = 12 / 44, 2.016692 * (12 / 44 * 32 / 44 / 44) ** 0.5
    assert one.interval == pytest.approx((middle - reach, middle + reach), abs=1e-6)


def test_models_that_err_on_different_images_narrow_the_interval() -> None:
    different = PooledRate.over(np.full(40, 1), np.full(40, 2))  # of each image's two models one errs
    same = PooledRate.over(np.arange(40) % 2 * 2, np.full(40, 2))
    assert different.rate == same.rate
    assert np.diff(different.interval or ()) < 0.5 * np.diff(same.interval or ())


def test_sums_over_parts_equal_the_sum_over_all_images() -> None:
    random = np.random.default_rng(2)
    wrong, counted = random.integers(0, 3, 30), random.integers(2, 5, 30)
    parts = PooledRate.over(wrong[:11], counted[:11]) + PooledRate.over(wrong[11:], counted[11:])
    assert parts == PooledRate.over(wrong, counted)
    nothing = PooledRate.over(np.zeros(0), np.zeros(0))
    assert (nothing.rate, nothing.interval) == (None, None)
    assert nothing + parts == parts
    assert PooledGain().interval is None
