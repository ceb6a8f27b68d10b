"""One sample as a picture: original, perturbation, adversarial image, and what every target says of it."""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

import matplotlib.figure
import numpy as np

from pipeline import parts, results
from pipeline.errors import MissingError
from pipeline.ledger import Ledger, Unit
from pipeline.report import Report, Success

# A picture is chosen among so many parts of the first shards, so that a large store is not read whole for it.
_PARTS = 8


@dataclass(frozen=True)
class _Said:
    """What every target says of one image, clean and adversarial: target name → class."""

    unit: Unit
    key: str
    label: int
    before: dict[str, int]
    after: dict[str, int]

    @property
    def fooled(self) -> int:
        """How many targets were right before and are wrong after."""
        return sum(self.before[target] == self.label != said for target, said in self.after.items())


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


def draw(ledger: Ledger, row: Success, *, class_name: Callable[[int], str]) -> bytes:
    """A PNG of the image on which an attack fools the most targets; of several, the first in shard order.

    Args:
        ledger: The store.
        row: Which dataset, source and attack.
        class_name: The name of a class index.

    Raises:
        MissingError: No image of that attack has been scored.
    """
    units = sorted(ledger.units(f"adversarial/{row.dataset}/{row.source_id}/{row.attack_id}"))
    said = [said for unit in islice(units, _PARTS) for said in _said(ledger, unit)]
    if not said:
        raise MissingError(f"{row.attack_id}: no image of this attack has been scored yet")
    best = max(said, key=lambda said: said.fooled)
    original = _pixels(ledger, Unit(best.unit.dataset, best.unit.part), best.key)
    adversarial = _pixels(ledger, best.unit, best.key)
    return _figure(row, best, original, adversarial, class_name)


def _said(ledger: Ledger, unit: Unit) -> Iterator[_Said]:
    """What the targets say of each image of an adversarial part."""
    scope = f"transfer/{unit.dataset}/{unit.source}/{unit.attack}"
    scored = sorted(scored for scored in ledger.units(scope) if scored.part == unit.part)
    after = [results.read(ledger.read(marker), name=marker.object) for marker in ledger.markers(scored)]
    clean = [replace(u, source="", attack="") for u in scored]
    before = [results.read(ledger.read(marker), name=marker.object) for marker in ledger.markers(clean)]
    names = [table.column("target")[0].as_py() for table in after if table.num_rows]
    for index in range(after[0].num_rows if after else 0):
        yield _Said(
            unit=unit,
            key=after[0].column("key")[index].as_py(),
            label=after[0].column("label")[index].as_py(),
            before={name: t.column("prediction")[index].as_py() for name, t in zip(names, before, strict=True)},
            after={name: t.column("prediction")[index].as_py() for name, t in zip(names, after, strict=True)},
        )


def _pixels(ledger: Ledger, unit: Unit, key: str) -> np.ndarray:
    """One stored image, (H, W, 3) uint8."""
    marker = ledger.marker(unit)
    images = parts.read(ledger.read(marker), name=marker.object)
    return images.pixels[images.keys.index(key)].permute(1, 2, 0).numpy()


def _figure(
    row: Success, said: _Said, original: np.ndarray, adversarial: np.ndarray, class_name: Callable[[int], str]
) -> bytes:
    perturbation = adversarial.astype(np.float64) / 255 - original.astype(np.float64) / 255
    most = row.epsilon if row.norm == "linf" else float(np.abs(perturbation).max()) or 1.0
    magnified = np.clip(0.5 + perturbation / (2 * most), 0, 1)
    figure = matplotlib.figure.Figure(figsize=(11, 4.6), layout="constrained", facecolor="white")
    axes = figure.subplots(1, 3)
    panels: tuple[tuple[np.ndarray, str, dict[str, int]], ...] = (
        (original, f"original: {_short(class_name(said.label))}", said.before),
        (magnified, f"perturbation × {1 / (2 * most):.0f}, around grey", {}),
        (adversarial, "adversarial, as stored", said.after),
    )
    for axis, (image, title, predictions) in zip(axes, panels, strict=True):
        axis.imshow(image, interpolation="nearest")
        axis.set_title(title, fontsize=11)
        axis.set_xticks([])
        axis.set_yticks([])
        lines = [
            f"{'✓' if c == said.label else '✗'} {name}: {_short(class_name(c))}" for name, c in predictions.items()
        ]
        axis.set_xlabel("\n".join(lines), fontsize=9, family="DejaVu Sans", loc="left")
    figure.suptitle(f"{row.attack} from {row.source}, ε = {row.budget}", fontsize=12)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
    return buffer.getvalue()


def _short(name: str) -> str:
    """The first of a WordNet synset's names."""
    return name.split(",")[0]
