"""The main job as a function call."""

from collections.abc import Callable
from pathlib import Path

from pipeline import engine
from pipeline.engine import Outcome
from pipeline.ledger.progress import Progress, Tally
from pipeline.plan.recipe import Recipe
from pipeline.plan.recipe_reader import load_recipe
from pipeline.plan.resolve import prepare_plan
from pipeline.storage import Storage

__all__ = ["Outcome", "Progress", "Recipe", "Tally", "generate"]


def generate(
    recipe: Recipe | Path | str,
    store: str,
    *,
    limit: int | None = None,
    address: str | None = None,
    retry_failed: bool = False,
    on_progress: Callable[[Progress, Tally], None] = lambda *_: None,
) -> Outcome:
    """Attacks the images of a recipe and scores how the attacks transfer; results that the store already has stay.

    Args:
        recipe: A TOML file, or its content: `Recipe.model_validate({...})`.
        store: A folder, or s3://bucket/prefix.
        limit: Takes only the first images, at most this number.
        address: A Ray cluster; by default this process's cluster, or that of RAY_ADDRESS, or else a local one.
        retry_failed: Tries failed items and quarantined images again.
        on_progress: Called every few seconds, from another thread, with the store's progress and this run's.

    Returns:
        The number of results, and the failures with their reasons.

    Raises:
        RecipeError: The recipe is invalid; the message is one line per fault.
        MissingError: A shard does not exist.
        WeightsError: A model's weights cannot be loaded.
        CapacityError: The cluster cannot hold the workers.
        StorageError: The store cannot be written, or keeps failing.
    """
    loaded = recipe if isinstance(recipe, Recipe) else load_recipe(Path(recipe))
    prepared = prepare_plan(loaded.job(limit=limit), Storage(store, create=True))
    return engine.run_plan(
        prepared,
        store,
        pools=loaded.engine,
        address=address,
        retry_failed=retry_failed,
        on_progress=on_progress,
    )
