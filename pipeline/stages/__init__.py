"""What one actor does with one item: the two stages, without Ray.

Both ask the ledger what is missing and make only that, part by part, so that a retry or a second run goes on where the
last one stood, and a preempted worker loses one part at most.
"""

from pipeline.stages.generator import Generator
from pipeline.stages.scorer import Scorer
from pipeline.stages.stage import Stage

STAGES: dict[str, type[Stage]] = {"generator": Generator, "scorer": Scorer}

__all__ = ["STAGES", "Generator", "Scorer", "Stage"]
