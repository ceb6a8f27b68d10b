"""Scenarios in which a worker itself fails: `tests.chaos.driver` runs with workers that count down injected faults."""

import time
import uuid
from pathlib import Path

from pipeline.analysis.report import summarise
from pipeline.ledger import Ledger
from pipeline.maintenance.verify import audit
from pipeline.storage import Storage
from tests.chaos.scenario import Campaign, Row, new_store
from tests.chaos.site import Damage, compare


def failed_starts(campaign: Campaign) -> Row:
    """Workers that fail to start twice."""
    return _counted_fault(campaign, "worker fails to start twice in a row", "fail-start", 2)


def sticky_errors(campaign: Campaign) -> Row:
    """An error after which the process cannot use its device any more."""
    count = campaign.scaled(8, least=2)
    return _counted_fault(campaign, "sticky device error (CUDA-like)", "sticky", count)


def _counted_fault(campaign: Campaign, fault: str, kind: str, count: int) -> Row:
    site, store = campaign.site, new_store()
    folder = _faults_folder(campaign, **{kind: count})
    started = time.monotonic()
    process = site.start(campaign.recipe, store, faults=str(folder))
    output, _ = process.communicate(timeout=600)
    code = process.returncode
    if code != 0:
        site.complete(campaign.recipe, store)
    injected = _injected(folder, kind)
    note = "" if code == 0 else f"took a second run: {output.strip().splitlines()[-1][:100]}"
    damage = compare(campaign.reference, store)
    return Row(fault, injected, damage, campaign.seconds_per_injection(started, injected), note)


def out_of_memory(campaign: Campaign) -> Row:
    """A device that holds half of a batch: other batches, so not the same bytes, but the same counts and ε."""
    store, folder = new_store(), _faults_folder(campaign, memory=10_000)
    started = time.monotonic()
    process = campaign.site.start(campaign.recipe, store, faults=str(folder))
    output, _ = process.communicate(timeout=600)
    if process.returncode != 0:
        raise RuntimeError(output[-2000:])
    injected = _injected(folder, "memory")
    damage = compare(campaign.reference, store, same_bytes=False)
    ledger = Ledger(Storage(store))
    sizes = {marker.fact("batch_size") for marker in ledger.read_markers(ledger.list_units("adversarial"))}
    outside = len([problem for problem in audit(ledger).problems if "epsilon" in problem.message])
    different = _rates_outside_intervals(campaign.store, store)
    note = f"batch size recorded: {sizes}; outside ε: {outside}; success apart from the undisturbed: {different}"
    damage += Damage(0, 0, outside + different)
    seconds = campaign.seconds_per_injection(started, injected)
    return Row("out of memory on a batch (halved)", injected, damage, seconds, note)


def _rates_outside_intervals(reference: str, store: str) -> int:
    """The number of success rates of one store that lie outside the reference's 95% interval."""
    expected, actual = (
        {(row.attack_id, row.target_id): row.rates["all"] for row in summarise(Ledger(Storage(url))).success}
        for url in (reference, store)
    )
    outside = 0
    for key, rate in expected.items():
        interval = rate.interval
        success = actual[key].rate
        outside += interval is None or success is None or not interval[0] <= success <= interval[1]
    return outside


def poison(campaign: Campaign) -> Row:
    """An item that kills its worker: it is tried three times and listed, and the rest is done."""
    site, store, folder = campaign.site, new_store(), _faults_folder(campaign)
    (folder / "poison").write_text("s-01")
    started = time.monotonic()
    process = site.start(campaign.recipe, store, faults=str(folder))
    output, _ = process.communicate(timeout=600)
    injected = _injected(folder, "poison")
    lost = compare(campaign.reference, store).lost
    listed = output.count("failed: s-01 from")
    site.complete(campaign.recipe, store)
    damage = compare(campaign.reference, store)
    return Row(
        "poison item kills its worker",
        injected,
        damage,
        campaign.seconds_per_injection(started, injected),
        f"tried {injected} times, listed {listed}, exit code {process.returncode}, {lost} units left to retry",
        (injected, listed, process.returncode) == (3, 1, 1),
    )


def _faults_folder(campaign: Campaign, **counts: int) -> Path:
    """The folder that `tests.chaos.driver` reads: the number of faults of each kind that are to be injected."""
    folder = campaign.site.folder / f"faults-{uuid.uuid4().hex[:8]}"
    folder.mkdir()
    for kind, count in counts.items():
        (folder / kind).write_text(str(count))
    return folder


def _injected(folder: Path, kind: str) -> int:
    path = folder / f"{kind}.injected"
    return len(path.read_text()) if path.exists() else 0
