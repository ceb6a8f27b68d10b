"""Counts of correct predictions and successful attacks, taken while parts are scored, for display and warnings."""

import logging
from dataclasses import replace

from pipeline.errors import IntegrityError, MissingError
from pipeline.ledger import Ledger, Unit
from pipeline.ledger.progress import StageTotals
from pipeline.results import schema
from pipeline.results.predictions import StoredPredictions

log = logging.getLogger(__name__)


class SuccessCounts:
    """Counts clean images that each target classifies correctly, and each attack's successes among them.

    Called in the thread that commits, unit after unit: a part's clean predictions come before the adversarial ones.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._clean: dict[str, StoredPredictions] = {}  # by target, of the last part

    def add(self, predictions: StoredPredictions) -> StageTotals:
        """Counts of one result file; predictions on clean images are kept for the attacks that follow."""
        unit = predictions.unit
        if not unit.attack:
            self._clean[unit.target] = predictions
            if predictions.table.num_rows:
                target, correct = predictions.constant("target"), predictions.correct
                return StageTotals(clean={target: len(correct)}, correct={target: int(correct.sum())})
        elif predictions.table.num_rows:
            try:
                clean = self._clean_of(unit)
                predictions.require_same_images(clean)
            except (IntegrityError, MissingError) as error:  # the results themselves are valid
                log.warning("%s is not counted: %s", unit.data_key, error)
                return StageTotals()
            cell = predictions.constant("source"), predictions.constant("attack"), predictions.constant("target")
            eligible = predictions.attacked & clean.correct
            return StageTotals(
                eligible={cell: int(eligible.sum())}, fooled={cell: int((predictions.fooled & eligible).sum())}
            )
        return StageTotals()

    def _clean_of(self, unit: Unit) -> StoredPredictions:
        """The target's predictions on the part's clean images; read from the store if an earlier run made them."""
        clean = self._clean.get(unit.target)
        if clean is None or clean.unit.part != unit.part:
            marker = self._ledger.read_marker(replace(unit, source="", attack=""))
            table = schema.read_parquet(self._ledger.read_data(marker), name=marker.object)
            clean = StoredPredictions(marker.unit, marker.object, table)
            self._clean[unit.target] = clean
        return clean
