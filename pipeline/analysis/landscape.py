"""Is an adversarial image in a flat region, and does flatness on the source go with flatness and transfer on a target?

At each stored adversarial image: how steep and how sharp the loss is, on the source and on every target; the loss along
a random direction and along the source's gradient; and how much of the perturbation is needed, that is, where on the
way back to the original a model finds the true class again. Ranks tell whether flatness here goes with flatness and
success there: over all images and attacks, and among the attacks on one image.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.stats import rankdata, spearmanr
from torch import Tensor, nn

from pipeline.attack.draws import Draws
from pipeline.data import codec
from pipeline.data.parts import Images

# L2 on [0, 1]: from a thousandth of a level to some levels a pixel, at 224 pixels.
OFFSETS = tuple(float(offset) for offset in np.linspace(-6, 6, 25))
# How far sharpness looks, L2, and in how many directions.
REACH, DIRECTIONS = 2.0, 16
# Where on the way from the original (0) to the adversarial image (1) and beyond it is looked for the boundary.
_WAY = tuple(float(share) for share in np.linspace(0, 2, 41))
_PERMUTATIONS = 2000
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


@dataclass(frozen=True)
class Ground:
    """What one model's loss looks like around one attack's images.

    Attributes:
        attack: Name of the attack.
        model: Name of the model; the source's or a target's.
        slope: ‖∇ℓ‖₂ at each image, (N,).
        sharpness: The largest change of the loss at a distance of `REACH`, in `DIRECTIONS` random directions, (N,).
        right: Whether the model classifies the original correctly, (N,) bool; the rest says nothing of an attack.
        boundary: Where on the way from the original to the image the true class is lost, as a share of the
            perturbation: 0.5, half of it would do; above 1, it does not; infinite, twice of it neither. On the way, as
            at that distance, pixels may leave [0, 1]. (N,)
        fooled: Whether the model errs on the image, (N,) bool.
        along_random: The loss at `OFFSETS` along one random direction each, (N, K).
        along_gradient: The same along the source's gradient.
    """

    attack: str
    model: str
    slope: np.ndarray
    sharpness: np.ndarray
    right: np.ndarray
    boundary: np.ndarray
    fooled: np.ndarray
    along_random: np.ndarray
    along_gradient: np.ndarray


def survey(
    attack: str,
    originals: Images,
    adversarial: Images,
    source: nn.Module,
    models: Mapping[str, nn.Module],
    *,
    device: torch.device,
    seed: int = 0,
) -> list[Ground]:
    """The ground around one attack's images, on every model, the source among them.

    Args:
        attack: Its name.
        originals: Images.
        adversarial: Of the same keys, in the same order.
        source: The model attacked: whose gradient is followed.
        models: Name → model, on `device`.
        device: Where.
        seed: Of the random directions, which are the same for every attack and model.
    """
    found: dict[str, list[tuple[Any, ...]]] = {name: [] for name in models}
    for index, key in enumerate(adversarial.keys):
        at, back = (codec.to_float(each.pixels[index : index + 1]).to(device) for each in (adversarial, originals))
        label = adversarial.labels[index : index + 1].to(device)
        steepest = _unit(_gradient(source, at, label))
        draws = Draws(seed, [key], device, purpose="landscape")
        draws.begin(0)
        random = torch.cat([_unit(draws.normal(*at.shape[1:]).to(at)) for _ in range(DIRECTIONS)])
        offsets = torch.tensor(OFFSETS, device=device).view(-1, 1, 1, 1)
        way = torch.tensor(_WAY, device=device).view(-1, 1, 1, 1)
        for name, model in models.items():
            with torch.inference_mode():
                here, around = _losses(model, at, label), _losses(model, at + REACH * random, label)
                logits = torch.cat([model(some) for some in torch.split(back + way * (at - back), 32)])
                wrong = (logits.argmax(dim=1) != label).tolist()
                lost = next((share for share, errs in zip(_WAY, wrong, strict=True) if errs), math.inf)
                found[name].append(
                    (
                        float((around - here).abs().max()),
                        not wrong[0],
                        lost,
                        wrong[_WAY.index(1.0)],
                        _losses(model, at + offsets * random[:1], label).cpu().numpy(),
                        _losses(model, at + offsets * steepest, label).cpu().numpy(),
                    )
                )
            found[name][-1] = (float(_gradient(model, at, label).norm()), *found[name][-1])
    return [
        Ground(attack, name, *(np.array(column) for column in zip(*rows, strict=True))) for name, rows in found.items()
    ]


def table(ground: Sequence[Ground]) -> list[dict[str, Any]]:
    """One row an attack and model: medians over images that it classifies correctly, and on how many it is fooled."""
    return [
        {
            "attack": each.attack,
            "model": each.model,
            **{name: _median(getattr(each, name)[each.right]) for name in ("slope", "sharpness", "boundary")},
            "fooled": int(each.fooled[each.right].sum()),
            "n": int(each.right.sum()),
        }
        for each in ground
    ]


def correlations(ground: Sequence[Ground], *, source: str, seed: int = 0) -> list[dict[str, Any]]:
    """Rank correlations of flatness on the source with flatness and success on each target.

    `rho` is Spearman's, over images and attacks together: that some images are steep for every attack and model is in
    it. `rho_within` is not touched by that: attacks are ranked image by image, and the ranks, less their mean,
    correlated over all images. `p_within` says how often that would be as far from 0 if, image by image, which attack
    goes with which ranks were chance (2,000 draws): what holds of these attacks, on other images. Images that the
    target gets wrong when clean do not count.

    Args:
        ground: Of every attack, on the same images.
        source: Name of the source among the models.
        seed: Of the draws.
    """
    by = {(each.attack, each.model): each for each in ground}
    attacks = list(dict.fromkeys(each.attack for each in ground))
    found = []
    for target in dict.fromkeys(each.model for each in ground if each.model != source):
        right = by[attacks[0], target].right
        for measure in ("slope", "sharpness"):
            mine = np.stack([getattr(by[attack, source], measure)[right] for attack in attacks])
            for what in (measure, "boundary", "fooled"):
                theirs = np.stack([getattr(by[attack, target], what)[right].astype(float) for attack in attacks])
                within, p = _within(mine, theirs, np.random.default_rng(seed))
                found.append(
                    {
                        "target": target,
                        "on_the_source": measure,
                        "on_the_target": what,
                        "rho": _spearman(mine, theirs),
                        "rho_within": within,
                        "p_within": p,
                        "images": mine.shape[1],
                        "attacks": len(attacks),
                    }
                )
    return found


def _median(values: np.ndarray) -> float:
    return float(np.median(values)) if len(values) else math.nan


def _spearman(mine: np.ndarray, theirs: np.ndarray) -> float:
    """NaN where all are alike, or there are none."""
    apart = min(len(np.unique(mine)), len(np.unique(theirs))) > 1
    return float(spearmanr(mine.ravel(), theirs.ravel())[0]) if apart else math.nan


def _within(mine: np.ndarray, theirs: np.ndarray, random: np.random.Generator) -> tuple[float, float]:
    """The correlation of ranks taken image by image, (attacks, images) each, and its p by permutation."""
    first, second = (rankdata(values, axis=0) for values in (mine, theirs))
    first, second = first - first.mean(axis=0), second - second.mean(axis=0)
    scale = math.sqrt(float((first**2).sum() * (second**2).sum()))
    if not scale:
        return math.nan, math.nan
    rho = float((first * second).sum()) / scale
    drawn = [float((random.permuted(first, axis=0) * second).sum()) / scale for _ in range(_PERMUTATIONS)]
    as_far = sum(abs(each) >= abs(rho) - 1e-12 for each in drawn)
    return rho, (1 + as_far) / (1 + _PERMUTATIONS)


def draw(ground: Sequence[Ground], *, title: str) -> Figure:
    """The median loss along a random direction and the source's gradient, a panel a model, a line an attack."""
    models = list(dict.fromkeys(each.model for each in ground))
    attacks = list(dict.fromkeys(each.attack for each in ground))
    figure = Figure(figsize=(1.5 + 3.1 * len(models), 6), layout="constrained")
    panels = figure.subplots(2, len(models), squeeze=False, sharex=True)
    for column, model in enumerate(models):
        for each in (each for each in ground if each.model == model):
            colour = _COLOURS[attacks.index(each.attack) % len(_COLOURS)]
            for row, losses in enumerate((each.along_random, each.along_gradient)):
                panels[row][column].plot(OFFSETS, np.median(losses, axis=0), color=colour, label=each.attack)
        panels[0][column].set_title(model, fontsize=9)
        panels[1][column].set_xlabel("offset (L2)")
        for row in (0, 1):
            panels[row][column].grid(alpha=0.25)
            panels[row][column].axvline(0, color="#888888", linewidth=0.8)
    panels[0][0].set_ylabel("loss, random direction")
    panels[1][0].set_ylabel("loss, the source's gradient")
    handles, labels = panels[0][0].get_legend_handles_labels()
    columns = int(12 * figure.get_figwidth() / (max(map(len, labels)) + 8))  # a dozen letters an inch
    figure.legend(handles, labels, loc="outside lower center", ncols=max(1, columns), fontsize=8)
    figure.suptitle(title, fontsize=10)
    return figure


def _gradient(model: nn.Module, at: Tensor, label: Tensor) -> Tensor:
    inputs = at.clone().requires_grad_()
    with torch.enable_grad():
        found: Tensor = torch.autograd.grad(nn.functional.cross_entropy(model(inputs), label), inputs)[0]
    return found


def _losses(model: nn.Module, images: Tensor, label: Tensor) -> Tensor:
    logits = torch.cat([model(some) for some in torch.split(images, 32)])
    losses: Tensor = nn.functional.cross_entropy(logits, label.expand(len(images)), reduction="none")
    return losses


def _unit(direction: Tensor) -> Tensor:
    found: Tensor = direction / direction.norm().clamp_min(torch.finfo(direction.dtype).tiny)
    return found
