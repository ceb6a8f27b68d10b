"""`make loop`: attack, train, attack again; on digits over photographs, in a few minutes on two cores.

1. Six small networks are trained on clean digits.
2. Three of them are attacked on the training digits, and two others, of other architectures, on held-out digits.
3. The sixth is trained three times: on random noise of the same budget, the baseline; on the stored images of the
   three; and on these and on images crafted against it during training.
4. The trained networks and the untrained one are scored on the attacks on the other two.
"""

import argparse
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from jobs import tables
from jobs.loop import digits
from jobs.runners import generate, train
from pipeline.analysis.report import summarise
from pipeline.ledger import Ledger
from pipeline.maintenance import finalize
from pipeline.plan.outline import PickledPlan
from pipeline.plan.pools import Pools
from pipeline.storage import Storage
from pipeline.training import TrainingRecipe
from pipeline.training.recipe_reader import load_training_recipe

RECIPES = Path(__file__).parents[1] / "recipes"
# timm's architectures: the first is trained, on attacks on the next three; it is measured on attacks on the others.
NETWORKS = ("test_resnet", "test_byobnet", "test_efficientnet", "test_convnext2", "test_nfnet", "test_mambaout")


def main() -> int:
    """Runs the loop; returns its exit code."""
    parser = argparse.ArgumentParser(description="attack, train, attack again, on digits")
    parser.add_argument("--seed", type=int, default=0, help="seed of the networks, the split of the data and training")
    seed = parser.parse_args().seed
    folder = Path("build/loop") if seed == 0 else Path(f"build/loop-{seed}")
    store, console = str(folder / "store"), Console(width=None if sys.stdout.isatty() else 120)
    images, training, again = (_copy_recipe(name, folder) for name in ("-images", "-training", ""))
    console.print("[bold]1[/bold]  six networks, trained on clean digits")
    torch.set_num_threads(1)  # more threads round differently, and training amplifies that
    digits.prepare(folder, NETWORKS, seed=seed)
    untrained_target = partial(_prepare_with_target, store=store, target="untrained")
    for title, prepare in (
        (f"gnp generate {images.name}", partial(untrained_target, images)),
        (f"gnp generate {again.name}, scored on the untrained network", partial(untrained_target, again)),
    ):
        console.print(f"[bold]2[/bold]  {title}")
        code = generate.run_job(prepare, store, console=console)
        if code:
            return code
    finalize.finalize(Ledger(Storage(store)))
    for recipe in _training_recipes(training, seed):
        console.print(f"[bold]3[/bold]  gnp train {training.name}: {recipe.name}")
        train.run_training(recipe, store, console=console)
    console.print(f"[bold]4[/bold]  gnp generate {again.name}: the trained networks are targets")
    code = generate.run(again, store, console=console)
    if code:
        return code
    tables.print_report(summarise(Ledger(Storage(store))), denominator="target", console=console)
    return 0


def _training_recipes(path: Path, seed: int) -> list[TrainingRecipe]:
    """The recipe in a file, after two baselines: training on noise only, and on stored images only."""
    loaded = load_training_recipe(path)
    crafted = replace(loaded, schedule=replace(loaded.schedule, seed=seed))
    stored = replace(crafted, name="on-stored", schedule=replace(crafted.schedule, crafted=0.0))
    noise = replace(stored, name="on-noise", data=replace(stored.data, attacks=("noise",)))
    return [noise, stored, crafted]


def _copy_recipe(name: str, folder: Path) -> Path:
    """Copies one of the loop's recipes into a folder, with its paths changed to that folder."""
    path = folder / f"closed-loop{name}.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = (RECIPES / path.name).read_text(encoding="utf-8")
    path.write_text(text.replace("build/loop/", f"{folder}/"), encoding="utf-8")
    return path


def _prepare_with_target(recipe: Path, store: str, target: str) -> tuple[PickledPlan, Pools]:
    """Resolves a recipe with only one of its targets, as the others have no weights yet; called in a child process."""
    from pipeline.plan.recipe_reader import load_recipe
    from pipeline.plan.resolve import prepare_plan

    loaded = load_recipe(recipe)
    job = loaded.job()
    job = replace(job, targets=tuple(spec for spec in job.targets if spec.name == target))
    return prepare_plan(job, Storage(store, create=True)), loaded.engine
