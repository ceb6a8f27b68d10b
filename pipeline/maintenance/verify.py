"""The audit of a store: re-reads every committed object and checks it against its marker, its part and the plans."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.data.sample import Part
from pipeline.errors import GnpError
from pipeline.ledger import UNIT_KINDS, Ledger, Unit
from pipeline.maintenance.verify_part import CheckError, PartVerifier
from pipeline.maintenance.verify_records import Problem, check_records
from pipeline.results.predictions import group_by_part
from pipeline.storage import sha256

# A dataset and one of its parts.
_PartKey = tuple[str, Part]


@dataclass(frozen=True)
class Audit:
    """The result of an audit.

    Attributes:
        objects: Number of objects that were re-read and hashed.
        images: Number of adversarial images that were compared with their originals.
        parts: Number of parts that were re-read.
        total_parts: Number of parts in the store.
        problems: Problems that were found.
    """

    objects: int
    images: int
    parts: int
    total_parts: int
    problems: list[Problem]


def audit(ledger: Ledger, *, fraction: float = 1.0, seed: int = 0) -> Audit:
    """Checks hashes, counts, keys, epsilon on the stored pixels, and that all results that plans want are there.

    Args:
        ledger: The store.
        fraction: The share of the parts to re-read, with all results on them; at least one part unless it is 0.
            Missing results are found in all parts.
        seed: Selects the parts.
    """
    # Results are listed before what they were computed from: a run that commits meanwhile never seems to lack anything.
    units = [unit for kind in reversed(UNIT_KINDS) for unit in ledger.list_units(kind)]
    problems = list(check_records(ledger, set(units)))
    parts = group_by_part(units)
    drawn = _draw_parts(parts, fraction, seed)
    objects = images = 0
    for _, part_units in sorted(drawn.items()):
        verifier = PartVerifier(ledger)
        for unit in part_units:
            objects += 1
            try:
                images += verifier.check(unit)
            except (CheckError, GnpError, ValueError, KeyError, TypeError) as error:
                problems.append(Problem(ledger.storage.url_of(unit.marker_key), str(error) or type(error).__name__))
    return Audit(objects, images, len(drawn), len(parts), problems)


def _draw_parts(parts: Mapping[_PartKey, Sequence[Unit]], fraction: float, seed: int) -> dict[_PartKey, Sequence[Unit]]:
    """The parts whose hash with the seed lies below the fraction; at least one unless the fraction is 0."""
    positions = {part: _position(part, seed) for part in parts}
    first = min(positions, key=lambda part: positions[part], default=None) if fraction else None
    return {part: units for part, units in parts.items() if positions[part] < fraction or part == first}


def _position(part_key: _PartKey, seed: int) -> float:
    """A number in [0, 1), by hash of a part and a seed."""
    dataset, part = part_key
    digest = sha256(f"{seed}/{dataset}/{part.shard}/{part.index}".encode())
    return int(digest[:13], 16) / 16**13
