"""Runs `gnp generate`: resolves the recipe, runs the engine with a progress display, prints how the run ended.

This process, the driver, only plans and schedules, and stays small: a child process, which imports torch, resolves the
recipe.
"""

import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

from rich.console import Console

from jobs.display import Display, item_log
from jobs.exit_codes import RESUME_HINT, stop_deadline
from jobs.output import print_line
from pipeline import engine
from pipeline.child_process import ChildProcess
from pipeline.engine import Outcome
from pipeline.errors import CapacityError, GnpError, MissingError
from pipeline.ledger import Ledger
from pipeline.ledger.progress import StageTotals
from pipeline.plan.outline import Outline, PickledPlan
from pipeline.plan.pools import Pools
from pipeline.storage import Storage

# A first run downloads every model from its hub.
RESOLVE_MINUTES = 120.0


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
    """Attacks the images of a recipe and scores the results; returns the exit code.

    0 if all items except at most `max_failed` are committed, 1 if more failed, 130 if the run was stopped.

    Raises:
        GnpError: The run could not start or continue.
    """
    return run_job(
        partial(_prepare, recipe, store, limit, since),
        store,
        console=console,
        address=address,
        retry_failed=retry_failed,
        max_failed=max_failed,
        log=log,
    )


def _prepare(recipe: Path, store: str, limit: int | None, since: float) -> tuple[PickledPlan, Pools]:
    from pipeline.plan.recipe_reader import load_recipe  # these import torch, so only in the child process
    from pipeline.plan.resolve import prepare_plan

    loaded = load_recipe(recipe)
    return prepare_plan(loaded.job(limit=limit), Storage(store, create=True), since=since), loaded.engine


def run_job(
    prepare: Callable[[], tuple[PickledPlan, Pools]],
    store: str,
    *,
    console: Console,
    address: str | None = None,
    retry_failed: bool = False,
    max_failed: int = 0,
    log: Path | None = None,
) -> int:
    """Runs everything of a job that the store lacks; returns the exit code, as `run` does.

    Args:
        prepare: Returns the resolved job and its pools of workers; pickled, and called in a child process.
        store: Store for the results.
        console: Console for progress and messages.
        address: A Ray cluster.
        retry_failed: Retry items that earlier runs gave up.
        max_failed: The most failed items with which the exit code is 0.
        log: File for a line of JSON per item.

    Raises:
        GnpError: The run could not start or continue.
    """
    stop = threading.Event()
    _interrupt_on_sigterm(stop)
    console.print("[dim]finding shards, resolving models[/dim]")
    deadline = stop_deadline(stop, f"stopped while {store} did not answer; {RESUME_HINT}")
    with item_log(log), ChildProcess() as child, deadline:
        resolving = child.begin(prepare, task="resolving the recipe", timeout_minutes=RESOLVE_MINUTES)
        if _is_empty(store):  # so there is work for Ray, which can start meanwhile
            try:
                engine.connect(address)
            except CapacityError:
                resolving()  # what is wrong with the recipe comes first
                raise
        prepared, pools = resolving()
        with Display(console) as display:
            outcome = engine.run_plan(
                prepared,
                store,
                pools=pools,
                child=child,
                address=address,
                retry_failed=retry_failed,
                stop=stop,
                on_progress=display.update,
                on_notice=display.print_line,
            )
    for name, reason in outcome.failed.items():
        sys.stderr.write(f"failed: {name}: {reason}\n")
    for failure in outcome.listed:
        sys.stderr.write(f"failed earlier, not retried: {failure.item}: {failure.reason}\n")
    if not prepared.outline.selections:
        print_line(console, "nothing to do: none of the recipe's shards was written in that time")
        return 0
    print_line(console, _closing_line(outcome, store))
    if outcome.scored.clean and (warning := _label_warning(outcome.scored, prepared.outline)):
        sys.stderr.write(f"warning: {warning}\n")
    if outcome.stopped:
        return 130
    if not outcome.usable and not outcome.failed and not outcome.listed:
        sys.stderr.write(f"failed: no image could be used: {_why_unusable(prepared.outline, store)}\n")
        return 1
    return 1 if outcome.incomplete > max_failed else 0


def _is_empty(store: str) -> bool:
    """Whether no run has written to a store yet; false also where it cannot be read, which the run will say."""
    try:
        return not Ledger(Storage(store)).plan_keys()
    except MissingError:
        return True
    except GnpError:
        return False


def _interrupt_on_sigterm(stop: threading.Event) -> None:
    """Makes SIGTERM raise KeyboardInterrupt, as Ctrl-C does, until the engine installs its own handler."""

    def handle(*_: object) -> None:
        stop.set()  # if a finalizer swallows the exception, the run ends before it schedules anything
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handle)


def _label_warning(scored: StageTotals, outline: Outline) -> str | None:
    """Why the labels of the images that the run scored may be wrong; None where no target's accuracy hints at it."""
    from pipeline.results.chance import chance_warning  # imports scipy, for which the driver has no other use
    from pipeline.results.intervals import Rate

    accuracy = {target: Rate(scored.correct[target], count) for target, count in scored.clean.items()}
    return chance_warning(accuracy, outline.record["data"]["classes"])


def _why_unusable(outline: Outline, store: str) -> str:
    """The commonest reason for which images were quarantined."""
    ledger = Ledger(Storage(store))
    markers = ledger.read_markers(ledger.list_units(f"original/{outline.dataset}"))
    reasons = Counter(image["reason"] for marker in markers for image in marker.fact("quarantined"))
    if not reasons:
        return "see the recipe's fraction"
    ((reason, count),) = reasons.most_common(1)
    return f"{count} of {reasons.total()}: {reason}; gnp status STORE --quarantined lists them"


def _closing_line(outcome: Outcome, store: str) -> str:
    failed, listed = len(outcome.failed), len(outcome.listed)
    counts = f"{outcome.made.images} images attacked, {outcome.made.quarantined} quarantined"
    if outcome.stopped:
        return f"stopped ({counts}); {RESUME_HINT}"
    retry = "; --retry-failed retries them" if listed else ""
    if not outcome.items:
        rest = f", except {listed} items that failed earlier{retry}" if listed else ""
        return f"nothing to do: {store} holds everything that this recipe makes{rest}"
    summary = f"done: {outcome.items} items in {outcome.seconds:.0f} s"
    if failed or listed:
        summary = (
            f"{failed} of {outcome.items} items failed, {listed} failed earlier; the rest is committed; "
            "gnp status lists them, --retry-failed retries them"
        )
    return f"{summary} ({counts})"
