"""What an epoch of training is made of: batch size, clean images, weights of attacks, order."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.dataset.snapshot import PartSelection, Snapshot, matches_name
from pipeline.errors import RecipeError


@dataclass(frozen=True)
class Mix:
    """Composition and order of an epoch. Loader states contain its `repr`, so names and order of fields are fixed.

    Attributes:
        batch_size: Images per batch; the last batch of a worker has fewer, or one more, never a single image.
        pairs: Batches also hold the clean image of each adversarial one, as `clean`: for AdvProp and similar training.
        clean: Share of clean images in an epoch, in [0, 1); they are taken in turn, or repeated, to reach it.
        weights: Attack (name or identity) → how often each of its images comes in an epoch; by default once. Of a
            fraction, every epoch takes other images.
        seed: Seed of the order.
        shuffled: If false, images come in the order in which they are stored.
        parts_at_once: Number of parts that are shuffled together. A worker holds these in memory, encoded, as many
            again that are prefetched, and briefly as many that have been read; with pairs, their originals too.
    """

    batch_size: int = 32
    pairs: bool = False
    clean: float = 0.0
    weights: Mapping[str, float] | None = None
    seed: int = 0
    shuffled: bool = True
    parts_at_once: int = 4

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.parts_at_once < 1:
            raise RecipeError(f"batch_size = {self.batch_size}, parts_at_once = {self.parts_at_once}: at least 1")
        if self.seed < 0:
            raise RecipeError(f"seed = {self.seed}: at least 0")
        if not 0 <= self.clean < 1:
            raise RecipeError(f"clean = {self.clean}: the share of clean images, at least 0 and less than 1")
        if self.clean and self.pairs:
            raise RecipeError("clean, pairs: every pair has its clean image; choose one of the two")
        for attack, weight in (self.weights or {}).items():
            if not 0 <= weight < 1000:
                raise RecipeError(
                    f"weights: {attack} = {weight}: how often each image comes, at least 0 and less than 1000"
                )


@dataclass(frozen=True)
class WeightedParts:
    """Parts of one dataset, source and attack, or originals, and how often each of their images comes in an epoch."""

    parts: tuple[PartSelection, ...]
    weight: float


def weigh_parts(snapshot: Snapshot, mix: Mix) -> list[WeightedParts]:
    """The parts of a snapshot by dataset, source and attack, and last the originals if clean images are mixed in.

    Raises:
        RecipeError: A weight is for an attack that is not in the snapshot, an attack has two weights, or all are 0.
    """
    grouped: dict[tuple[str, str, str], list[PartSelection]] = defaultdict(list)
    for part in snapshot.parts:
        unit = part.marker.unit
        grouped[unit.dataset, unit.source, unit.attack].append(part)
    _require_known_attacks({attack for _, _, attack in grouped}, mix.weights or {})
    groups = []
    for (_, _, attack), parts in sorted(grouped.items()):
        weights = [weight for name, weight in (mix.weights or {}).items() if matches_name(attack, name)]
        if len(weights) > 1:
            raise RecipeError(f"weights: {attack} is given {len(weights)}: {', '.join(map(str, weights))}; give it one")
        groups.append(WeightedParts(tuple(parts), weights[0] if weights else 1.0))
    if not any(group.weight for group in groups):
        raise RecipeError("weights: all are 0, which leaves no image")
    if mix.clean:
        adversarial = sum(group.weight * len(part.indices) for group in groups for part in group.parts)
        originals = sum(len(part.indices) for part in snapshot.originals)
        groups.append(WeightedParts(snapshot.originals, mix.clean / (1 - mix.clean) * adversarial / originals))
    return groups


def _require_known_attacks(attacks: set[str], weights: Mapping[str, float]) -> None:
    for name in weights:
        if not any(matches_name(attack, name) for attack in attacks):
            raise RecipeError(
                f"weights: {name!r} is none of the attacks that were chosen: {', '.join(sorted(attacks))}"
            )
