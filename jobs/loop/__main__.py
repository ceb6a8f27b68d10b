"""`make loop`: attack, train, attack again; on digits over photographs, in some minutes on two cores.

1. Six small networks are trained on clean digits.  2. Three of them are attacked on the training digits, and two
others, of other architectures, on digits to measure on.  3. The sixth is trained three times: on random noise of the
same budget, which is what adversarial images have to beat; on what was stored of the three; and on that and on images
crafted against it.  4. All that came of it is scored beside what it was, on what the other two make.
"""

import argparse
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from jobs import tables
from jobs.exit_codes import leave_with
from jobs.loop import digits
from jobs.runners import generate, train
from pipeline.analysis.report import summarise
from pipeline.ledger import Ledger
from pipeline.maintenance import finalize
from pipeline.plan.outline import Prepared
from pipeline.plan.pools import Pools
from pipeline.storage import Storage
from pipeline.training import Lesson
from pipeline.training import recipe as lessons

RECIPES = Path(__file__).parents[1] / "recipes"
# timm's architectures: the first is trained, three make what it is trained on, the others what it is measured on.
NETWORKS = ("test_resnet", "test_byobnet", "test_efficientnet", "test_convnext2", "test_nfnet", "test_mambaout")


def main() -> int:
    """Runs the loop; returns its exit code."""
    parser = argparse.ArgumentParser(description="attack, train, attack again, on digits")
    parser.add_argument("--seed", type=int, default=0, help="of networks, division and training")
    seed = parser.parse_args().seed
    folder = Path("build/loop") if seed == 0 else Path(f"build/loop-{seed}")
    store, console = str(folder / "store"), Console(width=None if sys.stdout.isatty() else 120)
    images, training, again = (_recipe(name, folder) for name in ("-images", "-training", ""))
    console.print("[bold]1[/bold]  six networks, trained on clean digits")
    torch.set_num_threads(1)  # more would round otherwise, and training makes other networks of that
    digits.prepare(folder, NETWORKS, seed=seed)
    for told, prepare in (
        (f"gnp generate {images.name}", partial(_prepare, images, store, "untrained")),
        (f"gnp generate {again.name}, scored on the untrained network", partial(_prepare, again, store, "untrained")),
    ):
        console.print(f"[bold]2[/bold]  {told}")
        code = generate.carry_out(prepare, store, console=console)
        if code:
            return code
    finalize.finalize(Ledger(Storage(store)))
    for lesson in _lessons(training, seed):
        console.print(f"[bold]3[/bold]  gnp train {training.name}: {lesson.name}")
        train.carry_out(lesson, store, console=console)
    console.print(f"[bold]4[/bold]  gnp generate {again.name}: the trained networks are targets")
    code = generate.run(again, store, console=console)
    if code:
        return code
    tables.show(summarise(Ledger(Storage(store))), denominator="target", console=console)
    return 0


def _lessons(recipe: Path, seed: int) -> list[Lesson]:
    """The recipe's lesson, and before it what it is to be held against: on noise alone, and on stored images alone."""
    lesson = lessons.load(recipe)
    whole = replace(lesson, schedule=replace(lesson.schedule, seed=seed))
    stored = replace(whole, name="on-stored", schedule=replace(whole.schedule, crafted=0.0))
    return [replace(stored, name="on-noise", data=replace(stored.data, attacks=("noise",))), stored, whole]


def _recipe(name: str, folder: Path) -> Path:
    """One of the loop's recipes, for a folder of its own."""
    path = folder / f"closed-loop{name}.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text((RECIPES / path.name).read_text().replace("build/loop/", f"{folder}/"))
    return path


def _prepare(recipe: Path, store: str, target: str) -> tuple[Prepared, Pools]:
    """A recipe with one of its targets, for the other's weights are not there yet; in a process of its own."""
    from pipeline.plan import recipe as config
    from pipeline.plan import resolve

    loaded = config.load(recipe)
    job = loaded.job()
    job = replace(job, targets=tuple(each for each in job.targets if each.name == target))
    return resolve.prepare(job, Storage(store, create=True)), loaded.engine


if __name__ == "__main__":
    leave_with(main)
