"""Names of a run's Ray metrics, which Prometheus reads from every node, prefixed with `ray_`.

The driver records them from its workers' reports, so a worker's counts survive its death, except its last seconds. The
dashboard in infra/grafana shows them.
"""

from typing import Any

from ray.util.metrics import Counter, Gauge

# Counters are read as `ray_gnp_..._total`.
IMAGES = Counter("gnp_images", "Images attacked (stage: generator), predictions made (scorer)", ("run", "stage"))
PARTS = Counter("gnp_parts", "Adversarial parts (generator) and result files (scorer) committed", ("run", "stage"))
SECONDS = Counter("gnp_phase_seconds", "Seconds spent by workers' threads", ("run", "stage", "phase"))
_CELL = ("run", "source", "attack", "target")
COUNTED = Counter("gnp_counted", "Attacked images that the target classifies correctly when clean", _CELL)
FOOLED = Counter("gnp_fooled", "Images among gnp_counted on which the attack succeeded", _CELL)
QUARANTINED = Counter("gnp_quarantined", "Images that could not be used", ("run",))
TRIES_FAILED = Counter(
    "gnp_tries_failed", "Failed tries of items (cause: store, worker, item)", ("run", "stage", "cause")
)
FAILED = Counter("gnp_items_failed", "Items given up", ("run",))
LEFT = Gauge("gnp_items_left", "Items that are not finished", ("run",))
WORKERS = Gauge("gnp_workers", "Workers that are busy with an item", ("run", "stage"))
MEMORY = Gauge("gnp_memory_bytes", "Most device memory that one worker on a node has held", ("run", "stage", "node"))

ALL = IMAGES, PARTS, SECONDS, COUNTED, FOOLED, QUARANTINED, TRIES_FAILED, FAILED, LEFT, WORKERS, MEMORY


def exported(metric: Counter | Gauge) -> str:
    """The name of a metric in Prometheus."""
    return f"ray_{metric.info['name']}{'_total' if isinstance(metric, Counter) else ''}"


def add(counter: Counter, value: float, **tags: Any) -> None:
    """Adds to a counter; Ray refuses to add 0."""
    if value > 0:
        counter.inc(value, tags)
