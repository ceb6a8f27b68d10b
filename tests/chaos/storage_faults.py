"""Scenarios in which the store, the disk or the input misbehaves."""

import shutil
import subprocess
import time

from pipeline.ledger import Ledger
from pipeline.storage import Storage
from tests.chaos.proxy import Fault, FaultKind
from tests.chaos.scenario import Campaign, Row, new_store
from tests.chaos.site import INPUT, compare

# Share of the requests that a fault of the store hits.
SHARES: dict[FaultKind, float] = {
    "slow-down": 0.3,
    "reset": 0.1,
    "stall": 0.1,
    "lost-response": 0.3,
    "flip": 0.15,
    "refuse": 0.1,
}


def storage_fault(campaign: Campaign, kind: FaultKind) -> Row:
    """One kind of fault of the S3 server, through a whole run."""
    site, store = campaign.site, new_store()
    before = site.proxy.counts[kind]
    site.proxy.inject(Fault(kind, SHARES[kind]))
    started = time.monotonic()
    site.complete(campaign.recipe, store)
    seconds = time.monotonic() - started - campaign.undisturbed_s
    site.proxy.clear()
    injected = site.proxy.counts[kind] - before
    damage = compare(campaign.reference, store)
    return Row(f"store: {kind}, {SHARES[kind]:.0%} of requests", injected, damage, seconds / max(1, injected))


def full_disk(campaign: Campaign) -> Row:
    """A store in a folder whose file system fills up, and is then enlarged."""
    site = campaign.site
    mount = site.folder / "small"
    store = str(mount / "store")
    mount.mkdir()
    injected = 0
    started = time.monotonic()
    needed = sum(4096 * -(-stored.size_bytes // 4096) for stored in Storage(campaign.store).list())
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={needed // 2}", "tmpfs", str(mount)], check=True)
    try:
        for size in (6 * needed // 10, 7 * needed // 10, 8 * needed // 10):
            subprocess.run(["mount", "-o", f"remount,size={size}", str(mount)], check=True)
            process = site.start(campaign.recipe, store, "--retry-failed")
            output, _ = process.communicate(timeout=600)
            injected += output.count("No space left")
        subprocess.run(["mount", "-o", "remount,size=64m", str(mount)], check=True)
        site.complete(campaign.recipe, store)
        damage = compare(campaign.reference, store)
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=True)
    seconds = campaign.seconds_per_injection(started, injected)
    return Row("disk full under a local store", injected, damage, seconds)


def damaged_shards(campaign: Campaign) -> Row:
    """Truncated shards and flipped header bits: listed by name while the rest is done; done once they are repaired."""
    site, store, folder = campaign.site, new_store(), f"{INPUT}-damaged"
    storage = Storage(folder)
    shards = sorted((site.folder / "in").glob("*.tar"))
    damaged = shards[: max(2, len(shards) - 2)]
    recipe = site.recipe(f"{folder}/s-*.tar")
    started = time.monotonic()
    for number, path in enumerate(shards):
        data = bytearray(path.read_bytes())
        if path in damaged and number % 2:
            data[site.random.randrange(148)] ^= 1 << site.random.randrange(8)  # in the first header: it has a checksum
        elif path in damaged:
            del data[site.random.randrange(len(data) - 10240) :]
        storage.put(path.name, bytes(data))
    process = site.start(recipe, store)
    output, _ = process.communicate(timeout=600)
    listed = sum(f"failed: {path.stem} from" in output for path in damaged)
    failures = len(Ledger(Storage(store)).list_failures())
    for path in damaged:
        storage.put(path.name, path.read_bytes())
    site.complete(recipe, store)
    damage = compare(campaign.reference, store)
    return Row(
        "input shards truncated, or a bit flipped",
        len(damaged),
        damage,
        campaign.seconds_per_injection(started, len(damaged)),
        f"{listed} of {len(damaged)} listed by name, {failures} recorded, exit code {process.returncode}",
        (listed, failures, process.returncode) == (len(damaged), len(damaged), 1),
    )


def missing_checkpoint(campaign: Campaign) -> Row:
    """A missing checkpoint stops the run with its name; one that is removed during the run does not matter."""
    site, store = campaign.site, new_store()
    checkpoint = site.folder / "gone.safetensors"
    recipe = site.recipe(f"{INPUT}/s-*.tar", checkpoint=checkpoint)
    process = site.start(recipe, store)
    output, _ = process.communicate(timeout=600)
    refused = process.returncode == 2 and "gone.safetensors" in output
    shutil.copy(site.folder / "tiny.safetensors", checkpoint)
    started = time.monotonic()
    process = site.start(recipe, store)
    time.sleep(8)
    checkpoint.unlink()
    process.communicate(timeout=600)
    shutil.copy(site.folder / "tiny.safetensors", checkpoint)
    site.complete(recipe, store)
    damage = compare(campaign.reference, store)
    return Row(
        "checkpoint missing",
        2,
        damage,
        campaign.seconds_per_injection(started, 2),
        f"refused by name: {'yes' if refused else 'NO'}; removed while running: exit code {process.returncode}",
        refused and process.returncode == 0,
    )
