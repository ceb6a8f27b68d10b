import hashlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pipeline.attack.draws import Draws

DISTRIBUTIONS: dict[str, Callable[[Draws], Tensor]] = {
    "uniform": lambda draws: draws.uniform(3, 40, 40),
    "signs": lambda draws: draws.signs(3, 40, 40),
    "below": lambda draws: draws.below(7, 3, 40, 40),
    "normal": lambda draws: draws.normal(3, 40, 40),
}


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_draws_depend_on_seed_key_step_and_count_only(distribution: str) -> None:
    draw = DISTRIBUTIONS[distribution]
    numbers = draw(Draws(0, ["a", "b"]))
    assert torch.equal(numbers[1:], draw(Draws(0, ["b"])))
    later_step = Draws(0, ["a"])
    later_step.begin_step(1)
    second_draw = Draws(0, ["a"])
    draw(second_draw)
    for other in (draw(Draws(1, ["a"])), draw(Draws(0, ["c"])), draw(later_step), draw(second_draw)):
        assert not torch.equal(numbers[:1], other)


def test_a_step_does_not_depend_on_draws_of_earlier_steps() -> None:
    draws, fresh = Draws(0, ["a"]), Draws(0, ["a"])
    draws.uniform(5)
    draws.begin_step(1)
    fresh.begin_step(1)
    assert torch.equal(draws.uniform(5), fresh.uniform(5))


def test_draws_have_their_distributions() -> None:
    draws = Draws(3, [str(index) for index in range(100)])
    uniform, signs, below, normal = (
        draws.uniform(10_001),
        draws.signs(10_000),
        draws.below(7, 10_000),
        draws.normal(10_000),
    )
    # A million numbers of each: four standard errors.
    assert abs(float(uniform.double().mean()) - 0.5) < 4 * 12**-0.5 / 1e3
    assert float(uniform.min()) >= 0
    assert float(uniform.max()) < 1
    assert abs(float(uniform.double().var()) - 1 / 12) < 4 * 180**-0.5 / 1e3
    assert set(signs.flatten().tolist()) == {-1.0, 1.0}
    assert abs(float(signs.double().mean())) < 4 / 1e3
    counts = below.flatten().bincount(minlength=7)
    assert float(((counts - 1e6 / 7) ** 2 / (1e6 / 7)).sum()) < 22.5, "chi-squared, 6 degrees, p = 0.001"
    assert abs(float(normal.double().mean())) < 4 / 1e3
    assert abs(float(normal.double().var()) - 1) < 4 * 2**0.5 / 1e3
    assert abs(float((normal.double() ** 4).mean()) - 3) < 4 * 96**0.5 / 1e3
    neighbours = torch.stack([uniform[:, :-1].flatten(), uniform[:, 1:].flatten()])
    images = torch.stack([uniform[:-1].flatten(), uniform[1:].flatten()])
    for pairs in (neighbours, images):
        assert abs(float(torch.corrcoef(pairs.double())[0, 1])) < 4 / 1e3


def test_the_bits_equal_splitmix64() -> None:
    """The published algorithm in Python's integers: a key's generator starts its steps', and these their draws'."""
    mask = (1 << 64) - 1

    def mixed(z: int) -> int:
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)

    def nth(start: int, index: int) -> int:
        return mixed((start + 0x9E3779B97F4A7C15 * (index + 1)) & mask)

    def digest(text: str) -> int:
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")

    def expected(start: int) -> list[int]:
        bits = [nth(start, counter) for counter in range(4)]
        return [word >> 40 for word in bits] + [word & 0xFFFFFF for word in bits]

    draws = Draws(5, ["k"])
    draws.begin_step(3)
    draws.begin_evaluation()
    step = nth(digest("attack/5/k"), 5)  # two come before step 0
    assert (draws.shared("mix") * 2**24).tolist() == expected(mixed(step ^ digest("0:mix")))[:1]
    assert (draws.uniform(8) * 2**24).flatten().tolist() == expected(nth(step, 1))
