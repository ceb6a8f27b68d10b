"""The main job as a function call."""

from collections.abc import Callable
from pathlib import Path

from pipeline import engine
from pipeline.engine import Outcome
from pipeline.errors import RecipeError
from pipeline.ledger import store_url
from pipeline.ledger.progress import Progress, Tally
from pipeline.plan.recipe import Recipe
from pipeline.plan.recipe_reader import load_recipe
from pipeline.plan.resolve import prepare_plan
from pipeline.storage import Storage

__all__ = ["Outcome", "Progress", "Recipe", "Tally", "generate"]


def generate(
    recipe: Recipe | Path | str,
    store: str | Path,
    *,
    limit: int | None = None,
    address: str | None = None,
    retry_failed: bool = False,
    on_progress: Callable[[Progress, Tally], None] = lambda *_: None,
) -> Outcome:
    """Attacks the images of a recipe and scores how the attacks transfer; results that the store already has stay.

    Args:
        recipe: Path of a TOML file, or its content: `Recipe.model_validate({...})`.
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
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise RecipeError(f"limit = {limit!r}: expected a number of images, at least 1, or None for all")
    loaded = recipe if isinstance(recipe, Recipe) else load_recipe(_recipe_path(recipe))
    url = store_url(store)
    prepared = prepare_plan(loaded.job(limit=limit), Storage(url, create=True))
    return engine.run_plan(
        prepared,
        url,
        pools=loaded.engine,
        address=address,
        retry_failed=retry_failed,
        on_progress=on_progress,
    )


def _recipe_path(recipe: object) -> Path:
    """The path of a recipe's file.

    Raises:
        RecipeError: It is something else.
    """
    if isinstance(recipe, Path) or (isinstance(recipe, str) and "\n" not in recipe):
        return Path(recipe)
    kind = "text of several lines" if isinstance(recipe, str) else f"a {type(recipe).__name__}"
    raise RecipeError(
        f"recipe is {kind}: expected the path of a TOML file, or a Recipe; Recipe.model_validate(...) makes one of a "
        "dict, such as tomllib.loads(text)"
    )
