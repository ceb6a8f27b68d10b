"""Running a plan on Ray: two pools of actors, the items they are assigned, and what becomes of each item.

    items ──▶ generators (a device and a source model each) ──▶ scorers (a device and all targets each) ──▶ results

Only item results travel between the stages; images travel through the object store. What is done is read off the store
before and after, never off Ray: whatever a worker, a node or Ray itself loses is found missing, and tried again.

    run.py         a plan → what the store lacks → worked on, until each item is done or given up
    scheduler.py   the loop: carries out decisions, takes in results
    decisions.py   what to do next: pure functions of the state, without Ray
    state.py       queues, workers and their states, tries
    actors.py      the Ray calls behind a worker
    worker.py      one actor: items in, item results out
    claimed.py     items that another run has claimed
    heartbeat.py   the run's record in the store, and progress reports
    signals.py     SIGTERM and Ctrl-C
    accounting.py  counts for display, log and metrics; metrics.py names them for Prometheus
    cluster.py     joining or starting Ray; its nodes
    ray_folder.py  where a local Ray keeps its files
    device.py      a worker's device
"""

import os

# Before Ray is imported: no usage reports, no warning about its own change of default for CUDA_VISIBLE_DEVICES, and no
# messages of its daemons, whose last lines it prints where one of them dies.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")

from pipeline.engine.cluster import connect
from pipeline.engine.decisions import ATTEMPTS
from pipeline.engine.run import Outcome, run_plan

__all__ = ["ATTEMPTS", "Outcome", "connect", "run_plan"]
