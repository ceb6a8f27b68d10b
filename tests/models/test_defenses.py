import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import binomtest
from torch import Tensor

from pipeline.attack.draws import Draws
from pipeline.models import predict
from pipeline.models.defenses import (
    DEFENSES,
    BitDepth,
    Defense,
    FeatureDistillation,
    Jpeg,
    Median,
    RandomisedSmoothing,
    RandomResizePad,
    TotalVariation,
    answer,
)

KEYS = ["a", "b", "c"]
# Those that need no weights.
PLAIN: dict[str, type[Defense]] = {name: kind for name, kind in DEFENSES.items() if issubclass(kind, Defense)}
CHEAP: dict[str, Defense] = {"rp": RandomResizePad(draws=3), "smoothing": RandomisedSmoothing(draws=11)}


class Brightest(torch.nn.Module):
    """Answers which of nine fields of the image is the brightest; takes any size."""

    def resized(self, images: Tensor) -> Tensor:
        return images

    def classify(self, inputs: Tensor) -> Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(inputs, 3).mean(dim=1).flatten(1) * 50

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(images)


def photographs(side: int = 60) -> Tensor:
    torch.manual_seed(0)
    small = torch.rand(3, 3, 6, 6)
    return torch.nn.functional.interpolate(small, (side, side), mode="bicubic").clamp(0, 1)


def draws(keys: list[str] = KEYS) -> Draws:
    return Draws(0, keys)


@pytest.mark.parametrize("name", PLAIN)
def test_an_image_does_not_depend_on_its_batch_and_comes_out_the_same_again(name: str) -> None:
    defense = CHEAP.get(name) or PLAIN[name]()
    together = answer(Brightest(), photographs(), [defense], draws())
    again = answer(Brightest(), photographs(), [defense], draws())
    alone = answer(Brightest(), photographs()[1:2], [defense], draws(KEYS[1:2]))
    for whole, same, one in zip(together, again, alone, strict=True):
        assert torch.equal(whole, same)
        torch.testing.assert_close(whole[1:2], one)


@pytest.mark.parametrize("name", [name for name in PLAIN if name not in CHEAP])
def test_a_grey_image_stays_what_it_is(name: str) -> None:
    grey = torch.full((1, 3, 40, 40), 136 / 255)  # 8 of 15: no rounding either
    found = PLAIN[name]()(grey, draws(["a"]))
    torch.testing.assert_close(found, grey, atol=1.6 / 255, rtol=0)  # a step of 25 in the mean of 8 x 8 values


def test_bits_are_as_many_as_are_left() -> None:
    found = BitDepth(bits=2)(photographs(), draws())
    assert sorted({round(value * 3, 4) for value in found.flatten().tolist()}) == [0, 1, 2, 3]
    assert float((found - photographs()).abs().max()) <= 1 / 6 + 1e-6


def test_jpeg_is_pils() -> None:
    pixels = (photographs() * 255).round()
    found = Jpeg(quality=40)(pixels / 255, draws())
    buffer = io.BytesIO()
    Image.fromarray(pixels[1].permute(1, 2, 0).byte().numpy()).save(buffer, "JPEG", quality=40, subsampling=2)
    expected = np.asarray(Image.open(buffer)).transpose(2, 0, 1)
    assert (found[1] * 255).round().byte().numpy().tolist() == expected.tolist()


def test_feature_distillation_is_what_it_says_block_by_block() -> None:
    """Against sums of cosines, written out."""
    image, steps = photographs(20)[0], np.full((8, 8), 30.0)
    steps[:4, :4] = 25
    place, frequency = np.meshgrid(np.arange(8), np.arange(8))
    basis = np.cos((2 * place + 1) * frequency * np.pi / 16) * np.where(frequency == 0, np.sqrt(1 / 8), 0.5)
    padded = np.pad(image.numpy() * 255 - 128, ((0, 0), (0, 4), (0, 4)), mode="edge")
    expected = np.empty_like(padded)
    for colour in range(3):
        for row in range(0, 24, 8):
            for column in range(0, 24, 8):
                block = padded[colour, row : row + 8, column : column + 8]
                kept = np.round(basis @ block @ basis.T / steps) * steps
                expected[colour, row : row + 8, column : column + 8] = basis.T @ kept @ basis
    found = FeatureDistillation()(image[None], draws(["a"]))[0]
    wanted = torch.from_numpy(np.clip((expected[:, :20, :20] + 128) / 255, 0, 1)).float()
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)


def test_the_median_takes_away_a_single_odd_pixel_and_smoothing_keeps_an_edge() -> None:
    speck = torch.full((1, 3, 20, 20), 0.5)
    speck[0, :, 10, 10] = 1
    assert torch.equal(Median(size=3)(speck, draws(["a"])), torch.full_like(speck, 0.5))
    edge = torch.full((1, 3, 20, 20), 0.2)
    edge[..., 10:] = 0.8
    torch.manual_seed(1)
    noisy = edge + 0.05 * torch.randn_like(edge)
    smooth = TotalVariation(weight=0.1)(noisy, draws(["a"]))
    assert float(smooth[..., :10].std()) < 0.3 * float(noisy[..., :10].std())
    assert float((smooth[..., 10] - smooth[..., 9]).min()) > 0.4


def test_random_padding_has_the_published_sizes() -> None:
    defense, seen = RandomResizePad(), []
    white = torch.ones(200, 3, 299, 299)
    placed = defense(white, Draws(0, [str(index) for index in range(200)]))
    assert placed.shape == (200, 3, 331, 331)
    for image in placed:
        rows = image[0].any(dim=1).nonzero().flatten()
        columns = image[0].any(dim=0).nonzero().flatten()
        assert len(rows) == len(columns) == int(rows[-1] - rows[0]) + 1
        seen.append((len(rows), int(rows[0]), int(columns[0])))
    assert {side for side, _, _ in seen} == set(range(310, 331))
    assert max(top for _, top, _ in seen) > 15
    assert any(top != left for _, top, left in seen)


def test_answers_are_averaged_over_draws() -> None:
    one = answer(Brightest(), photographs(), [RandomResizePad(draws=1)], draws())[0]
    many = answer(Brightest(), photographs(), [RandomResizePad(draws=20)], draws())[0]
    torch.testing.assert_close(many.sum(dim=1), torch.ones(3))
    assert not torch.equal(one, many)


def test_smoothing_votes_and_abstains_by_the_binomial_test() -> None:
    clear, level = torch.zeros(2, 3, 30, 30), torch.full((1, 3, 30, 30), 0.5)
    clear[0, :, :10, :10], clear[1, :, 20:, 20:] = 1, 1
    smoothing = RandomisedSmoothing(sigma=0.5, draws=60)
    shares, abstained = answer(Brightest(), torch.cat([clear, level]), [smoothing], draws())
    assert shares[0, 0] == shares[1, 8] == 1
    assert abstained.tolist() == [False, False, True]
    assert (shares * 60).remainder(1).max() < 1e-4
    for ahead, behind in ((40, 20), (43, 17), (60, 0), (30, 30)):
        votes = torch.tensor([[ahead, behind, 0.0]])
        assert bool(smoothing.abstains(votes)) == (binomtest(ahead, 60, 0.5).pvalue > 0.001)


def test_defenses_follow_one_another_in_order() -> None:
    images = photographs()
    found = answer(Brightest(), images, [Jpeg(), BitDepth(bits=1)], draws())[0]
    by_hand = Brightest()(BitDepth(bits=1)(Jpeg()(images, draws()), draws())).softmax(dim=1)
    torch.testing.assert_close(found, by_hand)
    other = answer(Brightest(), images, [BitDepth(bits=1), Jpeg()], draws())[0]
    assert not torch.equal(found, other)


@pytest.mark.parametrize("then", [name for name in PLAIN if name not in CHEAP])
def test_noise_that_leaves_the_range_does_not_wrap_round(then: str) -> None:
    halves = torch.zeros(1, 3, 48, 48)
    halves[..., 24:] = 1
    noisy = RandomisedSmoothing(sigma=0.05)(halves, draws(["a"]))
    assert noisy.min() < 0
    assert noisy.max() > 1
    found = PLAIN[then]()(noisy, draws(["a"]))
    assert float(found[..., :20].mean()) < 0.1
    assert float(found[..., 28:].mean()) > 0.9


def test_predictions_say_where_a_target_abstains() -> None:
    pixels = torch.full((3, 3, 30, 30), 128, dtype=torch.uint8)
    behind = predict.Behind([RandomisedSmoothing(draws=20)], 0, KEYS)
    cpu, labels = torch.device("cpu"), torch.zeros(3, dtype=torch.int64)
    said = predict.predict(Brightest(), pixels, labels, batch_size=2, device=cpu, behind=behind)
    assert said.abstained.all()
    assert not predict.predict(Brightest(), pixels, labels, batch_size=2, device=cpu).abstained.any()


@pytest.mark.parametrize(
    ("defense", "wrong"),
    [
        (RandomResizePad, {"least": 331}),
        (RandomResizePad, {"draws": 0}),
        (BitDepth, {"bits": 0}),
        (Jpeg, {"quality": 101}),
        (FeatureDistillation, {"fine": 0.0}),
        (TotalVariation, {"weight": float("nan")}),
        (Median, {"size": 1}),
        (RandomisedSmoothing, {"sigma": 0.0}),
        (RandomisedSmoothing, {"alpha": 1.0}),
        (RandomisedSmoothing, {"draws": 10}),
    ],
)
def test_impossible_settings_are_refused(defense: Any, wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        defense(**wrong)
