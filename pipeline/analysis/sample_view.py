"""One sample as its targets see it: predictions on the clean and on the adversarial image, read from a store."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipeline.analysis.report import Report, Success
from pipeline.data import parts
from pipeline.errors import MissingError
from pipeline.ledger import Ledger, Unit
from pipeline.models.class_names import class_name
from pipeline.results.predictions import StoredPredictions, read_predictions

# Samples are chosen from at most this number of parts, so that a large store is not read whole for a picture.
_MAX_PARTS = 8


@dataclass(frozen=True)
class Prediction:
    """A target's prediction on one image.

    Attributes:
        prediction: Index of the predicted class.
        probability: Probability of the true class.
        correct: Whether the prediction is the label; False for an abstention.
        abstained: Whether the target abstained; `prediction` is then its most likely class.
    """

    prediction: int
    probability: float
    correct: bool
    abstained: bool

    def text(self, class_name: Callable[[int], str]) -> str:
        """The prediction as text: `✓ espresso`, `✗ loupe (abstains)`."""
        name = short(class_name(self.prediction))
        return f"{'✓' if self.correct else '✗'} {name}{' (abstains)' if self.abstained else ''}"


@dataclass(frozen=True)
class TargetPredictions:
    """One target's predictions on one sample.

    Attributes:
        target: Name of the target.
        target_id: Identity of the target; several targets can have one name.
        clean: Prediction on the clean image.
        adversarial: Prediction on the adversarial image.
        fooled: Whether the attack succeeds on this target.
    """

    target: str
    target_id: str
    clean: Prediction
    adversarial: Prediction
    fooled: bool


@dataclass(frozen=True)
class SampleView:
    """Every target's predictions on one sample under one attack.

    Attributes:
        unit: The sample's adversarial part.
        key: Key of the sample.
        label: Index of the true class.
        source: Name of the source.
        attack: Name of the attack.
        epsilon: Budget on [0, 1].
        norm: Norm of the budget.
        target_class: Target class of a targeted attack; None for an untargeted one.
        targets: Predictions of each target.
    """

    unit: Unit
    key: str
    label: int
    source: str
    attack: str
    epsilon: float
    norm: str
    target_class: int | None
    targets: tuple[TargetPredictions, ...]

    @property
    def targets_fooled(self) -> int:
        """Number of targets that are correct on the clean image and fooled by the adversarial one."""
        return sum(target.clean.correct and target.fooled for target in self.targets)

    @property
    def mean_probability(self) -> float:
        """Probability of the true class on the adversarial image, mean over targets."""
        return float(np.mean([target.adversarial.probability for target in self.targets]))


def strongest_attack(report: Report) -> Success:
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


def best_sample(ledger: Ledger, row: Success) -> SampleView:
    """The sample on which an attack fools the most targets; of several, the first in shard order.

    Raises:
        MissingError: No image of that attack has been scored.
    """
    views = sample_views(ledger, row.dataset, row.source_id, row.attack_id)
    if not views:
        raise MissingError(f"{row.attack_id}: no image of this attack has been scored yet")
    return max(views, key=lambda view: view.targets_fooled)


def sample_views(ledger: Ledger, dataset: str, source: str, attack: str) -> list[SampleView]:
    """The scored samples of an attack; of a large store, those of a few evenly spaced parts.

    Args:
        ledger: The store.
        dataset: Identity of the dataset.
        source: Identity of the source.
        attack: Identity of the attack.
    """
    units = sorted(ledger.list_units(f"adversarial/{dataset}/{source}/{attack}"))
    return [view for unit in evenly_spaced(units, _MAX_PARTS) for view in views_of_part(ledger, unit)]


def evenly_spaced(units: list[Unit], count: int) -> list[Unit]:
    """`count` evenly spaced units of a list, or all of a shorter one."""
    return units if len(units) <= count else [units[index * len(units) // count] for index in range(count)]


def views_of_part(ledger: Ledger, unit: Unit) -> Iterator[SampleView]:
    """Every sample of an adversarial part, with the targets that have scored it and its original."""
    scope = f"transfer/{unit.dataset}/{unit.source}/{unit.attack}"
    scored = sorted(scored for scored in ledger.list_units(scope) if scored.part == unit.part)
    clean_unit = {scored_unit: replace(scored_unit, source="", attack="") for scored_unit in scored}
    committed = ledger.list_committed({unit.scope for unit in clean_unit.values()}, shard=unit.part.shard)
    scored = [scored_unit for scored_unit in scored if clean_unit[scored_unit] in committed]
    adversarial = list(read_predictions(ledger, scored))
    clean = list(read_predictions(ledger, [clean_unit[table.unit] for table in adversarial]))
    for index in range(adversarial[0].table.num_rows if adversarial else 0):
        first = adversarial[0]
        yield SampleView(
            unit=unit,
            key=first.table.column("key")[index].as_py(),
            label=first.table.column("label")[index].as_py(),
            source=first.constant("source"),
            attack=first.constant("attack"),
            epsilon=first.constant("epsilon"),
            norm=first.constant("norm"),
            target_class=first.table.column("target_class")[index].as_py(),
            targets=tuple(_target(*tables, index) for tables in zip(clean, adversarial, strict=True)),
        )


def _target(clean: StoredPredictions, adversarial: StoredPredictions, index: int) -> TargetPredictions:
    return TargetPredictions(
        target=adversarial.constant("target"),
        target_id=adversarial.unit.target,
        clean=_prediction(clean, index),
        adversarial=_prediction(adversarial, index),
        fooled=bool(adversarial.fooled[index]),
    )


def _prediction(table: StoredPredictions, index: int) -> Prediction:
    return Prediction(
        prediction=int(table.column("prediction")[index]),
        probability=float(table.column("label_probability")[index]),
        correct=bool(table.correct[index]),
        abstained=bool(table.column("abstained")[index]),
    )


def read_pixels(ledger: Ledger, unit: Unit, keys: Sequence[str]) -> dict[str, np.ndarray]:
    """Stored images of a part by key, (H, W, 3) uint8 each."""
    marker = ledger.read_marker(unit)
    images = parts.decode_tar(ledger.read_data(marker), name=marker.object)
    return {key: images.pixels[images.keys.index(key)].permute(1, 2, 0).numpy() for key in keys}


def read_images(ledger: Ledger, view: SampleView) -> tuple[np.ndarray, np.ndarray]:
    """A sample's original and its adversarial image, as stored, (H, W, 3) uint8."""
    original = Unit(view.unit.dataset, view.unit.part)
    return read_pixels(ledger, original, [view.key])[view.key], read_pixels(ledger, view.unit, [view.key])[view.key]


def class_names(ledger: Ledger, dataset: str) -> Callable[[int], str]:
    """Names of a dataset's classes by index: ImageNet's names if it has 1,000 classes, else the index as text."""
    plans = [ledger.read_plan(key) for key in ledger.plan_keys()]
    classes = {plan.get("data", {}).get("classes", 1000) for plan in plans if plan["dataset"] == dataset}
    return class_name if classes <= {1000} else str


def short(name: str) -> str:
    """The first name of a WordNet synset."""
    return name.split(",")[0]
