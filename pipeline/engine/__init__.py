"""The only room that imports Ray: two pools of actors, what they are handed, and what becomes of it.

    items ──▶ generators (a device and a source model each) ──▶ scorers (a device and all targets each) ──▶ receipts

Only receipts travel between the stages; images travel through the object store. What is done is read off the store
before and after, never off Ray: whatever a worker, a node or Ray itself loses is found missing and tried again.

    reconcile.py   a plan → what is missing → handed out, until the store shows each item done or it was given up
    office.py      the loop that hands items to workers, and settles what comes back
    worker.py      one actor: items in, receipts out
    cluster.py     joining or starting Ray; its nodes, and what its errors say
    pulse.py       what a run says of itself while it goes on, and what ends it early
"""

import os

# Before Ray is imported: no usage reports, no warning about its own change of default for CUDA_VISIBLE_DEVICES, and of
# its C++ side's messages on our terminal only the one that says so.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")

from pipeline.engine.run import Outcome, run
from pipeline.engine.scheduler import ATTEMPTS

__all__ = ["ATTEMPTS", "Outcome", "run"]
