"""One sample: original, perturbation, adversarial image, and what every target says of it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from matplotlib.figure import Figure

from pipeline.analysis import drawing
from pipeline.analysis.report import Report, Success, budget
from pipeline.data import parts
from pipeline.errors import MissingError
from pipeline.ledger import Ledger, Unit
from pipeline.models import load
from pipeline.results.predictions import Predictions, predictions

# A picture is chosen among so many parts, so that a large store is not read whole for it.
_PARTS = 8


@dataclass(frozen=True)
class Word:
    """What a target says of one image.

    Attributes:
        prediction: The class that it names.
        probability: Of the true class.
        right: Whether it is right; who abstains is not.
        abstained: Whether it does not answer; `prediction` is then the class ahead.
    """

    prediction: int
    probability: float
    right: bool
    abstained: bool

    def told(self, class_name: Callable[[int], str]) -> str:
        """In a few words: `✓ espresso`, `✗ loupe (abstains)`."""
        name = short(class_name(self.prediction))
        return f"{'✓' if self.right else '✗'} {name}{' (abstains)' if self.abstained else ''}"


@dataclass(frozen=True)
class Answer:
    """What one target says of one sample.

    Attributes:
        target: Its name.
        target_id: Its identity: of one name there may be several, of several recipes.
        before: Of the clean image.
        after: Of the adversarial image.
        fooled: Whether the attack does what it is to do.
    """

    target: str
    target_id: str
    before: Word
    after: Word
    fooled: bool


@dataclass(frozen=True)
class Said:
    """What every target says of one sample under one attack.

    Attributes:
        unit: The adversarial part that it is in.
        key: Its key.
        label: Its true class.
        source: Name of the model attacked.
        attack: Name of the attack.
        epsilon: The budget.
        norm: Of the budget.
        target_class: What the attack wanted; None if only to mislead.
        answers: One a target.
    """

    unit: Unit
    key: str
    label: int
    source: str
    attack: str
    epsilon: float
    norm: str
    target_class: int | None
    answers: tuple[Answer, ...]

    @property
    def fooled(self) -> int:
        """How many targets were right before and are fooled."""
        return sum(answer.before.right and answer.fooled for answer in self.answers)

    @property
    def probability(self) -> float:
        """Of the true class after the attack, the mean over targets."""
        return float(np.mean([answer.after.probability for answer in self.answers]))


def strongest(report: Report) -> Success:
    """The attack with the highest mean success over targets, under the target denominator; its first row.

    Raises:
        MissingError: Nothing has been scored.
    """
    rates: dict[tuple[str, str, str], list[float]] = {}
    for row in report.success:
        rates.setdefault((row.dataset, row.source_id, row.attack_id), []).append(row.rates["target"].rate or 0.0)
    if not rates:
        raise MissingError("the store holds no scored attack yet; run generate first")
    best = max(rates, key=lambda key: float(np.mean(rates[key])))
    return next(row for row in report.success if (row.dataset, row.source_id, row.attack_id) == best)


def best(ledger: Ledger, row: Success) -> Said:
    """The sample on which an attack fools the most targets; of several, the first in shard order.

    Raises:
        MissingError: No image of that attack has been scored.
    """
    told = some(ledger, row.dataset, row.source_id, row.attack_id)
    if not told:
        raise MissingError(f"{row.attack_id}: no image of this attack has been scored yet")
    return max(told, key=lambda said: said.fooled)


def some(ledger: Ledger, dataset: str, source: str, attack: str) -> list[Said]:
    """What is said of the scored samples of an attack: of evenly spaced parts, where there are many."""
    units = sorted(ledger.units(f"adversarial/{dataset}/{source}/{attack}"))
    if len(units) > _PARTS:
        units = [units[index * len(units) // _PARTS] for index in range(_PARTS)]
    return [said for unit in units for said in of_part(ledger, unit)]


def of_part(ledger: Ledger, unit: Unit) -> Iterator[Said]:
    """What the targets that have scored an adversarial part, and its original, say of each of its samples."""
    scope = f"transfer/{unit.dataset}/{unit.source}/{unit.attack}"
    scored = sorted(scored for scored in ledger.units(scope) if scored.part == unit.part)
    own = {each: replace(each, source="", attack="") for each in scored}
    clean = ledger.committed({each.scope for each in own.values()}, shard=unit.part.shard)
    scored = [each for each in scored if own[each] in clean]
    after = list(predictions(ledger, scored))
    before = list(predictions(ledger, [own[each.unit] for each in after]))
    for index in range(after[0].table.num_rows if after else 0):
        first = after[0]
        yield Said(
            unit=unit,
            key=first.table.column("key")[index].as_py(),
            label=first.table.column("label")[index].as_py(),
            source=first.constant("source"),
            attack=first.constant("attack"),
            epsilon=first.constant("epsilon"),
            norm=first.constant("norm"),
            target_class=first.table.column("target_class")[index].as_py(),
            answers=tuple(_answer(one, other, index) for one, other in zip(before, after, strict=True)),
        )


def _answer(before: Predictions, after: Predictions, index: int) -> Answer:
    return Answer(
        target=after.constant("target"),
        target_id=after.unit.target,
        before=_word(before, index),
        after=_word(after, index),
        fooled=bool(after.fooled[index]),
    )


def _word(said: Predictions, index: int) -> Word:
    return Word(
        prediction=int(said.column("prediction")[index]),
        probability=float(said.column("label_probability")[index]),
        right=bool(said.correct[index]),
        abstained=bool(said.column("abstained")[index]),
    )


def pixels(ledger: Ledger, unit: Unit, keys: Sequence[str]) -> dict[str, np.ndarray]:
    """Stored images of a part by key, (H, W, 3) uint8 each."""
    marker = ledger.marker(unit)
    images = parts.read(ledger.read(marker), name=marker.object)
    return {key: images.pixels[images.keys.index(key)].permute(1, 2, 0).numpy() for key in keys}


def magnified(original: np.ndarray, adversarial: np.ndarray, *, epsilon: float, norm: str) -> tuple[np.ndarray, float]:
    """A perturbation around grey, (H, W, 3) float in [0, 1], and how many times larger it is made."""
    perturbation = (adversarial.astype(np.float64) - original.astype(np.float64)) / 255
    most = epsilon if norm == "linf" else float(np.abs(perturbation).max()) or 1.0
    return np.clip(0.5 + perturbation / (2 * most), 0, 1), 1 / (2 * most)


def images(ledger: Ledger, said: Said) -> tuple[np.ndarray, np.ndarray]:
    """A sample's original and its adversarial image, as stored, (H, W, 3) uint8."""
    original = Unit(said.unit.dataset, said.unit.part)
    return pixels(ledger, original, [said.key])[said.key], pixels(ledger, said.unit, [said.key])[said.key]


def class_names(ledger: Ledger, dataset: str) -> Callable[[int], str]:
    """How a dataset's classes are called: by number, but for ImageNet's thousand."""
    plans = [ledger.plan(key) for key in ledger.plans()]
    classes = {plan.get("data", {}).get("classes", 1000) for plan in plans if plan["dataset"] == dataset}
    return load.class_name if classes <= {1000} else str


def draw(said: Said, original: np.ndarray, adversarial: np.ndarray, *, class_name: Callable[[int], str]) -> Figure:
    """A sample as three panels, and what every target says of the first and the last.

    Args:
        said: The sample.
        original: (H, W, 3) uint8.
        adversarial: (H, W, 3) uint8.
        class_name: The name of a class index.
    """
    perturbation, times = magnified(original, adversarial, epsilon=said.epsilon, norm=said.norm)
    lines = max(1, len(said.answers))
    figure = Figure(figsize=(11, 4.0 + 0.15 * lines), layout="constrained", facecolor="white")
    panels: tuple[tuple[np.ndarray, str, list[tuple[str, Word]]], ...] = (
        (original, f"original: {short(class_name(said.label))}", [(each.target, each.before) for each in said.answers]),
        (perturbation, f"perturbation × {times:.0f}, around grey", []),
        (adversarial, "adversarial, as stored", [(each.target, each.after) for each in said.answers]),
    )
    for axis, (image, title, told) in zip(figure.subplots(1, 3), panels, strict=True):
        axis.imshow(image, interpolation="nearest")
        axis.set_title(title, fontsize=11)
        axis.set_xticks([])
        axis.set_yticks([])
        under = [f"{target}: {word.told(class_name)}" for target, word in told]
        axis.set_xlabel(drawing.plain("\n".join(under)), fontsize=9, family="DejaVu Sans", loc="left")
    heading = f"{said.attack} from {said.source}, ε = {budget(said.epsilon, said.norm)}"
    figure.suptitle(drawing.plain(heading), fontsize=12)
    return figure


def short(name: str) -> str:
    """The first of a WordNet synset's names."""
    return name.split(",")[0]
