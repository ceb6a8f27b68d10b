"""Scenarios that kill or stop processes, and that run several drivers at once."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from pipeline.ledger import Ledger
from pipeline.storage import Storage
from tests.chaos.proxy import Fault
from tests.chaos.scenario import Campaign, Row, new_store
from tests.chaos.site import LONG_INPUT, NODES, Damage, compare

# A driver has to end within this time after SIGTERM.
_STOP_S = 30


def kill_repeatedly(
    campaign: Campaign, fault: str, kill: Callable[[str], bool], count: int, *, driver: bool = False
) -> Row:
    """Kills one kind of process at random moments, in as many runs as it takes.

    Args:
        campaign: The campaign.
        fault: Description for the row.
        kill: Given the run's store, kills one process; false where none of the kind was running.
        count: Kills at scale 1.
        driver: Whether the driver is killed, and run again each time.
    """
    count = campaign.scaled(count, least=1)
    injected = 0
    seconds = 0.0
    damage = Damage(0, 0, 0)
    for _ in range(8):
        if injected >= count:
            break
        store = new_store()
        started = time.monotonic()
        injected += campaign.site.run_with_faults(
            campaign.recipe,
            store,
            partial(kill, store),
            times=count - injected,
            pause_s=(4.0, 9.0) if driver else (0.5, 4.0),
            driver=driver,
        )
        seconds += time.monotonic() - started - campaign.undisturbed_s
        damage += compare(campaign.reference, store)
    return Row(fault, injected, damage, seconds / max(1, injected))


def kill_in_both_stages(campaign: Campaign) -> Row:
    """Kills generators and scorers while parts of one shard's items are attacked and others of them are scored."""
    site = campaign.site
    one_shard = Campaign(site, scale=campaign.scale, shards=f"{LONG_INPUT}/s-*.tar")
    to_attack = sum(unit.kind == "adversarial" for unit in one_shard.reference)

    def kill(store: str) -> bool:
        ledger = Ledger(Storage(store))
        attacked, scored = (sum(1 for _ in ledger.list_units(kind)) for kind in ("adversarial", "transfer"))
        in_both = scored > 0 and attacked < to_attack
        return in_both and site.kill_worker(site.random.choice(("Generator", "Scorer")))

    return kill_repeatedly(one_shard, fault="either killed, parts of one shard in both stages", kill=kill, count=12)


def everything_at_once(campaign: Campaign) -> Row:
    """Every kind of kill at random moments, the driver's too, while the store throttles, in one long run."""
    site, store = campaign.site, new_store()
    kills = [
        lambda: site.kill_worker("Generator"),
        lambda: site.kill_worker("Scorer"),
        site.kill_node,
        site.kill_server,
    ]
    faults = [Fault("slow-down", 0.1), Fault("reset", 0.02), Fault("flip", 0.02), Fault("lost-response", 0.05)]
    before = site.proxy.counts.total()
    site.proxy.inject(*faults)
    injected = 0
    started = time.monotonic()
    rounds = campaign.scaled(4, least=2)
    for number in range(rounds):
        last = number + 1 == rounds
        process = site.start(campaign.recipe, store, "--retry-failed")
        for _ in range(3):
            try:
                process.communicate(timeout=site.random.uniform(2.0, 6.0))
                break
            except subprocess.TimeoutExpired:
                injected += site.random.choice(kills)()
        if not last and process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            injected += 1
        process.communicate(timeout=900 if last else None)
    site.complete(campaign.recipe, store)
    site.proxy.clear()
    injected += site.proxy.counts.total() - before
    seconds = (time.monotonic() - started - campaign.undisturbed_s) / injected
    return Row("all of these at random, in one run", injected, compare(campaign.reference, store), seconds)


def stopped(campaign: Campaign) -> Row:
    """SIGTERM and Ctrl-C: the driver ends within 30 s with exit code 130, and a later run resumes."""
    site, store = campaign.site, new_store()
    slowest_s = 0.0
    codes = set[int]()
    count = campaign.scaled(4, least=2)
    started = time.monotonic()
    for number in range(count):
        process = _start_and_await_commit(campaign, store)
        time.sleep(site.random.uniform(0, 3))
        end_s = _stop(process, (signal.SIGTERM, signal.SIGINT)[number % 2])
        slowest_s = max(slowest_s, end_s)
        codes.add(process.returncode)
    site.complete(campaign.recipe, store)
    return Row(
        "driver stopped (SIGTERM, SIGINT)",
        count,
        compare(campaign.reference, store),
        campaign.seconds_per_injection(started, count),
        f"slowest end {slowest_s:.0f} s; exit codes {sorted(codes)}",
        slowest_s < _STOP_S and codes <= {130, 0},  # 0 where the run had just finished
    )


def stopped_without_store(campaign: Campaign) -> Row:
    """SIGTERM while the S3 server is down: the driver still ends within 30 s."""
    site, store = campaign.site, new_store()
    slowest_s = 0.0
    codes = set[int]()
    count = 2
    started = time.monotonic()
    for _ in range(count):
        process = _start_and_await_commit(campaign, store)
        site.server.kill()
        time.sleep(2)
        slowest_s = max(slowest_s, _stop(process, signal.SIGTERM))
        codes.add(process.returncode)
        site.server.start()
    site.complete(campaign.recipe, store)
    return Row(
        "driver stopped while the S3 server is down",
        count,
        compare(campaign.reference, store),
        campaign.seconds_per_injection(started, count),
        f"slowest end {slowest_s:.0f} s; exit codes {sorted(codes)}",
        slowest_s < _STOP_S,
    )


def _start_and_await_commit(campaign: Campaign, store: str) -> "subprocess.Popen[str]":
    """Starts a driver and waits until it has committed something, or has ended."""
    process = campaign.site.start(campaign.recipe, store)
    before = _committed(store)
    while process.poll() is None and _committed(store) == before:
        time.sleep(0.2)
    return process


def _committed(store: str) -> int:
    return sum(1 for _ in Storage(store).list("markers"))


def _stop(process: "subprocess.Popen[str]", number: signal.Signals) -> float:
    """Sends a signal; returns the seconds until the process ended."""
    sent = time.monotonic()
    os.kill(process.pid, number)
    process.communicate(timeout=120)
    return time.monotonic() - sent


def two_at_once(campaign: Campaign) -> Row:
    """Two runs of one recipe: the same results, and no work done twice."""
    site, store = campaign.site, new_store()
    started = time.monotonic()
    for _ in range(NODES):  # room for both, so that they work side by side
        site.add_node()
    note = _await_both(campaign, [site.start(campaign.recipe, store) for _ in range(2)], store)
    for _ in range(NODES):
        site.remove_node()
    damage = compare(campaign.reference, store)
    seconds = campaign.seconds_per_injection(started, 1)
    return Row("two runs of one recipe at once", 1, damage, seconds, note, "(0, 0)" in note and "; 0 results" in note)


def clock_skew(campaign: Campaign) -> Row:
    """Two runs at once, one with a clock that is an hour ahead; in a folder, since S3 refuses such requests."""
    fault = "clock of a second run an hour off"
    if shutil.which("faketime") is None:
        return Row(fault, 0, Damage(0, 0, 0), 0.0, "install faketime", False)
    site, store = campaign.site, str(campaign.site.folder / "skewed")
    started = time.monotonic()
    recipe = site.recipe(f"{site.folder}/in/s-*.tar")
    skew = {"LD_PRELOAD": str(next(Path("/usr/lib").rglob("libfaketimeMT.so.1"))), "FAKETIME": "+1h"}
    note = _await_both(campaign, [site.start(recipe, store), site.start(recipe, store, environment=skew)], store)
    refused = site.start(recipe, new_store(), environment=skew)
    output, _ = refused.communicate(timeout=600)
    reason = "RequestTimeTooSkewed" if "TooSkewed" in output else output
    return Row(
        fault,
        2,
        compare(campaign.reference, store),
        campaign.seconds_per_injection(started, 2),
        f"{note}; on S3: exit code {refused.returncode}, {reason}",
        "(0, 0)" in note and refused.returncode == 2,
    )


def _await_both(campaign: Campaign, runs: "list[subprocess.Popen[str]]", store: str) -> str:
    """Waits for two runs; returns their exit codes, their notices of each other and the results made twice, as text."""
    outputs = [process.communicate(timeout=600)[0] for process in runs]
    codes = tuple(process.returncode for process in runs)
    if any(codes):
        campaign.site.complete(campaign.recipe, store)
    objects = [stored for folder in ("shards", "results") for stored in Storage(store).list(folder)]
    notices = sum("works on the same plan" in output for output in outputs)
    orphans = len(objects) - len(campaign.reference)
    return f"exit codes {codes}; {notices} reported the other run; {orphans} results made twice"
