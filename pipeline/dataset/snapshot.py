"""What a training run reads of a store: chosen images of one pinned state of it, whatever is added to it meanwhile."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property

import numpy as np

from pipeline.errors import MissingError, RecipeError
from pipeline.ledger import Ledger, Marker, Unit, fingerprint, slug
from pipeline.maintenance import releases
from pipeline.results import predictions
from pipeline.results.predictions import Predictions
from pipeline.storage import sha256


@dataclass(frozen=True)
class Choice:
    """Which adversarial images are wanted; an empty field is no condition.

    Attributes:
        datasets: Names of what recipes call `[data]`, or identities.
        sources: Names of models attacked, or identities.
        attacks: Names of attacks, or identities.
        epsilon: The budget, exactly.
        success: `any` or `all` of the targets scored, or one target's name or identity: where it was fooled, and is
            right when clean.
        only_successful: Leave out where the attack did not succeed, or nobody has scored it, rather than only say where
            it did.
    """

    datasets: Sequence[str] = ()
    sources: Sequence[str] = ()
    attacks: Sequence[str] = ()
    epsilon: Fraction | None = None
    success: str = ""
    only_successful: bool = True


@dataclass(frozen=True)
class Piece:
    """The chosen images of one part.

    Attributes:
        url: Its store.
        marker: The part's commit; its facts are `n` alone.
        original: The commit of its originals; None where it is one of originals itself.
        chosen: (chosen,) which of the part's images, in tar order.
        success: (n,) bool, where the attack succeeded; None where nobody asked.
    """

    url: str
    marker: Marker
    original: Marker | None
    chosen: np.ndarray
    success: np.ndarray | None


@dataclass(frozen=True)
class Snapshot:
    """The chosen images of a store, or of several.

    Attributes:
        pieces: Store by store, in order of their units.
    """

    pieces: tuple[Piece, ...]

    @cached_property
    def id(self) -> str:
        """The fingerprint of all that is read: the same choice from the same state of a store gives the same."""
        return fingerprint(
            {
                "pieces": [
                    [each.marker.object, each.marker.sha256, _digest(each.chosen), _digest(each.success)]
                    for each in self.pieces
                ],
                "originals": [piece.marker.sha256 for piece in self.originals],
            }
        )

    @property
    def images(self) -> int:
        """How many adversarial images are chosen."""
        return sum(len(piece.chosen) for piece in self.pieces)

    @cached_property
    def originals(self) -> tuple[Piece, ...]:
        """The originals of all chosen parts, whole, each once."""
        found = {(piece.url, piece.original.unit): piece for piece in self.pieces if piece.original}
        return tuple(
            Piece(piece.url, piece.original, None, np.arange(piece.original.facts["n"]), None)
            for piece in found.values()
            if piece.original
        )


def take(ledger: Ledger, choice: Choice, *, version: str = "") -> Snapshot:
    """Pins what is committed now, or what a finalized version holds, and chooses from it.

    Args:
        ledger: The store.
        choice: What of it.
        version: The id of a finalized version, or `latest`; by default what stands.

    Raises:
        MissingError: There is no such version, or nothing adversarial is committed.
        RecipeError: A name is none of the store's, or nothing is left.
        IntegrityError: A manifest, a marker or a result file is damaged.
    """
    held = releases.objects(ledger, version) if version else None
    units = sorted(
        unit for unit in (ledger.units("adversarial") if held is None else held) if unit.kind == "adversarial"
    )
    if not units:
        raise MissingError(f"{ledger.storage.url}: no adversarial images are committed here; run generate first")
    units = _named(units, "datasets", lambda unit: unit.dataset, choice.datasets)
    units = _named(units, "sources", lambda unit: unit.source, choice.sources)
    units = _named(units, "attacks", lambda unit: unit.attack, choice.attacks)
    units = _of_epsilon(ledger, units, choice.epsilon)
    bases = sorted({_original(unit) for unit in units})
    markers = [held[unit] for unit in units] if held else [_lean(each, "n") for each in ledger.markers(units)]
    below = [held[unit] for unit in bases] if held else [_lean(each, "n_ok") for each in ledger.markers(bases)]
    originals = {marker.unit: marker for marker in below}
    succeeded = _succeeded(ledger, units, choice.success, held) if choice.success else {}
    pieces = []
    for marker in markers:
        success = succeeded.get(marker.unit)
        chosen = np.arange(marker.facts["n"])
        if choice.success and success is None:  # nobody has scored it
            success = np.zeros(len(chosen), bool)
        if success is not None and choice.only_successful:
            chosen = np.flatnonzero(success)
        if len(chosen):
            pieces.append(Piece(ledger.storage.url, marker, originals[_original(marker.unit)], chosen, success))
    if not pieces:
        raise RecipeError(f"{ledger.storage.url}: no image is left of {len(units)} parts; choose less strictly")
    return Snapshot(tuple(pieces))


def together(snapshots: Sequence[Snapshot]) -> Snapshot:
    """Several stores' images as one's, for training on all of them."""
    return Snapshot(tuple(piece for each in snapshots for piece in each.pieces))


def shared(one: Snapshot, other: Snapshot) -> int:
    """How many originals of one are originals of the other, too, in whatever store: those of the same parts."""
    there = {piece.marker.unit for piece in other.originals}
    return sum(len(piece.chosen) for piece in one.originals if piece.marker.unit in there)


def is_called(identity: str, name: str) -> bool:
    """Whether a name, or an identity itself, stands for an identity."""
    return identity == name or identity.rpartition("-")[0] == slug(name)


def _digest(found: np.ndarray | None) -> str:
    return "" if found is None else sha256(found.astype("<i8").tobytes())


def _original(unit: Unit) -> Unit:
    return replace(unit, source="", attack="", target="")


def _lean(marker: Marker, count: str) -> Marker:
    """A marker with the number of its images alone: a million of them are held."""
    return replace(marker, facts={"n": int(marker.fact(count))})


def _named(units: list[Unit], what: str, identity: Callable[[Unit], str], names: Sequence[str]) -> list[Unit]:
    """The units that some names choose.

    Raises:
        RecipeError: A name is none of theirs.
    """
    there = sorted({identity(unit) for unit in units})
    for name in names:
        if not any(is_called(each, name) for each in there):
            raise RecipeError(f"{what}: {name!r} is none of this store's: {', '.join(there)}")
    wanted = {each for each in there if not names or any(is_called(each, name) for name in names)}
    return [unit for unit in units if identity(unit) in wanted]


def _of_epsilon(ledger: Ledger, units: list[Unit], epsilon: Fraction | None) -> list[Unit]:
    """The units of attacks with a budget: one marker says it for each attack."""
    if epsilon is None:
        return units
    one = {unit.attack: unit for unit in units}
    found = {marker.unit.attack: Fraction(marker.fact("attack")["epsilon"]) for marker in ledger.markers(one.values())}
    if epsilon not in found.values():
        there = ", ".join(sorted({str(each) for each in found.values()}))
        raise RecipeError(f"epsilon: {epsilon} is none of this store's: {there}")
    return [unit for unit in units if found[unit.attack] == epsilon]


def _succeeded(
    ledger: Ledger, units: Sequence[Unit], success: str, held: dict[Unit, Marker] | None
) -> dict[Unit, np.ndarray]:
    """Where the attack succeeded, by adversarial unit; of what nobody has scored there is nothing."""
    wanted = set(units)
    scored = [
        unit
        for unit in (ledger.units("transfer") if held is None else held)
        if unit.kind == "transfer" and replace(unit, target="") in wanted
    ]
    if not scored:
        raise RecipeError("success: no target has been scored on these images; run generate or score first")
    if success not in ("any", "all"):
        there = sorted({unit.target for unit in scored})
        scored = [unit for unit in scored if is_called(unit.target, success)]
        if not scored:
            raise RecipeError(f"success: {success!r} is no target of this store: any, all, {', '.join(there)}")
    bases = sorted({replace(unit, source="", attack="") for unit in scored})

    def told(units: Sequence[Unit]) -> Iterator[Predictions]:
        return predictions.of(ledger, ledger.markers(units) if held is None else map(held.__getitem__, units))

    clean = {each.unit: each for each in told(bases)}
    found: dict[Unit, np.ndarray] = {}
    for each in told(sorted(scored)):
        before = clean[replace(each.unit, source="", attack="")]
        each.require_images_of(before)
        here = each.fooled & before.correct & each.attacked
        unit = replace(each.unit, target="")
        together = np.logical_and if success == "all" else np.logical_or
        found[unit] = together(found[unit], here) if unit in found else here
    return found
