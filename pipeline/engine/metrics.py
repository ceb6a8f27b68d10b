"""What a run tells Ray's metrics, which Prometheus reads off every node: `ray_` and these names.

Recorded by the driver, of what workers tell it, so that what a worker had made, but for its last seconds, stays in the
sums when it dies. The dashboard in infra/grafana shows them.
"""

from typing import Any

from ray.util.metrics import Counter, Gauge

# Counters are read as `ray_gnp_..._total`.
IMAGES = Counter("gnp_images", "Images attacked (stage: generator), answers given (scorer)", ("run", "stage"))
PARTS = Counter("gnp_parts", "Adversarial parts, result files committed", ("run", "stage"))
SECONDS = Counter("gnp_phase_seconds", "Seconds that workers' threads spent", ("run", "stage", "phase"))
COUNTED = Counter(
    "gnp_counted", "Images attacked that the target gets right when clean", ("run", "source", "attack", "target")
)
FOOLED = Counter("gnp_fooled", "Of these, where the attack succeeded", ("run", "source", "attack", "target"))
QUARANTINED = Counter("gnp_quarantined", "Images that could not be used", ("run",))
TRIES_FAILED = Counter(
    "gnp_tries_failed", "Tries of an item that failed (cause: store, worker, item)", ("run", "stage", "cause")
)
FAILED = Counter("gnp_items_failed", "Items given up", ("run",))
LEFT = Gauge("gnp_items_left", "Items that are not through", ("run",))
WORKERS = Gauge("gnp_workers", "Workers that are at an item", ("run", "stage"))
MEMORY = Gauge(
    "gnp_memory_bytes", "The most that one worker on a node has held of its device's memory", ("run", "stage", "node")
)

ALL = IMAGES, PARTS, SECONDS, COUNTED, FOOLED, QUARANTINED, TRIES_FAILED, FAILED, LEFT, WORKERS, MEMORY


def exported(metric: Counter | Gauge) -> str:
    """What Prometheus reads a metric as."""
    return f"ray_{metric.info['name']}{'_total' if isinstance(metric, Counter) else ''}"


def add(counter: Counter, value: float, **tags: Any) -> None:
    """Adds to a counter; Ray refuses to add nothing."""
    if value > 0:
        counter.inc(value, tags)
