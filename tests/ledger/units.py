"""Units of each kind, for tests."""

from pipeline.data.sample import Part
from pipeline.ledger import Unit

PART = Part("shard-0001-of-x", 3, 5)
UNITS = [
    Unit("data-0", PART),
    Unit("data-0", PART, source="net-1", attack="mi-2"),
    Unit("data-0", PART, target="net-3"),
    Unit("data-0", PART, source="net-1", attack="mi-2", target="net-3"),
]
