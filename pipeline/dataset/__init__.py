"""A store as data: results as one table, samples by key, batches for training."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.dataset.store import Dataset, Sample, open  # noqa: A004

__all__ = ["Dataset", "Sample", "open"]


def __getattr__(name: str) -> Any:
    """Imports torch and matplotlib only when a store is opened."""
    if name in __all__:
        from pipeline.dataset import store

        return getattr(store, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
