"""The main job: recipe → plan → engine, with progress, and one closing line that says how it ended.

This process decides and hands out, and stays small; the recipe is resolved in another, which takes torch.
"""

import signal
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

from rich.console import Console

from jobs.display import Display, items_logged
from jobs.exit_codes import in_time
from pipeline import engine
from pipeline.child_process import isolated
from pipeline.engine import Outcome
from pipeline.plan.outline import Prepared
from pipeline.plan.pools import Pools
from pipeline.storage import Storage

# A first run fetches every model from its hub.
RESOLVE_MINUTES = 120.0
_GO_ON = "what is committed stands: run the same command again to go on"


def run(
    recipe: Path,
    store: str,
    *,
    console: Console,
    limit: int | None = None,
    since: float = 0.0,
    address: str | None = None,
    retry_failed: bool = False,
    max_failed: int = 0,
    log: Path | None = None,
) -> int:
    """Generates and scores; returns the exit code.

    0 if everything is committed but for `max_failed` failures, 1 if more failed, 130 if it was told to stop.

    Raises:
        GnpError: The run could not start, or could not go on.
    """
    return carry_out(
        partial(_prepare, recipe, store, limit, since),
        store,
        console=console,
        address=address,
        retry_failed=retry_failed,
        max_failed=max_failed,
        log=log,
    )


def _prepare(recipe: Path, store: str, limit: int | None, since: float) -> tuple[Prepared, Pools]:
    from pipeline.plan import recipe as config  # here, in a process of its own: they take torch
    from pipeline.plan import resolve

    loaded = config.load(recipe)
    return resolve.prepare(loaded.job(limit=limit), Storage(store, create=True), since=since), loaded.engine


def carry_out(
    prepare: Callable[[], tuple[Prepared, Pools]],
    store: str,
    *,
    console: Console,
    address: str | None = None,
    retry_failed: bool = False,
    max_failed: int = 0,
    log: Path | None = None,
) -> int:
    """Makes what a job lacks, with progress; returns the exit code, as `run` does.

    Args:
        prepare: Resolves the job, and says with what workers; called in a process of its own, to which it is pickled.
        store: Where results go.
        console: What is said goes there.
        address: A Ray cluster.
        retry_failed: Try again what earlier runs gave up.
        max_failed: So many failures are none.
        log: A file that gets a line of JSON for each item.

    Raises:
        GnpError: The run could not start, or could not go on.
    """
    stop = threading.Event()
    _interrupt_on_sigterm(stop)
    console.print("[dim]finding shards, settling what each model is[/dim]")
    with items_logged(log):
        prepared, pools = isolated(prepare, what="resolving the recipe", minutes=RESOLVE_MINUTES)
        with in_time(stop, f"stopped, while {store} did not answer; {_GO_ON}"), Display(console) as display:
            outcome = engine.run(
                prepared,
                store,
                pools=pools,
                address=address,
                retry_failed=retry_failed,
                stop=stop,
                on_progress=display.show,
                on_notice=display.say,
            )
    for name, reason in outcome.failed.items():
        sys.stderr.write(f"failed: {name}: {reason}\n")
    for failure in outcome.listed:
        sys.stderr.write(f"failed earlier, not tried again: {failure.item}: {failure.reason}\n")
    if not prepared.outline.takes:
        console.print("nothing to do: none of the recipe's shards was written in that time", markup=False)
        return 0
    console.print(_closing_line(outcome, store), markup=False, highlight=False, soft_wrap=True)
    if outcome.stopped:
        return 130
    if not outcome.usable and not outcome.failed and not outcome.listed:
        sys.stderr.write("failed: no image could be used; see the recipe's fraction, preparation and classes\n")
        return 1
    return 1 if outcome.incomplete > max_failed else 0


def _interrupt_on_sigterm(stop: threading.Event) -> None:
    """Until workers are at work, SIGTERM ends the program as Ctrl-C does: at once, by `KeyboardInterrupt`."""

    def handle(*_: object) -> None:
        stop.set()  # should the exception be lost, in some finalizer, the run ends before it hands anything out
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handle)


def _closing_line(outcome: Outcome, store: str) -> str:
    failed, listed = len(outcome.failed), len(outcome.listed)
    counts = f"{outcome.made.images} images attacked, {outcome.made.quarantined} quarantined"
    if outcome.stopped:
        return f"stopped ({counts}); {_GO_ON}"
    retry = "; --retry-failed tries them again" if listed else ""
    if not outcome.items:
        rest = f", but for {listed} that failed earlier{retry}" if listed else ""
        return f"nothing to do: {store} holds everything that this recipe makes{rest}"
    said = f"done: {outcome.items} items in {outcome.seconds:.0f} s"
    if failed or listed:
        said = (
            f"{failed} of {outcome.items} items failed, {listed} failed earlier; the rest is committed; "
            "gnp status lists them, --retry-failed tries them again"
        )
    return f"{said} ({counts})"
