"""The training job: recipe → lesson → Ray Train, and a closing table."""

from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pipeline import training
from pipeline.results.intervals import Rate
from pipeline.training import Lesson, Outcome, Progress, card
from pipeline.training import recipe as lessons


def run(recipe: Path, store: str, *, console: Console, address: str | None = None, seed: int | None = None) -> int:
    """Trains; returns the exit code, 0.

    Args:
        recipe: A recipe for training.
        store: Where what comes of it is kept.
        console: What is said goes there.
        address: A Ray cluster.
        seed: Instead of the recipe's.

    Raises:
        GnpError: Training could not start, or could not go on.
    """
    lesson = lessons.load(recipe)
    if seed is not None:
        lesson = replace(lesson, schedule=replace(lesson.schedule, seed=seed))
    return carry_out(lesson, store, console=console, address=address)


def carry_out(lesson: Lesson, store: str, *, console: Console, address: str | None = None) -> int:
    """Trains as a lesson says; as `run` does."""
    console.print(f"[dim]training {lesson.name}; what is done so far stands in {store}[/dim]", highlight=False)

    def told(progress: Progress) -> None:
        console.print(_line(progress, lesson.schedule.epochs), markup=False, highlight=False, soft_wrap=True)

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    outcome = training.train(lesson, store, address=address, on_progress=told, on_notice=say)
    show(outcome, console)
    what = "trained" if outcome.trained else "nothing to do: trained before"
    console.print(f"{what}; weights: {outcome.weights}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"card: {outcome.card}", markup=False, highlight=False, soft_wrap=True)
    return 0


def _line(progress: Progress, epochs: int) -> str:
    """What is said of a state that was kept, or of an epoch that is over."""
    figures = progress.figures
    if figures is None:
        return f"epoch {progress.epoch} of {epochs}: step {progress.step} of {progress.steps}, kept"
    said = [f"loss {figures['loss']:.3f}"] if figures["loss"] is not None else []
    for name, kinds in figures["held_out"].items():
        rates = ((called, Rate(*kinds[kind]).rate) for kind, called in card.KINDS.items())
        each = [f"{called} {100 * rate:.1f}%" for called, rate in rates if rate is not None]
        said.append(f"{name}: {', '.join(each)}")
    when = f"epoch {progress.epoch} of {epochs}" if progress.epoch else "before training"
    return f"{when}: {'; '.join(said)}"


def show(outcome: Outcome, console: Console) -> None:
    """Accuracy before and after, with 95% intervals."""
    first, last = outcome.epochs[0]["held_out"], outcome.epochs[-1]["held_out"]
    table = Table(title="accuracy on what was held out")
    for column in ("held out", "images", "before", "after", "n"):
        table.add_column(column, justify="right" if column in ("before", "after", "n") else "left")
    for name, kinds in first.items():
        for kind, called in card.KINDS.items():
            before, after = Rate(*kinds[kind]), Rate(*last[name][kind])
            table.add_row(name, called, card.percent(before), card.percent(after), str(before.n))
    console.print(table)
