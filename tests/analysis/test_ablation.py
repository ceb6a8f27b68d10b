import io
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from jobs import tables
from pipeline.analysis import ablation, ablation_plot, drawing
from pipeline.analysis.ablation import Point
from pipeline.analysis.report import summarise
from pipeline.attack.gradient_norm_penalty import GradientNormPenalty
from pipeline.errors import RecipeError
from pipeline.ledger import Ledger
from pipeline.results.intervals import PooledRate
from pipeline.storage import Storage
from tests.samples import attack, make_plan, sample, tiny_job, write_shard
from tests.stages.runs import run_stages


def point(beta: float, r: float, epsilon: str = "8/255", steps: int = 10, *, hits: int = 5) -> Point:
    settings: dict[str, ablation.SettingValue] = {
        "gnp.beta": beta,
        "gnp.r": r,
        "epsilon": epsilon,
        "steps": steps,
    }
    return Point(
        "d",
        "net",
        "net-1",
        f"gnp+mi[{beta}{r}{epsilon}{steps}]",
        settings,
        PooledRate(9, 10, 10, (9, 9, 10)),
        PooledRate(hits, 20, 10, (5 * hits, 2 * hits, 40)),
    )


GRID = [
    point(beta, r, epsilon, steps, hits=int(20 * beta))
    for beta in (0.2, 0.4, 0.6, 0.8)
    for r in (0.003, 0.01, 0.03)
    for epsilon in ("4/255", "8/255", "16/255")
    for steps in (10, 50)
]


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Ledger:
    folder = tmp_path_factory.mktemp("ablation")
    write_shard(folder / "in" / "s.tar", [sample(index) for index in range(6)])
    attacks = [
        attack(
            "gnp+mi",
            name=f"gnp+mi[gnp.beta={beta},epsilon={epsilon}]",
            epsilon=epsilon,
            parts={"gnp": GradientNormPenalty(beta=beta)},
        )
        for beta in (0.0, 0.8)
        for epsilon in (Fraction(4, 255), Fraction(8, 255))
    ]
    ledger = Ledger(Storage(str(folder / "store"), create=True))
    run_stages(make_plan(tiny_job(folder / "in", tiny_checkpoint, attacks=[*attacks, attack("mi")])), ledger)
    return ledger


def test_a_grid_is_read_by_name_with_the_settings_that_vary(ledger: Ledger) -> None:
    points = ablation.grid_points(ledger, summarise(ledger), attack="gnp+mi", denominator="all")
    assert {tuple(point.settings.items()) for point in points} == {
        (("epsilon", epsilon), ("gnp.beta", beta)) for epsilon in ("4/255", "8/255") for beta in (0.0, 0.8)
    }, "the default step size ε/T is not a setting of its own"
    assert ablation.varying_settings(points) == ["gnp.beta", "epsilon"]
    assert all((point.white_box.n, point.transfer.n) == (6, 0) for point in points), "the only target is the source"
    for name in ("mi", "gnp"):
        with pytest.raises(RecipeError, match="holds no grid of that name"):
            ablation.grid_points(ledger, summarise(ledger), attack=name)


def test_settings_of_transforms_come_before_the_budget() -> None:
    assert ablation.varying_settings(GRID) == ["gnp.beta", "gnp.r", "epsilon", "steps"]


@pytest.mark.parametrize(
    "grid", [GRID, GRID[:1] + GRID[18:19], [point for point in GRID if point.settings["steps"] == 10]]
)
def test_a_grid_is_drawn_as_one_figure(grid: list[Point]) -> None:
    image = np.asarray(
        Image.open(io.BytesIO(drawing.png(ablation_plot.draw(grid, denominator="target")))).convert("RGB")
    )
    assert min(image.shape[:2]) > 300
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 20


def test_too_many_settings_for_a_figure_are_refused() -> None:
    points = [
        Point("d", "net", "net-1", "a[x]", {f"x{index}": value for index in range(5)}, PooledRate(), PooledRate())
        for value in (1, 2)
    ]
    with pytest.raises(RecipeError, match=r"5 settings vary \(x0, x1, x2, x3, x4\): a figure shows at most 4"):
        ablation_plot.draw(points, denominator="target")


def test_table_has_a_row_per_point() -> None:
    console = Console(record=True, width=200, file=io.StringIO())
    tables.print_grid(GRID, ablation.varying_settings(GRID), denominator="target", console=console)
    shown = console.export_text()
    assert shown.count("9/10") == len(GRID)
    assert "80% 16/20" in shown
