"""The fault campaign: `make chaos`. Faults are injected for real, and what is committed is held against a calm run's.

A row per fault: how often it was injected, results lost, results twice, images wrong (all three are to be 0), and the
seconds that an injection cost, which is what the run took longer than the undisturbed one, an injection.
"""

import argparse
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pipeline.analysis.report import summarise
from pipeline.ledger import Ledger, Unit
from pipeline.maintenance.verify import audit
from pipeline.storage import Storage
from tests.chaos.proxy import Fault, FaultKind
from tests.chaos.site import INPUT, NODES, Damage, Site, commits, compare, site
from tests.conftest import ROOT


@dataclass(frozen=True)
class Row:
    """What one kind of fault did.

    Attributes:
        fault: Which.
        injected: How often.
        damage: To the results.
        seconds: What an injection cost.
        note: What else was seen.
        as_promised: Whether that is what is promised of it: exit codes, what is listed, how soon it ended.
    """

    fault: str
    injected: int
    damage: Damage
    seconds: float
    note: str = ""
    as_promised: bool = True


class Campaign:
    """The faults, each a method that injects it and returns its row.

    Args:
        place: Where.
        scale: 1 for the whole campaign; less for fewer injections.
    """

    def __init__(self, place: Site, *, scale: float) -> None:
        self.site = place
        self.scale = scale
        self.recipe = place.recipe(f"{INPUT}/s-*.tar")
        store = self._store()
        self._time(lambda: place.complete(self.recipe, store))  # once to warm caches
        store = self._store()
        self.undisturbed_s = self._time(lambda: place.complete(self.recipe, store))
        self.reference: dict[Unit, str] = commits(store)
        self.store = store

    def scenarios(self) -> dict[str, Callable[[], Row]]:
        """Every fault, in order."""
        storage: list[FaultKind] = ["slow-down", "reset", "stall", "lost-response", "flip", "refuse"]
        place = self.site
        return {
            "generator": lambda: self.kills("generator killed", lambda: place.kill_worker("Generator"), 12),
            "scorer": lambda: self.kills("scorer killed", lambda: place.kill_worker("Scorer"), 12),
            "node": lambda: self.kills("node killed", place.kill_node, 10),
            "server": lambda: self.kills("S3 server killed and restarted", place.kill_server, 10),
            "drain": lambda: self.kills("node drained (preemption notice)", place.drain_node, 4),
            "driver": lambda: self.kills("driver killed, and run again", lambda: True, 6, driver=True),
            "all": self.everything_at_once,
            **{kind: partial(self.storage_fault, kind) for kind in storage},
            "disk": self.full_disk,
            "shards": self.damaged_shards,
            "checkpoint": self.missing_checkpoint,
            "starts": self.failed_starts,
            "sticky": self.sticky_errors,
            "memory": self.out_of_memory,
            "poison": self.poison,
            "stopped": self.stopped,
            "stopped-without-store": self.stopped_without_store,
            "two": self.two_at_once,
            "clock": self.clock_skew,
        }

    def kills(self, name: str, strike: Callable[[], bool], times: int, *, driver: bool = False, store: str = "") -> Row:
        """Kills of one kind at random moments, in as many runs as they take."""
        times, struck, seconds, damage = max(1, round(times * self.scale)), 0, 0.0, Damage(0, 0, 0)
        pause_s = (4.0, 9.0) if driver else (0.5, 4.0)
        for _ in range(8):
            if struck >= times:
                break
            place = store or self._store()

            def run(place: str = place, left: int = times - struck) -> int:
                return self.site.under(self.recipe, place, strike, times=left, pause_s=pause_s, driver=driver)

            started = time.monotonic()
            struck += run()
            seconds += time.monotonic() - started - self.undisturbed_s
            damage = _sum(damage, compare(self.reference, place))
        return Row(name, struck, damage, seconds / max(1, struck))

    def everything_at_once(self) -> Row:
        """Every kind of kill at random moments, the driver's too, with a store that throttles, in one long run."""
        place, strikes = (
            self._store(),
            [
                lambda: self.site.kill_worker("Generator"),
                lambda: self.site.kill_worker("Scorer"),
                self.site.kill_node,
                self.site.kill_server,
            ],
        )
        faults = [Fault("slow-down", 0.1), Fault("reset", 0.02), Fault("flip", 0.02), Fault("lost-response", 0.05)]
        before = self.site.proxy.counts.total()
        self.site.proxy.inject(*faults)
        struck, started, rounds = 0, time.monotonic(), max(2, round(4 * self.scale))
        for number in range(rounds):
            last = number + 1 == rounds
            process = self.site.start(self.recipe, place, "--retry-failed")
            for _ in range(3):
                try:
                    process.communicate(timeout=self.site.random.uniform(2.0, 6.0))
                    break
                except subprocess.TimeoutExpired:
                    struck += self.site.random.choice(strikes)()
            if not last and process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)
                struck += 1
            if not last:
                process.communicate()
            else:
                process.communicate(timeout=900)
        self.site.complete(self.recipe, place)
        self.site.proxy.clear()
        struck += self.site.proxy.counts.total() - before
        seconds = (time.monotonic() - started - self.undisturbed_s) / struck
        return Row("all of these at random, in one run", struck, compare(self.reference, place), seconds)

    def storage_fault(self, kind: FaultKind) -> Row:
        """A store that misbehaves through a whole run."""
        share = {"slow-down": 0.3, "stall": 0.1, "lost-response": 0.3, "flip": 0.15, "reset": 0.1, "refuse": 0.1}[kind]
        before, place = self.site.proxy.counts[kind], self._store()
        self.site.proxy.inject(Fault(kind, share))
        started = time.monotonic()
        self.site.complete(self.recipe, place)
        seconds = time.monotonic() - started - self.undisturbed_s
        self.site.proxy.clear()
        injected = self.site.proxy.counts[kind] - before
        damage = compare(self.reference, place)
        return Row(f"store: {kind}, {share:.0%} of requests", injected, damage, seconds / max(1, injected))

    def full_disk(self) -> Row:
        """A local store on a file system that fills up, and is then given room."""
        mount, place = self.site.folder / "small", self.site.folder / "small" / "store"
        mount.mkdir()
        injected, started = 0, time.monotonic()
        whole = sum(4096 * -(-stored.size_bytes // 4096) for stored in Storage(self.store).list())
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={whole // 2}", "tmpfs", str(mount)], check=True)
        try:
            for size in (6 * whole // 10, 7 * whole // 10, 8 * whole // 10):
                subprocess.run(["mount", "-o", f"remount,size={size}", str(mount)], check=True)
                process = self.site.start(self.recipe, str(place), "--retry-failed")
                said, _ = process.communicate(timeout=600)
                injected += said.count("No space left")
            subprocess.run(["mount", "-o", "remount,size=64m", str(mount)], check=True)
            self.site.complete(self.recipe, str(place))
            damage = compare(self.reference, str(place))
        finally:
            subprocess.run(["umount", "-l", str(mount)], check=True)
        return Row("disk full under a local store", injected, damage, self._each(started, injected))

    def damaged_shards(self) -> Row:
        """Truncated shards and flipped header bits: listed by name, the rest done; mended, they are done as well."""
        folder, place, chance = f"{INPUT}-damaged", self._store(), self.site.random
        storage, whole = Storage(folder), sorted((self.site.folder / "in").glob("*.tar"))
        recipe, started, hurt = self.site.recipe(f"{folder}/s-*.tar"), time.monotonic(), whole[: max(2, len(whole) - 2)]
        for number, path in enumerate(whole):
            data = bytearray(path.read_bytes())
            if path in hurt and number % 2:
                data[chance.randrange(148)] ^= 1 << chance.randrange(8)  # the first header, which a checksum covers
            elif path in hurt:
                del data[chance.randrange(len(data) - 10240) :]
            storage.put(path.name, bytes(data))
        process = self.site.start(recipe, place)
        said, _ = process.communicate(timeout=600)
        listed = sum(f"failed: {path.stem} from" in said for path in hurt)
        failures = len(Ledger(Storage(place)).failures())
        for path in hurt:
            storage.put(path.name, path.read_bytes())
        self.site.complete(recipe, place)
        note = f"{listed} of {len(hurt)} listed by name, {failures} recorded, exit code {process.returncode}"
        damage = compare(self.reference, place)
        return Row(
            "input shards truncated, or a bit flipped",
            len(hurt),
            damage,
            self._each(started, len(hurt)),
            note,
            (listed, failures, process.returncode) == (len(hurt), len(hurt), 1),
        )

    def missing_checkpoint(self) -> Row:
        """A checkpoint that is not there stops the run by name; one that vanishes later is not missed."""
        checkpoint, place = self.site.folder / "gone.safetensors", self._store()
        recipe = self.site.recipe(f"{INPUT}/s-*.tar", checkpoint=checkpoint)
        said, _ = (process := self.site.start(recipe, place)).communicate(timeout=600)
        refused = process.returncode == 2 and "gone.safetensors" in said
        shutil.copy(self.site.folder / "tiny.safetensors", checkpoint)
        started = time.monotonic()
        process = self.site.start(recipe, place)
        time.sleep(8)
        checkpoint.unlink()
        process.communicate(timeout=600)
        removed = process.returncode == 0
        shutil.copy(self.site.folder / "tiny.safetensors", checkpoint)
        self.site.complete(recipe, place)
        note = f"refused by name: {'yes' if refused else 'NO'}; removed while running: exit code {process.returncode}"
        damage, seconds = compare(self.reference, place), self._each(started, 2)
        return Row("checkpoint missing", 2, damage, seconds, note, refused and removed)

    def failed_starts(self) -> Row:
        """Workers that twice do not start."""
        return self._faulty("worker fails to start twice in a row", "fail-start", 2)

    def sticky_errors(self) -> Row:
        """An error after which the process's device is of no use."""
        return self._faulty("sticky device error (CUDA-like)", "sticky", max(2, round(8 * self.scale)))

    def out_of_memory(self) -> Row:
        """A device that holds half of a batch: other batches, so not the same bytes, but the same counts and ε."""
        place, folder = self._store(), self._faults(memory=10_000)
        started = time.monotonic()
        process = self.site.start(self.recipe, place, faulty=str(folder))
        said, _ = process.communicate(timeout=600)
        if process.returncode != 0:
            raise RuntimeError(said[-2000:])
        injected = _count(folder, "memory")
        damage = compare(self.reference, place, same_bytes=False)
        ledger = Ledger(Storage(place))
        sizes = {marker.fact("batch_size") for marker in ledger.markers(ledger.units("adversarial"))}
        outside = len([problem for problem in audit(ledger).problems if "epsilon" in problem.what])
        apart = _apart(self.store, place)
        note = f"batch size recorded: {sizes}; outside ε: {outside}; success apart from the undisturbed: {apart}"
        damage = Damage(damage.lost, damage.twice, damage.wrong + outside + apart)
        return Row("out of memory on a batch (halved)", injected, damage, self._each(started, injected), note)

    def poison(self) -> Row:
        """An item that kills whoever takes it: tried three times, listed, the rest done."""
        place, folder = self._store(), self._faults()
        (folder / "poison").write_text("s-01")
        started = time.monotonic()
        process = self.site.start(self.recipe, place, faulty=str(folder))
        said, _ = process.communicate(timeout=600)
        injected, left = _count(folder, "poison"), compare(self.reference, place)
        listed = said.count("failed: s-01 from")
        self.site.complete(self.recipe, place)
        note = (
            f"tried {injected} times, listed {listed}, exit code {process.returncode}, {left.lost} units left to retry"
        )
        promised = (injected, listed, process.returncode) == (3, 1, 1)
        return Row(
            "poison item kills its worker",
            injected,
            compare(self.reference, place),
            self._each(started, injected),
            note,
            promised,
        )

    def stopped(self) -> Row:
        """SIGTERM and Ctrl-C: an end within 30 s, with exit code 130, that a later run goes on from."""
        place, slowest, codes, count = self._store(), 0.0, set[int](), max(2, round(4 * self.scale))
        started = time.monotonic()
        for number in range(count):
            process, before = self.site.start(self.recipe, place), _committed(place)
            while process.poll() is None and _committed(place) == before:
                time.sleep(0.2)
            time.sleep(self.site.random.uniform(0, 3))
            asked = time.monotonic()
            os.kill(process.pid, (signal.SIGTERM, signal.SIGINT)[number % 2])
            process.communicate(timeout=120)
            slowest, codes = max(slowest, time.monotonic() - asked), codes | {process.returncode}
        self.site.complete(self.recipe, place)
        note = f"slowest end {slowest:.0f} s; exit codes {sorted(codes)}"
        damage, seconds = compare(self.reference, place), self._each(started, count)
        promised = slowest < 30 and codes <= {130, 0}  # 0 where it had just finished
        return Row("driver stopped (SIGTERM, SIGINT)", count, damage, seconds, note, promised)

    def stopped_without_store(self) -> Row:
        """SIGTERM while the S3 server is down: an end within 30 s all the same."""
        place, slowest, codes, count = self._store(), 0.0, set[int](), 2
        started = time.monotonic()
        for _ in range(count):
            process, before = self.site.start(self.recipe, place), _committed(place)
            while process.poll() is None and _committed(place) == before:
                time.sleep(0.2)
            self.site.server.kill()
            time.sleep(2)
            asked = time.monotonic()
            os.kill(process.pid, signal.SIGTERM)
            process.communicate(timeout=120)
            slowest, codes = max(slowest, time.monotonic() - asked), codes | {process.returncode}
            self.site.server.start()
        self.site.complete(self.recipe, place)
        note = f"slowest end {slowest:.0f} s; exit codes {sorted(codes)}"
        damage, seconds = compare(self.reference, place), self._each(started, count)
        return Row("driver stopped while the S3 server is down", count, damage, seconds, note, slowest < 30)

    def two_at_once(self) -> Row:
        """Two runs of one recipe: the same results, and none of the work twice."""
        place, started = self._store(), time.monotonic()
        for _ in range(NODES):  # room for both, so that they are at work side by side
            self.site.add_node()
        note = self._both([self.site.start(self.recipe, place) for _ in range(2)], place)
        for _ in range(NODES):
            self.site.remove_node()
        damage, seconds = compare(self.reference, place), self._each(started, 1)
        return Row(
            "two runs of one recipe at once", 1, damage, seconds, note, "(0, 0)" in note and "; 0 results" in note
        )

    def clock_skew(self) -> Row:
        """A second run whose clock is an hour off, beside a first one; on a folder, as S3 refuses such clocks."""
        if shutil.which("faketime") is None:
            return Row("clock of a second run an hour off", 0, Damage(0, 0, 0), 0.0, "install faketime", False)
        place, started = str(self.site.folder / "skewed"), time.monotonic()
        recipe = self.site.recipe(f"{self.site.folder}/in/s-*.tar")
        skew = {"LD_PRELOAD": str(next(Path("/usr/lib").rglob("libfaketimeMT.so.1"))), "FAKETIME": "+1h"}
        runs = [self.site.start(recipe, place), self.site.start(recipe, place, environment=skew)]
        note = self._both(runs, place)
        refused = self.site.start(recipe, self._store(), environment=skew)
        said, _ = refused.communicate(timeout=600)
        note += f"; on S3: exit code {refused.returncode}, {'RequestTimeTooSkewed' if 'TooSkewed' in said else said}"
        damage, seconds = compare(self.reference, place), self._each(started, 2)
        promised = "(0, 0)" in note and refused.returncode == 2
        return Row("clock of a second run an hour off", 2, damage, seconds, note, promised)

    def _both(self, runs: list[subprocess.Popen[str]], place: str) -> str:
        """Waits for two runs at once; says how they ended, and how much work was done twice."""
        said = [process.communicate(timeout=600)[0] for process in runs]
        codes = tuple(process.returncode for process in runs)
        if any(codes):
            self.site.complete(self.recipe, place)
        data = [stored for folder in ("shards", "results") for stored in Storage(place).list(folder)]
        told = sum("is at the same work" in text for text in said)
        orphans = len(data) - len(self.reference)
        return f"exit codes {codes}; {told} said what the other was doing; {orphans} results made twice"

    def _faulty(self, name: str, kind: str, times: int) -> Row:
        place, folder = self._store(), self._faults(**{kind: times})
        started = time.monotonic()
        process = self.site.start(self.recipe, place, faulty=str(folder))
        said, _ = process.communicate(timeout=600)
        code = process.returncode
        if code != 0:
            self.site.complete(self.recipe, place)
        injected = _count(folder, kind)
        note = "" if code == 0 else f"took a second run: {said.strip().splitlines()[-1][:100]}"
        return Row(name, injected, compare(self.reference, place), self._each(started, injected), note)

    def _faults(self, **counts: int) -> Path:
        folder = self.site.folder / f"faults-{uuid.uuid4().hex[:8]}"
        folder.mkdir()
        for kind, count in counts.items():
            (folder / kind).write_text(str(count))
        return folder

    def _store(self) -> str:
        return f"s3://demo/{uuid.uuid4().hex}"

    def _time(self, action: Callable[[], object]) -> float:
        started = time.monotonic()
        action()
        return time.monotonic() - started

    def _each(self, started: float, injected: int) -> float:
        return max(0.0, time.monotonic() - started - self.undisturbed_s) / max(1, injected)


def _sum(one: Damage, other: Damage) -> Damage:
    return Damage(one.lost + other.lost, one.twice + other.twice, one.wrong + other.wrong)


def _committed(store: str) -> int:
    return sum(1 for _ in Storage(store).list("markers"))


def _count(folder: Path, kind: str) -> int:
    path = folder / f"{kind}.injected"
    return len(path.read_text()) if path.exists() else 0


def _apart(one: str, other: str) -> int:
    """How many success rates of one store lie outside the other's 95% interval."""
    rates = [
        {(row.attack_id, row.target_id): row.rates["all"] for row in summarise(Ledger(Storage(store))).success}
        for store in (one, other)
    ]
    apart = 0
    for place, rate in rates[0].items():
        interval, theirs = rate.interval, rates[1][place].rate
        apart += interval is None or theirs is None or not interval[0] <= theirs <= interval[1]
    return apart


def table(rows: list[Row]) -> Table:
    """The rows as they are printed."""
    made = Table(title="Fault campaign: every committed object held against an undisturbed run's", title_justify="left")
    for name in ("fault", "injected", "lost", "twice", "wrong", "s each", "seen"):
        made.add_column(name, justify="left" if name in ("fault", "seen") else "right", overflow="fold")
    for row in rows:
        damage = row.damage
        counts = (row.injected, damage.lost, damage.twice, damage.wrong)
        seen = row.note if row.as_promised else f"NOT AS PROMISED: {row.note}"
        made.add_row(row.fault, *map(str, counts), f"{max(0.0, row.seconds):.1f}", seen)
    return made


def main() -> int:
    """Runs the campaign; 0 if nothing was lost, twice or wrong, and all else was as promised."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--scale", type=float, default=1.0, help="less than 1 for fewer injections")
    parser.add_argument("--only", nargs="*", default=[], help="only these, by short name")
    parser.add_argument("--shards", type=int, default=12, help="input shards, of two parts each")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "chaos")
    arguments = parser.parse_args()
    logging.getLogger("ray").setLevel(logging.WARNING)
    console = Console(width=None if sys.stdout.isatty() else 180)
    started, rows = time.monotonic(), list[Row]()
    with site(arguments.folder, seed=arguments.seed, shards=arguments.shards) as place:
        campaign = Campaign(place, scale=arguments.scale)
        console.print(f"seed {arguments.seed}; undisturbed: {campaign.undisturbed_s:.1f} s", highlight=False)
        for name, scenario in campaign.scenarios().items():
            if arguments.only and name not in arguments.only:
                continue
            rows.append(scenario())
            console.print(f"{time.monotonic() - started:6.0f} s  {rows[-1]}", highlight=False, markup=False)
    console.print(table(rows))
    injected = sum(row.injected for row in rows)
    damage = Damage(0, 0, 0)
    for row in rows:
        damage = _sum(damage, row.damage)
    seconds = time.monotonic() - started
    console.print(
        f"{injected} injections in {seconds / 60:.1f} minutes (seed {arguments.seed}): "
        f"{damage.lost} lost, {damage.twice} twice, {damage.wrong} wrong",
        highlight=False,
    )
    (arguments.folder / "campaign.json").write_text(
        json.dumps({"seed": arguments.seed, "seconds": seconds, "rows": [asdict(row) for row in rows]}, indent=1)
    )
    return 0 if damage == Damage(0, 0, 0) and all(row.as_promised for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
