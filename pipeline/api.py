"""The main job as a call."""

from collections.abc import Callable
from pathlib import Path

from pipeline import engine
from pipeline.engine import Outcome
from pipeline.ledger.progress import Progress, Tally
from pipeline.plan import recipe as config
from pipeline.plan import resolve
from pipeline.plan.recipe import Recipe
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
    """Attacks the images of a recipe and scores how the result transfers; what the store already holds stays.

    Args:
        recipe: A TOML file, or what one holds: `Recipe.model_validate({...})`.
        store: A folder, or s3://bucket/prefix.
        limit: Only the first so many images.
        address: A Ray cluster; by default the one of this process, or of RAY_ADDRESS, or else a local one.
        retry_failed: Also try again failed items and quarantined images.
        on_progress: Called every few seconds, from another thread: how the store stands, and this run.

    Returns:
        What was made, and what failed, with reasons.

    Raises:
        RecipeError: The recipe is wrong, in one line.
        MissingError: A shard does not exist.
        WeightsError: A model's weights cannot be had.
        CapacityError: The cluster cannot hold the workers.
        StorageError: The store cannot be written, or keeps failing.
    """
    loaded = recipe if isinstance(recipe, Recipe) else config.load(Path(recipe))
    prepared = resolve.prepare(loaded.job(limit=limit), Storage(store, create=True))
    return engine.run(
        prepared,
        store,
        pools=loaded.engine,
        address=address,
        retry_failed=retry_failed,
        on_progress=on_progress,
    )
