"""Runs `gnp train`: trains as a training recipe says, and prints the accuracies before and after."""

from dataclasses import replace
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from jobs.output import print_line
from pipeline import training
from pipeline.results.intervals import Rate
from pipeline.training import TrainingOutcome, TrainingProgress, TrainingRecipe, card
from pipeline.training.recipe_reader import load_training_recipe


def run(recipe: Path, store: str, *, console: Console, address: str | None = None, seed: int | None = None) -> int:
    """Trains a model; returns the exit code, 0.

    Args:
        recipe: A training recipe.
        store: Store for weights, figures and training states.
        console: Console for progress and messages.
        address: A Ray cluster.
        seed: Seed in place of the recipe's.

    Raises:
        GnpError: Training could not start or continue.
    """
    loaded = load_training_recipe(recipe)
    if seed is not None:
        loaded = replace(loaded, schedule=replace(loaded.schedule, seed=seed))
    return run_training(loaded, store, console=console, address=address)


def run_training(recipe: TrainingRecipe, store: str, *, console: Console, address: str | None = None) -> int:
    """Trains as a loaded recipe says; returns the exit code, 0."""
    console.print(f"[dim]training {recipe.name}; states and figures are in {store}[/dim]", highlight=False)
    outcome = training.train(
        recipe,
        store,
        address=address,
        on_progress=lambda progress: print_line(console, _progress_line(progress, recipe.schedule.epochs)),
        on_notice=partial(print_line, console),
    )
    print_accuracies(outcome, console)
    state = "trained" if outcome.trained else "nothing to do: trained before"
    print_line(console, f"{state}; weights: {outcome.weights}")
    print_line(console, f"card: {outcome.card}")
    return 0


def _progress_line(progress: TrainingProgress, epochs: int) -> str:
    """A line about a training state that was saved, or an epoch that has ended."""
    figures = progress.figures
    if figures is None:
        return f"epoch {progress.epoch} of {epochs}: step {progress.step} of {progress.steps}, state saved"
    pieces = [f"loss {figures['loss']:.3f}"] if figures["loss"] is not None else []
    for name, kinds in figures["held_out"].items():
        rates = ((label, Rate(*kinds[kind]).rate) for kind, label in card.KIND_LABELS.items())
        accuracies = [f"{label} {100 * rate:.1f}%" for label, rate in rates if rate is not None]
        pieces.append(f"{name}: {', '.join(accuracies)}")
    epoch = f"epoch {progress.epoch} of {epochs}" if progress.epoch else "before training"
    return f"{epoch}: {'; '.join(pieces)}"


def print_accuracies(outcome: TrainingOutcome, console: Console) -> None:
    """Prints the accuracies on held-out images before and after training, with 95% intervals."""
    first, last = outcome.epochs[0]["held_out"], outcome.epochs[-1]["held_out"]
    table = Table(title="accuracy on held-out images")
    for column in ("held out", "images", "before", "after", "n"):
        table.add_column(column, justify="right" if column in ("before", "after", "n") else "left")
    for name, kinds in first.items():
        for kind, label in card.KIND_LABELS.items():
            before, after = Rate(*kinds[kind]), Rate(*last[name][kind])
            table.add_row(name, label, card.format_rate(before), card.format_rate(after), str(before.n))
    console.print(table)
