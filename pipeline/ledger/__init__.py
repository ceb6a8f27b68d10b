"""What is committed in a store (markers), who is working on it (leases), and how far it is (progress)."""

from pipeline.ledger.markers import (
    KINDS,
    Committed,
    Failure,
    Kind,
    Ledger,
    Marker,
    Unit,
    fingerprint,
    named,
    opened,
    parse,
    planned,
    slug,
)

__all__ = [
    "KINDS",
    "Committed",
    "Failure",
    "Kind",
    "Ledger",
    "Marker",
    "Unit",
    "fingerprint",
    "named",
    "opened",
    "parse",
    "planned",
    "slug",
]
