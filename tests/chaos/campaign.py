"""The fault campaign, `make chaos`: injects real faults and compares what is committed with an undisturbed run.

Prints a row per fault: the number of injections; results lost, made twice or wrong, all of which have to be 0; and the
seconds that an injection cost, beyond the undisturbed run.
"""

import argparse
import json
import logging
import sys
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.chaos import processes, storage_faults, worker_faults
from tests.chaos.scenario import Campaign, Row, Scenario
from tests.chaos.site import Damage, Site, site
from tests.conftest import ROOT


def scenarios(place: Site) -> dict[str, Scenario]:
    """Every scenario by its short name, in the order of the campaign."""
    kill = processes.kill_repeatedly
    return {
        "generator": partial(kill, fault="generator killed", kill=lambda _: place.kill_worker("Generator"), count=12),
        "scorer": partial(kill, fault="scorer killed", kill=lambda _: place.kill_worker("Scorer"), count=12),
        "both": processes.kill_in_both_stages,
        "node": partial(kill, fault="node killed", kill=lambda _: place.kill_node(), count=10),
        "server": partial(kill, fault="S3 server killed and restarted", kill=lambda _: place.kill_server(), count=10),
        "drain": partial(kill, fault="node drained (preemption notice)", kill=lambda _: place.drain_node(), count=4),
        "driver": partial(kill, fault="driver killed, and run again", kill=lambda _: True, count=6, driver=True),
        "all": processes.everything_at_once,
        **{kind: partial(storage_faults.storage_fault, kind=kind) for kind in storage_faults.SHARES},
        "disk": storage_faults.full_disk,
        "shards": storage_faults.damaged_shards,
        "checkpoint": storage_faults.missing_checkpoint,
        "starts": worker_faults.failed_starts,
        "sticky": worker_faults.sticky_errors,
        "memory": worker_faults.out_of_memory,
        "poison": worker_faults.poison,
        "stopped": processes.stopped,
        "stopped-without-store": processes.stopped_without_store,
        "two": processes.two_at_once,
        "clock": processes.clock_skew,
    }


def table(rows: list[Row]) -> Table:
    """The rows as they are printed."""
    title = "Fault campaign: every committed object compared with an undisturbed run's"
    printed = Table(title=title, title_justify="left")
    for name in ("fault", "injected", "lost", "twice", "wrong", "s each", "observed"):
        printed.add_column(name, justify="left" if name in ("fault", "observed") else "right", overflow="fold")
    for row in rows:
        damage = row.damage
        counts = (row.injected, damage.lost, damage.twice, damage.wrong)
        note = row.note if row.as_promised else f"NOT AS PROMISED: {row.note}"
        printed.add_row(row.fault, *map(str, counts), f"{max(0.0, row.seconds):.1f}", note)
    return printed


def main() -> int:
    """Runs the campaign; returns 0 if no result was lost, made twice or wrong, and all else was as promised."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--scale", type=float, default=1.0, help="less than 1 for fewer injections")
    parser.add_argument("--only", nargs="*", default=[], help="only these scenarios, by short name")
    parser.add_argument("--shards", type=int, default=12, help="input shards, of two parts each")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "chaos")
    arguments = parser.parse_args()
    logging.getLogger("ray").setLevel(logging.WARNING)
    console = Console(width=None if sys.stdout.isatty() else 180)
    started = time.monotonic()
    rows: list[Row] = []
    with site(arguments.folder, seed=arguments.seed, shards=arguments.shards) as place:
        campaign = Campaign(place, scale=arguments.scale)
        console.print(f"seed {arguments.seed}; undisturbed: {campaign.undisturbed_s:.1f} s", highlight=False)
        for name, scenario in scenarios(place).items():
            if arguments.only and name not in arguments.only:
                continue
            rows.append(scenario(campaign))
            console.print(f"{time.monotonic() - started:6.0f} s  {rows[-1]}", highlight=False, markup=False)
    console.print(table(rows))
    seconds = time.monotonic() - started
    damage = sum((row.damage for row in rows), Damage(0, 0, 0))
    console.print(
        f"{sum(row.injected for row in rows)} injections in {seconds / 60:.1f} minutes (seed {arguments.seed}): "
        f"{damage.lost} lost, {damage.twice} twice, {damage.wrong} wrong",
        highlight=False,
    )
    (arguments.folder / "campaign.json").write_text(
        json.dumps({"seed": arguments.seed, "seconds": seconds, "rows": [asdict(row) for row in rows]}, indent=1)
    )
    return 0 if damage == Damage(0, 0, 0) and all(row.as_promised for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
