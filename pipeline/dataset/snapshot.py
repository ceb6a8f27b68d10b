"""A snapshot: the images that a training run reads, pinned while the store grows."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property

import numpy as np

from pipeline.errors import MissingError, RecipeError
from pipeline.ledger import Ledger, Marker, Unit, UnitKind, fingerprint, name_in_id, slug
from pipeline.maintenance import releases
from pipeline.results.predictions import StoredPredictions, predictions_from_markers
from pipeline.storage import sha256


@dataclass(frozen=True)
class ImageFilter:
    """Which adversarial images are read; an empty field selects all.

    Attributes:
        datasets: Names of data in recipes' `[data]`, or identities.
        sources: Names of models attacked, or identities.
        attacks: Names of attacks, or identities.
        epsilon: The budget, exactly.
        success: `any` or `all` of the targets scored, or one target's name or identity: images which these targets
            classify correctly when clean, and on which the attack succeeds.
        only_successful: Leave out the other images, also those that no target has scored; if false, keep and flag them.
    """

    datasets: Sequence[str] = ()
    sources: Sequence[str] = ()
    attacks: Sequence[str] = ()
    epsilon: Fraction | None = None
    success: str = ""
    only_successful: bool = True


@dataclass(frozen=True)
class PartSelection:
    """The selected images of one part.

    Attributes:
        store_url: The store that holds the part.
        marker: The part's marker, with one fact: `n`, its number of images.
        original: The marker of its originals; None if the part is one of originals itself.
        indices: (selected,) int64, positions of the selected images in the part.
        success: (n,) bool, where the attack succeeded; None if success was not asked for.
    """

    store_url: str
    marker: Marker
    original: Marker | None
    indices: np.ndarray
    success: np.ndarray | None


@dataclass(frozen=True)
class Snapshot:
    """The selected images of one store, or of several.

    Attributes:
        parts: Store by store, in the order of their units.
    """

    parts: tuple[PartSelection, ...]

    @cached_property
    def id(self) -> str:
        """Fingerprint of all that is read: equal filters on equal stores give equal fingerprints."""
        return fingerprint(
            {
                "pieces": [  # a key of identities, whatever the class is called
                    [part.marker.object, part.marker.sha256, _array_sha256(part.indices), _array_sha256(part.success)]
                    for part in self.parts
                ],
                "originals": [part.marker.sha256 for part in self.originals],
            }
        )

    @property
    def images(self) -> int:
        """Number of selected adversarial images."""
        return sum(len(part.indices) for part in self.parts)

    @cached_property
    def originals(self) -> tuple[PartSelection, ...]:
        """All originals of the selected parts, each once."""
        parts = {(part.store_url, part.original.unit): part for part in self.parts if part.original}
        return tuple(
            PartSelection(part.store_url, part.original, None, np.arange(part.original.facts["n"]), None)
            for part in parts.values()
            if part.original
        )


def take_snapshot(ledger: Ledger, image_filter: ImageFilter, *, version: str = "") -> Snapshot:
    """Selects images from what is committed now, or from a finalized version.

    Args:
        ledger: The store.
        image_filter: Which images.
        version: The id of a finalized version, or `latest`; by default what is committed now.

    Raises:
        MissingError: There is no such version, or no adversarial part is committed.
        RecipeError: A name is not in the store, or no image is left.
        IntegrityError: A manifest, a marker or a result file is damaged.
    """
    committed = _Committed(ledger, version)
    units = sorted(committed.units("adversarial"))
    if not units:
        raise MissingError(f"{ledger.storage.url}: no adversarial images are committed here; run generate first")
    units = _with_names(units, "datasets", lambda unit: unit.dataset, image_filter.datasets)
    units = _with_names(units, "sources", lambda unit: unit.source, image_filter.sources)
    units = _with_names(units, "attacks", lambda unit: unit.attack, image_filter.attacks)
    units = _with_epsilon(ledger, units, image_filter.epsilon)
    markers = committed.counted_markers(units)
    originals = {marker.unit: marker for marker in committed.counted_markers(sorted({_original(u) for u in units}))}
    success_by_unit = _success(committed, units, image_filter.success) if image_filter.success else {}
    parts = []
    for marker in markers:
        success = success_by_unit.get(marker.unit)
        indices = np.arange(marker.facts["n"])
        if image_filter.success and success is None:  # no target has scored this part
            success = np.zeros(len(indices), bool)
        if success is not None and image_filter.only_successful:
            indices = np.flatnonzero(success)
        if len(indices):
            original = originals[_original(marker.unit)]
            parts.append(PartSelection(ledger.storage.url, marker, original, indices, success))
    if not parts:
        raise RecipeError(f"{ledger.storage.url}: no image is left of {len(units)} parts; choose less strictly")
    return Snapshot(tuple(parts))


def merge(snapshots: Sequence[Snapshot]) -> Snapshot:
    """One snapshot with the images of several, for training on several stores."""
    return Snapshot(tuple(part for snapshot in snapshots for part in snapshot.parts))


def require_one_size(snapshot: Snapshot, ledgers: Sequence[Ledger]) -> None:
    """Refuses images of several sizes, which no batch can hold, by what the plans of their stores say.

    Raises:
        RecipeError: The images of two datasets differ in size.
    """
    datasets = {part.marker.unit.dataset for part in snapshot.parts}
    if len(datasets) == 1:
        return
    plans = [ledger.read_plan(key) for ledger in ledgers for key in ledger.plan_keys()]
    sides = {plan["dataset"]: plan.get("data", {}).get("crop") for plan in plans}
    (first, side), *others = sorted((dataset, sides.get(dataset)) for dataset in datasets)
    for dataset, other in others:
        if side and other and side != other:
            raise RecipeError(
                f"datasets: images of {first} have {side} x {side} pixels, of {dataset} {other} x {other}; choose "
                "datasets of one size"
            )


def shared_originals(first: Snapshot, second: Snapshot) -> int:
    """How many originals of the first snapshot the second has too: those of equal units or bytes, in any stores."""
    known = {name for part in second.originals for name in (part.marker.unit, part.marker.sha256)}
    return sum(
        len(part.indices) for part in first.originals if not known.isdisjoint((part.marker.unit, part.marker.sha256))
    )


def matches_name(identity: str, name: str) -> bool:
    """Whether an identity is of that name, or is that name itself."""
    return identity == name or name_in_id(identity) == slug(name)


class _Committed:
    """The units and markers of a store: committed now, or listed by a finalized version."""

    def __init__(self, ledger: Ledger, version: str) -> None:
        self.ledger = ledger
        self._version = releases.markers(ledger, version) if version else None

    def units(self, kind: UnitKind) -> Iterable[Unit]:
        if self._version is None:
            return self.ledger.list_units(kind)
        return (unit for unit in self._version if unit.kind == kind)

    def counted_markers(self, units: Sequence[Unit]) -> list[Marker]:
        """Markers of image parts with one fact, `n`: a snapshot holds up to a million of them."""
        if self._version is None:
            return [_with_count(marker) for marker in self.ledger.read_markers(units)]
        return [self._version[unit] for unit in units]

    def predictions(self, units: Sequence[Unit]) -> Iterator[StoredPredictions]:
        markers = self.ledger.read_markers(units) if self._version is None else map(self._version.__getitem__, units)
        return predictions_from_markers(self.ledger, markers)


def _with_count(marker: Marker) -> Marker:
    count = marker.fact("n" if marker.unit.attack else "n_ok")
    return replace(marker, facts={"n": int(count)})


def _array_sha256(array: np.ndarray | None) -> str:
    return "" if array is None else sha256(array.astype("<i8").tobytes())


def _original(unit: Unit) -> Unit:
    return replace(unit, source="", attack="", target="")


def _with_names(
    units: list[Unit], setting: str, identity_of: Callable[[Unit], str], names: Sequence[str]
) -> list[Unit]:
    """The units with one of some names; all units if no names are given.

    Raises:
        RecipeError: No unit has one of the names.
    """
    identities = sorted({identity_of(unit) for unit in units})
    for name in names:
        if not any(matches_name(identity, name) for identity in identities):
            raise RecipeError(f"{setting}: {name!r} is none of this store's: {', '.join(identities)}")
    if not names:
        return units
    wanted = {identity for identity in identities if any(matches_name(identity, name) for name in names)}
    return [unit for unit in units if identity_of(unit) in wanted]


def _with_epsilon(ledger: Ledger, units: list[Unit], epsilon: Fraction | None) -> list[Unit]:
    """The units of attacks with that budget, which is read from one marker per attack."""
    if epsilon is None:
        return units
    unit_by_attack = {unit.attack: unit for unit in units}
    budgets = {
        marker.unit.attack: Fraction(marker.fact("attack")["epsilon"])
        for marker in ledger.read_markers(unit_by_attack.values())
    }
    if epsilon not in budgets.values():
        stored = ", ".join(sorted({str(budget) for budget in budgets.values()}))
        raise RecipeError(f"epsilon: {epsilon} is none of this store's: {stored}")
    return [unit for unit in units if budgets[unit.attack] == epsilon]


def _success(committed: _Committed, units: Sequence[Unit], targets: str) -> dict[Unit, np.ndarray]:
    """Adversarial unit → (n,) bool, where the attack succeeded; units that no target has scored are left out.

    Args:
        committed: The store.
        units: Adversarial units.
        targets: `any` or `all` targets, or the name of one.

    Raises:
        RecipeError: None of the units has been scored, or there is no target of that name.
    """
    wanted = set(units)
    scored = [unit for unit in committed.units("transfer") if replace(unit, target="") in wanted]
    if not scored:
        raise RecipeError("success: no target has been scored on these images; run generate or score first")
    if targets not in ("any", "all"):
        target_ids = sorted({unit.target for unit in scored})
        scored = [unit for unit in scored if matches_name(unit.target, targets)]
        if not scored:
            raise RecipeError(f"success: {targets!r} is no target of this store: any, all, {', '.join(target_ids)}")
    clean_units = sorted({replace(unit, source="", attack="") for unit in scored})
    clean_by_unit = {clean.unit: clean for clean in committed.predictions(clean_units)}
    combine = np.logical_and if targets == "all" else np.logical_or
    success_by_unit: dict[Unit, np.ndarray] = {}
    for transfer in committed.predictions(sorted(scored)):
        clean = clean_by_unit[replace(transfer.unit, source="", attack="")]
        transfer.require_same_images(clean)
        success = transfer.fooled & clean.correct & transfer.attacked
        unit = replace(transfer.unit, target="")
        success_by_unit[unit] = combine(success_by_unit[unit], success) if unit in success_by_unit else success
    return success_by_unit
