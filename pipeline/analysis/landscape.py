"""Loss landscape around adversarial images: flatness on the source and on targets, and its correlation with transfer.

Measured at each stored adversarial image, on the source and on every target: slope and sharpness of the loss, the loss
along a random direction and along the source's gradient, and the share of the perturbation at which a model loses the
true class. Rank correlations show whether flatness on the source goes with flatness and success on a target: over all
images and attacks, and among the attacks on one image.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata, spearmanr
from torch import Tensor, nn

from pipeline.attack.draws import Draws
from pipeline.data import codec
from pipeline.data.parts import Images

# L2 on [0, 1]: from a thousandth of a level to several levels per pixel, at 224 pixels.
OFFSETS = tuple(float(offset) for offset in np.linspace(-6, 6, 25))
# Sharpness: distance (L2) and number of random directions.
SHARPNESS_RADIUS, SHARPNESS_DIRECTIONS = 2.0, 16
# Where the boundary is searched: from the original (0) through the adversarial image (1) to twice the perturbation.
_PATH = tuple(float(share) for share in np.linspace(0, 2, 41))
_PERMUTATIONS = 2000


@dataclass(frozen=True)
class LossLandscape:
    """One model's loss around one attack's images.

    Attributes:
        attack: Name of the attack.
        model: Name of the model: the source or a target.
        slope: ‖∇ℓ‖₂ at each image, (N,).
        sharpness: Largest change of the loss at distance `SHARPNESS_RADIUS`, in `SHARPNESS_DIRECTIONS` random
            directions, (N,).
        clean_correct: Whether the model classifies the original correctly, (N,) bool; other images do not count.
        boundary: Share of the perturbation at which the true class is lost, (N,): 0.5 if half of it suffices, above 1
            if the whole does not, infinite if twice of it does not. On this path, as at the sharpness radius, pixels
            may leave [0, 1].
        fooled: Whether the model misclassifies the adversarial image, (N,) bool.
        along_random: The loss at `OFFSETS` along one random direction per image, (N, K).
        along_gradient: The loss at `OFFSETS` along the source's gradient, (N, K).
    """

    attack: str
    model: str
    slope: np.ndarray
    sharpness: np.ndarray
    clean_correct: np.ndarray
    boundary: np.ndarray
    fooled: np.ndarray
    along_random: np.ndarray
    along_gradient: np.ndarray


def measure(
    attack: str,
    originals: Images,
    adversarial: Images,
    source: nn.Module,
    models: Mapping[str, nn.Module],
    *,
    device: torch.device,
    seed: int = 0,
) -> list[LossLandscape]:
    """Measures the loss landscape of every model, the source among them, around one attack's images.

    Args:
        attack: Name of the attack.
        originals: Original images.
        adversarial: Adversarial images of the same keys, in the same order.
        source: The model attacked, whose gradient is followed.
        models: Name → model, on `device`.
        device: Device of all models.
        seed: Seed of the random directions, which are the same for every attack and model.
    """
    rows: dict[str, list[tuple[Any, ...]]] = {name: [] for name in models}
    for index, key in enumerate(adversarial.keys):
        image, original = (
            codec.to_float(images.pixels[index : index + 1]).to(device) for images in (adversarial, originals)
        )
        label = adversarial.labels[index : index + 1].to(device)
        steepest = _unit(_gradient(source, image, label))
        draws = Draws(seed, [key], device, purpose="landscape")
        draws.begin_step(0)
        random = torch.cat([_unit(draws.normal(*image.shape[1:]).to(image)) for _ in range(SHARPNESS_DIRECTIONS)])
        for name, model in models.items():
            rows[name].append(_measure_image(model, image, original, label, random=random, steepest=steepest))
    return [
        LossLandscape(attack, name, *(np.array(column) for column in zip(*images, strict=True)))
        for name, images in rows.items()
    ]


def _measure_image(
    model: nn.Module, image: Tensor, original: Tensor, label: Tensor, *, random: Tensor, steepest: Tensor
) -> tuple[Any, ...]:
    """The fields of `LossLandscape` from `slope` on, for one image (1, 3, H, W)."""
    offsets = torch.tensor(OFFSETS, device=image.device).view(-1, 1, 1, 1)
    path = torch.tensor(_PATH, device=image.device).view(-1, 1, 1, 1)
    with torch.inference_mode():
        loss = _losses(model, image, label)
        around = _losses(model, image + SHARPNESS_RADIUS * random, label)
        points = torch.split(original + path * (image - original), 32)
        logits = torch.cat([model(batch) for batch in points])
        wrong = (logits.argmax(dim=1) != label).tolist()
        boundary = next((share for share, is_wrong in zip(_PATH, wrong, strict=True) if is_wrong), math.inf)
        along_random = _losses(model, image + offsets * random[:1], label).cpu().numpy()
        along_gradient = _losses(model, image + offsets * steepest, label).cpu().numpy()
    return (
        float(_gradient(model, image, label).norm()),
        float((around - loss).abs().max()),
        not wrong[0],
        boundary,
        wrong[_PATH.index(1.0)],
        along_random,
        along_gradient,
    )


def table(landscapes: Sequence[LossLandscape]) -> list[dict[str, Any]]:
    """One row per attack and model: medians, and the number of images fooled, of those it classifies correctly."""
    return [
        {
            "attack": row.attack,
            "model": row.model,
            **{name: _median(getattr(row, name)[row.clean_correct]) for name in ("slope", "sharpness", "boundary")},
            "fooled": int(row.fooled[row.clean_correct].sum()),
            "n": int(row.clean_correct.sum()),
        }
        for row in landscapes
    ]


def correlations(landscapes: Sequence[LossLandscape], *, source: str, seed: int = 0) -> list[dict[str, Any]]:
    """Rank correlations of flatness on the source with flatness and success on each target.

    `rho` is Spearman's, over images and attacks together; images that are steep for every attack and model raise it.
    `rho_within` leaves such images out of account: attacks are ranked within each image, and the ranks, minus their
    mean, are correlated over all images. `p_within` is the probability of a correlation as far from 0 if within each
    image the ranks were assigned to attacks at random (permutation test, 2,000 draws): it holds for these attacks on
    other images. Only images that the target classifies correctly when clean count.

    Args:
        landscapes: Landscapes of every attack, on the same images.
        source: Name of the source among the models.
        seed: Seed of the permutations.
    """
    by_key = {(row.attack, row.model): row for row in landscapes}
    attacks = list(dict.fromkeys(row.attack for row in landscapes))
    rows = []
    for target in dict.fromkeys(row.model for row in landscapes if row.model != source):
        counted = by_key[attacks[0], target].clean_correct
        for flatness in ("slope", "sharpness"):
            on_source = np.stack([getattr(by_key[attack, source], flatness)[counted] for attack in attacks])
            for outcome in (flatness, "boundary", "fooled"):
                values = [getattr(by_key[attack, target], outcome)[counted] for attack in attacks]
                on_target = np.stack([column.astype(float) for column in values])
                within, p = _correlation_within_images(on_source, on_target, np.random.default_rng(seed))
                rows.append(
                    {
                        "target": target,
                        "on_the_source": flatness,
                        "on_the_target": outcome,
                        "rho": _spearman(on_source, on_target),
                        "rho_within": within,
                        "p_within": p,
                        "images": on_source.shape[1],
                        "attacks": len(attacks),
                    }
                )
    return rows


def _median(values: np.ndarray) -> float:
    return float(np.median(values)) if len(values) else math.nan


def _spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's rank correlation; NaN without values, or if all values of one side are equal."""
    if min(len(np.unique(x)), len(np.unique(y))) < 2:
        return math.nan
    return float(spearmanr(x.ravel(), y.ravel())[0])


def _correlation_within_images(x: np.ndarray, y: np.ndarray, random: np.random.Generator) -> tuple[float, float]:
    """Correlation of ranks taken within each image, and its p by permutation; x and y: (attacks, images)."""
    ranks_x, ranks_y = (rankdata(values, axis=0) for values in (x, y))
    ranks_x, ranks_y = ranks_x - ranks_x.mean(axis=0), ranks_y - ranks_y.mean(axis=0)
    scale = math.sqrt(float((ranks_x**2).sum() * (ranks_y**2).sum()))
    if not scale:
        return math.nan, math.nan
    rho = float((ranks_x * ranks_y).sum()) / scale
    permuted = [float((random.permuted(ranks_x, axis=0) * ranks_y).sum()) / scale for _ in range(_PERMUTATIONS)]
    as_extreme = sum(abs(value) >= abs(rho) - 1e-12 for value in permuted)
    return rho, (1 + as_extreme) / (1 + _PERMUTATIONS)


def _gradient(model: nn.Module, image: Tensor, label: Tensor) -> Tensor:
    inputs = image.clone().requires_grad_()
    with torch.enable_grad():
        gradient: Tensor = torch.autograd.grad(nn.functional.cross_entropy(model(inputs), label), inputs)[0]
    return gradient


def _losses(model: nn.Module, images: Tensor, label: Tensor) -> Tensor:
    logits = torch.cat([model(batch) for batch in torch.split(images, 32)])
    losses: Tensor = nn.functional.cross_entropy(logits, label.expand(len(images)), reduction="none")
    return losses


def _unit(direction: Tensor) -> Tensor:
    unit: Tensor = direction / direction.norm().clamp_min(torch.finfo(direction.dtype).tiny)
    return unit
