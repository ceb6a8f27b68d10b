"""The two stages that compute an item, without Ray: the generator attacks, the scorer predicts.

Both list what is committed and make only what is missing, part by part: a retry or a later run resumes where the last
one ended, and a preempted worker loses at most one part.
"""

from pipeline.stages.generator import Generator
from pipeline.stages.scorer import Scorer
from pipeline.stages.stage import Stage

STAGES: dict[str, type[Stage]] = {"generator": Generator, "scorer": Scorer}

__all__ = ["STAGES", "Generator", "Scorer", "Stage"]
