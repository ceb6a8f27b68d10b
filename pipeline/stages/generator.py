"""Generator stage: makes the original and adversarial parts of an item."""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial

import torch

from pipeline.attack.recipe import Attack
from pipeline.data.parts import Images
from pipeline.data.sample import Part
from pipeline.ledger import CommittedParts, Unit
from pipeline.ledger.progress import StageTotals
from pipeline.models import registry
from pipeline.models.device import nondeterministic_operations
from pipeline.models.registry import ResolvedSource
from pipeline.plan.external import ExternalAttack, ExternalImages
from pipeline.plan.outline import Item
from pipeline.stages.originals import OriginalParts
from pipeline.stages.part_attacks import LoadedSource, PartAttacks
from pipeline.stages.prefetch import BackgroundCalls, NextResult, Prefetched
from pipeline.stages.stage import DeferredErrors, Stage


class Generator(Stage):
    """Turns items into original and adversarial parts, with one source model on its device at a time."""

    def set_up(self) -> None:
        """Starts without a model: the first item determines the source."""
        self._loaded: LoadedSource | None = None
        self._next_originals = NextResult[Item, Prefetched[Part, Images]]()
        self._start_next: Callable[[], None] | None = None

    def announce_next(self, item: Item, require: Callable[[], None]) -> None:
        """Lets the coming `run` read this item's first originals while it attacks its own last part."""

        def read() -> Prefetched[Part, Images]:
            require()
            return self._prefetch_originals(item, attempt=1)

        # Not earlier: the disk may not hold the current shard and the next one.
        self._start_next = partial(self._next_originals.start, item, read)

    def run(self, item: Item, *, attempt: int = 1) -> StageTotals:
        """Makes the missing originals and adversarial parts of an item.

        An error of one part or attack is raised at the end, after the others are made.

        Raises:
            ShardError: The shard is truncated, damaged or empty.
            StorageError: The store failed.
            WeightsError: The source's weights are gone or damaged.
            FloatingPointError: A gradient is not finite.
            Interrupted: The stage was asked to stop, and did so between two units.
        """
        self.start_item(item)
        start_next, self._start_next = self._start_next, None
        errors = DeferredErrors()
        committed = self.list_committed(item)
        originals = self._next_originals.take(item) or self._prefetch_originals(item, attempt)
        with contextlib.closing(originals), BackgroundCalls() as commits:
            for part, read in originals:
                self.require_not_stopped()
                with errors.deferring():
                    images = read()
                    if originals.exhausted and start_next is not None:
                        start_next()
                    attacks = PartAttacks(self, images, attempt=attempt)
                    for unit, attack in self._missing(part, item.source, committed):
                        self.require_not_stopped()
                        with errors.deferring():
                            commit = self._attack(unit, attack, attacks)
                            commits.submit(partial(self.commit_unit, commit, len(images.keys), errors))
        errors.raise_first()
        return self.take_totals()

    def _prefetch_originals(self, item: Item, attempt: int) -> Prefetched[Part, Images]:
        return Prefetched(OriginalParts(self, item, self.list_committed(item), attempt=attempt).incomplete())

    def _missing(
        self, part: Part, source: str, committed: CommittedParts
    ) -> Iterator[tuple[Unit, Attack | ExternalAttack]]:
        """The attacks that a part lacks."""
        for attack_id, attack in self.plan.attacks.items():
            unit = Unit(self.plan.dataset, part, source, attack_id)
            if unit not in committed:
                yield unit, attack

    def _attack(self, unit: Unit, attack: Attack | ExternalAttack, attacks: PartAttacks) -> Callable[[], None]:
        """Makes one adversarial part; returns the call that commits it, which does not use the device."""
        source = self._resolved(unit.source)
        if isinstance(attack, ExternalAttack):
            assert isinstance(source, ExternalImages)
            adversarial = attacks.read_external(attack, source)
        else:
            adversarial = attacks.run(attack, self._load_source(unit.source))
        return partial(adversarial.commit, self, unit, attack, source)

    def _resolved(self, identity: str) -> ResolvedSource | ExternalImages:
        return next(source for source in self.plan.sources if source.id == identity)

    def _load_source(self, identity: str) -> LoadedSource:
        if self._loaded is None or self._loaded.id != identity:
            source = self._resolved(identity)
            assert not isinstance(source, ExternalImages)
            self._loaded = None  # frees the device's memory before the next model is loaded
            classes = self.plan.job.data.classes
            network = registry.load_source(source, self.ledger.storage, classes=classes, device=self.device)
            operations: list[str] = []
            if self.device.type != "cpu":
                side = self.plan.job.data.preparation.crop
                images = torch.rand(1, 3, side, side, device=self.device)
                operations = nondeterministic_operations(network, images)
            self._loaded = LoadedSource(identity, network, tuple(operations))
        return self._loaded
