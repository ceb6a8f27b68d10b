"""Transferable adversarial examples as a distributed data pipeline.

from pipeline import Recipe, attack, dataset, generate, report

outcome = generate("recipe.toml", "results")              # what `gnp generate` does; or a `Recipe` made in Python
rates = report.of("results").success                      # what `gnp report` shows
frame = dataset.open("results").results().to_pandas()     # every prediction

mi = attack.build("gnp+mi", source=model, epsilon=16 / 255)    # on plain tensors, without any of the above
adversarial = mi(images, labels)
"""

import importlib
from typing import TYPE_CHECKING, Any

from pipeline.version import VERSION

__version__ = VERSION

if TYPE_CHECKING:
    from pipeline import attack, dataset
    from pipeline.analysis import report
    from pipeline.api import Recipe, generate

__all__ = ["Recipe", "__version__", "attack", "dataset", "generate", "report"]


def __getattr__(name: str) -> Any:
    """Imports what takes torch and Ray when it is asked for: reading a store needs neither."""
    if name in ("Recipe", "generate"):
        return getattr(importlib.import_module("pipeline.api"), name)
    if name == "report":
        return importlib.import_module("pipeline.analysis.report")
    if name in ("attack", "dataset"):
        return importlib.import_module(f"pipeline.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
