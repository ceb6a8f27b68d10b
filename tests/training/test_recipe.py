"""Training recipes: a valid one, and errors that name the field and the remedy."""

from fractions import Fraction
from pathlib import Path

import pytest

from pipeline.errors import RecipeError
from pipeline.training.recipe_reader import load_training_recipe
from tests.conftest import ROOT

RECIPE = ROOT / "jobs/recipes/closed-loop-training.toml"


def test_the_recipe_of_the_closed_loop_is_valid() -> None:
    recipe = load_training_recipe(RECIPE)
    assert (recipe.name, recipe.model.name, recipe.data.classes) == ("hardened", "untrained", 10)
    assert [held_out.name for held_out in recipe.held_out] == ["nfnet", "mambaout"]
    assert (recipe.attack.epsilon, recipe.schedule.crafted) == (Fraction(64, 255), 0.5)
    assert recipe.data.stores == (str(Path.cwd() / "build/loop/store"),)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("clean = 0.5", "clena = 0.5", "data.clena: unknown key; did you mean clean?"),
        ("clean = 0.5", "clean = 0", "crafted: clean images are attacked, and data.clean = 0 leaves none"),
        ("clean = 0.5", "clean = 1.0", "data.clean = 1.0: input should be less than 1"),
        ('name = "mambaout"', 'name = "nfnet"', "held_out: two have the same name"),
        ('epsilon = "64/255"', 'epsilon = ["1/255", "2/255"]', "budget: one epsilon and one number of steps"),
        ("epochs = 3", "epochs = 0", "schedule: epochs = 0, batch_size = 64: at least 1, and 2"),
        ("learning_rate = 1e-3", "learning_rate = -1", "schedule: learning_rate must be positive"),
        ('stores = "build/loop/store"', "stores = []", "data.stores = []: is empty; at least one is wanted"),
    ],
)
def test_an_error_names_the_field_and_the_remedy(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = RECIPE.read_text()
    assert old in text
    (path := tmp_path / "training.toml").write_text(text.replace(old, new))
    with pytest.raises(RecipeError) as caught:
        load_training_recipe(path)
    assert message in str(caught.value)
