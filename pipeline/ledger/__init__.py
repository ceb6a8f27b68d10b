"""What is committed in a store (markers), which runs work on it (leases), and how far a plan is (progress)."""

from pipeline.ledger.committed import CommittedParts
from pipeline.ledger.keys import (
    UNIT_KINDS,
    Unit,
    UnitKind,
    fingerprint,
    make_id,
    name_in_id,
    parse_data_key,
    parse_marker_key,
    slug,
    unit_from_record,
)
from pipeline.ledger.markers import Ledger, Marker, open_ledger, store_url
from pipeline.ledger.plans import Failure, missing_from_plan

__all__ = [
    "UNIT_KINDS",
    "CommittedParts",
    "Failure",
    "Ledger",
    "Marker",
    "Unit",
    "UnitKind",
    "fingerprint",
    "make_id",
    "missing_from_plan",
    "name_in_id",
    "open_ledger",
    "parse_data_key",
    "parse_marker_key",
    "slug",
    "store_url",
    "unit_from_record",
]
