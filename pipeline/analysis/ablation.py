"""Ablation: transfer and white-box success of one attack at every point of a grid of its settings."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from pipeline.analysis.report import Report
from pipeline.attack.recipe import GRADIENT_TRANSFORMS, INPUT_TRANSFORMS
from pipeline.errors import RecipeError
from pipeline.ledger import Ledger, Unit
from pipeline.results.denominators import Denominator
from pipeline.results.intervals import PooledRate

SettingValue = str | float | int
# Class of a transform → its name in recipes.
_NAMES = {transform.__name__: name for name, transform in {**INPUT_TRANSFORMS, **GRADIENT_TRANSFORMS}.items()}


@dataclass(frozen=True)
class Point:
    """One attack of a grid, from one source.

    Attributes:
        dataset: Identity of the dataset.
        source: Name of the source.
        source_id: Identity of the source.
        attack: Name of the attack.
        settings: The settings that vary over the grid: name → value.
        white_box: Success on the source itself, or on the members of a source ensemble, if they are among the targets.
        transfer: Success pooled over all other targets.
    """

    dataset: str
    source: str
    source_id: str
    attack: str
    settings: dict[str, SettingValue]
    white_box: PooledRate
    transfer: PooledRate


def grid_points(ledger: Ledger, report: Report, *, attack: str, denominator: Denominator = "target") -> list[Point]:
    """Every attack of a grid, with the settings that vary.

    Args:
        ledger: The store.
        report: Report of the store.
        attack: Name of the grid: `gnp+mi` for attacks such as `gnp+mi[gnp.beta=0.4]`.
        denominator: Which images count.

    Raises:
        RecipeError: The store holds no such grid.
    """
    settings = attack_settings(ledger)
    rows = [row for row in report.success if row.attack.startswith(f"{attack}[") and row.attack_id in settings]
    grid = {row.attack_id: settings[row.attack_id] for row in rows}
    names = {name for values in grid.values() for name in values}
    varying = {name for name in names if len({str(values.get(name)) for values in grid.values()}) > 1}
    if not rows or not varying:
        raise RecipeError(
            f"attack {attack!r}: {ledger.storage.url} holds no grid of that name; gnp report names the attacks"
        )
    white_box, transfer = (
        {(row.dataset, row.source_id, row.attack_id): row.rates[denominator] for row in pooled}
        for pooled in (report.white_box, report.transfer)
    )
    return [
        Point(
            dataset=row.dataset,
            source=row.source,
            source_id=row.source_id,
            attack=row.attack,
            settings={name: value for name, value in grid[row.attack_id].items() if name in varying},
            white_box=white_box.get(key, PooledRate()),
            transfer=transfer.get(key, PooledRate()),
        )
        for key, row in {(row.dataset, row.source_id, row.attack_id): row for row in rows}.items()
    ]


def varying_settings(grid: Sequence[Point]) -> list[str]:
    """Names of the settings that vary: those of transforms (`gnp.beta`) first, then by descending number of values."""
    counts = {name: len({str(point.settings.get(name)) for point in grid}) for name in grid[0].settings}
    return sorted(counts, key=lambda name: ("." not in name, -counts[name], name))


def attack_settings(ledger: Ledger) -> dict[str, dict[str, SettingValue]]:
    """Identity of each attack → its settings with flat names as in a recipe: `steps`, `gnp.beta`."""
    first: dict[str, Unit] = {unit.attack: unit for unit in ledger.list_units("adversarial")}
    return {marker.unit.attack: dict(_flatten(marker.fact("attack"))) for marker in ledger.read_markers(first.values())}


def _flatten(recorded: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, SettingValue]]:
    for name, value in recorded.items():
        if isinstance(value, list):
            for transform in value:
                yield from _flatten(transform, f"{_NAMES[transform['kind']]}.")
        # The default step size ε/T follows from ε and T: it is not a setting of its own.
        elif name not in ("name", "kind") and not (name == "step_size" and _has_default_step_size(recorded)):
            yield f"{prefix}{name}", value


def _has_default_step_size(recorded: Mapping[str, Any]) -> bool:
    if "steps" not in recorded:
        return False
    return bool(Fraction(recorded["step_size"]) * recorded["steps"] == Fraction(recorded["epsilon"]))
