import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import binomtest
from torch import Tensor
from torch.nn import functional as F

from pipeline.attack.draws import Draws
from pipeline.models import predict
from pipeline.models.defenses import DEFENSES, Defense, RandomisedSmoothing, RandomResizePad
from pipeline.models.image_filters import BitDepth, FeatureDistillation, Jpeg, Median, TotalVariation
from pipeline.models.predict import predict_defended

KEYS = ["a", "b", "c"]
# Defenses without weights.
WITHOUT_WEIGHTS: dict[str, type[Defense]] = {name: kind for name, kind in DEFENSES.items() if issubclass(kind, Defense)}
FEW_DRAWS: dict[str, Defense] = {"rp": RandomResizePad(draws=3), "smoothing": RandomisedSmoothing(draws=11)}


class Brightest(torch.nn.Module):
    """Predicts which of nine fields of the image is the brightest; takes any size."""

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


@pytest.mark.parametrize("name", WITHOUT_WEIGHTS)
def test_predictions_are_repeatable_and_independent_of_the_batch(name: str) -> None:
    defense = FEW_DRAWS.get(name) or WITHOUT_WEIGHTS[name]()
    first = predict_defended(Brightest(), photographs(), [defense], draws())
    second = predict_defended(Brightest(), photographs(), [defense], draws())
    alone = predict_defended(Brightest(), photographs()[1:2], [defense], draws(KEYS[1:2]))
    for batch, repeated, single in zip(first, second, alone, strict=True):
        assert torch.equal(batch, repeated)
        torch.testing.assert_close(batch[1:2], single)


@pytest.mark.parametrize("name", [name for name in WITHOUT_WEIGHTS if name not in FEW_DRAWS])
def test_a_grey_image_is_not_changed(name: str) -> None:
    grey = torch.full((1, 3, 40, 40), 136 / 255)  # 8/15, which 4 bits represent exactly
    found = WITHOUT_WEIGHTS[name]()(grey, draws(["a"]))
    torch.testing.assert_close(
        found, grey, atol=1.6 / 255, rtol=0
    )  # a quantisation step of 25 in the mean of 8 x 8 values


def test_bit_depth_leaves_the_nearest_of_its_levels() -> None:
    found = BitDepth(bits=2)(photographs(), draws())
    assert sorted({round(value * 3, 4) for value in found.flatten().tolist()}) == [0, 1, 2, 3]
    assert float((found - photographs()).abs().max()) <= 1 / 6 + 1e-6


def test_jpeg_gives_pils_pixels() -> None:
    pixels = (photographs() * 255).round()
    found = Jpeg(quality=40)(pixels / 255, draws())
    buffer = io.BytesIO()
    Image.fromarray(pixels[1].permute(1, 2, 0).byte().numpy()).save(buffer, "JPEG", quality=40, subsampling=2)
    expected = np.asarray(Image.open(buffer)).transpose(2, 0, 1)
    assert (found[1] * 255).round().byte().numpy().tolist() == expected.tolist()


def test_feature_distillation_quantises_the_cosine_transform_of_each_block() -> None:
    """Compared with the cosine transform written out."""
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
                quantised = np.round(basis @ block @ basis.T / steps) * steps
                expected[colour, row : row + 8, column : column + 8] = basis.T @ quantised @ basis
    found = FeatureDistillation()(image[None], draws(["a"]))[0]
    wanted = torch.from_numpy(np.clip((expected[:, :20, :20] + 128) / 255, 0, 1)).float()
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)


def test_the_median_removes_a_single_pixel_and_total_variation_keeps_an_edge() -> None:
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
    places = []
    white = torch.ones(200, 3, 299, 299)
    padded = RandomResizePad()(white, Draws(0, [str(index) for index in range(200)]))
    assert padded.shape == (200, 3, 331, 331)
    for image in padded:
        rows = image[0].any(dim=1).nonzero().flatten()
        columns = image[0].any(dim=0).nonzero().flatten()
        assert len(rows) == len(columns) == int(rows[-1] - rows[0]) + 1
        places.append((len(rows), int(rows[0]), int(columns[0])))
    assert {side for side, _, _ in places} == set(range(310, 331))
    assert max(top for _, top, _ in places) > 15
    assert any(top != left for _, top, left in places)


@pytest.mark.parametrize("input_side", [224, 299])
def test_random_padding_is_torchs_interpolation_padded(input_side: int) -> None:
    torch.manual_seed(0)
    images, keys = torch.rand(60, 3, input_side, input_side), [str(index) for index in range(60)]
    padded = RandomResizePad()(images, Draws(0, keys))
    sides, top, left = Draws(0, keys).squares(round(310 * input_side / 299), padded.shape[-1])
    for image, found, side, above, before in zip(images, padded, *map(Tensor.tolist, (sides, top, left)), strict=True):
        after = padded.shape[-1] - side
        resized = F.interpolate(image[None], (side, side), mode="nearest")[0]
        assert torch.equal(found, F.pad(resized, (before, after - before, above, after - above)))


def test_filters_do_not_depend_on_the_number_of_threads() -> None:
    found = []
    for threads in (1, 3):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        found.append([defense(photographs(), draws()) for defense in (Jpeg(), Median(), FeatureDistillation())])
        torch.set_num_threads(before)
    assert all(map(torch.equal, *found))


def test_probabilities_are_averaged_over_draws() -> None:
    single = predict_defended(Brightest(), photographs(), [RandomResizePad(draws=1)], draws())[0]
    mean = predict_defended(Brightest(), photographs(), [RandomResizePad(draws=20)], draws())[0]
    torch.testing.assert_close(mean.sum(dim=1), torch.ones(3))
    assert not torch.equal(single, mean)


def test_smoothing_votes_and_abstains_by_the_binomial_test() -> None:
    clear, level = torch.zeros(2, 3, 30, 30), torch.full((1, 3, 30, 30), 0.5)
    clear[0, :, :10, :10], clear[1, :, 20:, 20:] = 1, 1
    smoothing = RandomisedSmoothing(sigma=0.5, draws=60)
    shares, abstained = predict_defended(Brightest(), torch.cat([clear, level]), [smoothing], draws())
    assert shares[0, 0] == shares[1, 8] == 1
    assert abstained.tolist() == [False, False, True]
    assert (shares * 60).remainder(1).max() < 1e-4
    for first, second in ((40, 20), (43, 17), (60, 0), (30, 30)):
        votes = torch.tensor([[first, second, 0.0]])
        assert bool(smoothing.abstains(votes)) == (binomtest(first, 60, 0.5).pvalue > 0.001)


def test_defenses_are_applied_in_order() -> None:
    images = photographs()
    found = predict_defended(Brightest(), images, [Jpeg(), BitDepth(bits=1)], draws())[0]
    by_hand = Brightest()(BitDepth(bits=1)(Jpeg()(images, draws()), draws())).softmax(dim=1)
    torch.testing.assert_close(found, by_hand)
    reversed_order = predict_defended(Brightest(), images, [BitDepth(bits=1), Jpeg()], draws())[0]
    assert not torch.equal(found, reversed_order)


@pytest.mark.parametrize("then", [name for name in WITHOUT_WEIGHTS if name not in FEW_DRAWS])
def test_noise_outside_the_range_does_not_wrap_around(then: str) -> None:
    halves = torch.zeros(1, 3, 48, 48)
    halves[..., 24:] = 1
    noisy = RandomisedSmoothing(sigma=0.05)(halves, draws(["a"]))
    assert noisy.min() < 0
    assert noisy.max() > 1
    found = WITHOUT_WEIGHTS[then]()(noisy, draws(["a"]))
    assert float(found[..., :20].mean()) < 0.1
    assert float(found[..., 28:].mean()) > 0.9


def test_predictions_record_where_a_target_abstains() -> None:
    pixels = torch.full((3, 3, 30, 30), 128, dtype=torch.uint8)
    defenses = predict.SeededDefenses([RandomisedSmoothing(draws=20)], 0, KEYS)
    cpu, labels = torch.device("cpu"), torch.zeros(3, dtype=torch.int64)
    predictions = predict.predict(Brightest(), pixels, labels, batch_size=2, device=cpu, defenses=defenses)
    assert predictions.abstained.all()
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
def test_settings_out_of_range_are_refused(defense: Any, wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        defense(**wrong)
