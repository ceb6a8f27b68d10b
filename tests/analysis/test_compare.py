import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from scipy.stats import binomtest, norm, t

from jobs import cli, tables
from pipeline.analysis import compare, forest_plot
from pipeline.analysis.compare import Comparison
from pipeline.data.sample import Part
from pipeline.ledger import Ledger, Unit
from pipeline.results import schema
from pipeline.results.intervals import PooledGain
from pipeline.storage import Storage

DATASET, N = "d-1", 40
LABELS = np.arange(N) % 10


def comparison(only_attack: int, only_base: int, *, both: int = 0, n: int = 100) -> Comparison:
    return Comparison("d", "net", 8 / 255, "linf", "gnp+mi", "mi", 20, 10, "x", both, only_attack, only_base, n)


def predicted(wrong: set[int]) -> np.ndarray:
    return np.where(np.isin(np.arange(N), list(wrong)), (LABELS + 1) % 10, LABELS)


def commit(
    ledger: Ledger,
    name: str,
    wrong: set[int],
    *,
    part: int = 0,
    epsilon: float = 8 / 255,
    cost: int = 10,
    source: str = "net",
    target: str = "x",
) -> None:
    """Clean predictions, or those on the images of an attack that costs so much, wrong on some images."""
    columns: dict[str, Any] = {
        "dataset": DATASET,
        "shard": "s",
        "part": part,
        "key": [f"{part}-{i}" for i in range(N)],
        "label": LABELS,
        "target": target,
        "target_id": f"{target}-1",
        "policy": "direct",
        "defense": "",
        "weights_sha256": "0",
        "pixels_sha256": ["0"] * N,
        "prediction": predicted(wrong),
        "label_probability": 0.5,
        "abstained": False,
    }
    unit = Unit(DATASET, Part("s", part, 2), target=f"{target}-1")
    if name == "clean":
        ledger.commit(unit, schema.write(schema.table(schema.CLEAN, columns)), "parquet", {})
        return
    attack = f"{name}-{epsilon}"
    columns |= {"source": source, "source_id": f"{source}-1", "attack": name, "attack_id": attack}
    columns |= {"epsilon": epsilon, "norm": "linf", "target_class": None}
    images = Unit(DATASET, Part("s", part, 2), f"{source}-1", attack)
    ledger.commit(images, b"", "tar", {"gradients": cost, "source": {"digest": source}})
    unit = Unit(DATASET, Part("s", part, 2), f"{source}-1", attack, f"{target}-1")
    ledger.commit(unit, schema.write(schema.table(schema.TRANSFER, columns)), "parquet", {"target": {"digest": target}})


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """Two parts; clean, the target is wrong on the first two images of each."""
    made = Ledger(Storage(str(tmp_path / "store"), create=True))
    for part in range(2):
        commit(made, "clean", {0, 1}, part=part)
        commit(made, "mi[steps=10]", {0, 1, 2, 3, 4}, part=part)
        commit(made, "mi[steps=20]", {0, 2, 3, 4, 5, 6}, part=part, cost=20)
        commit(made, "gnp+mi", {0, 1, 3, 4, 5, 6, 7, 8}, part=part, cost=20)
        commit(made, "gnp+mi", {9}, part=part, epsilon=4 / 255, cost=20)
    return made


def test_attacks_are_counted_image_by_image_over_all_parts(ledger: Ledger) -> None:
    rows = {row.base: row for row in compare.compare(ledger, base="mi").each}
    assert rows.keys() == {"mi[steps=10]", "mi[steps=20]"}, "the other budget has no base to be held against"
    ten, twenty = rows["mi[steps=10]"], rows["mi[steps=20]"]
    assert (ten.attack, ten.gradients, ten.base_gradients, twenty.base_gradients) == ("gnp+mi", 20, 10, 20)
    assert (ten.both, ten.only_attack, ten.only_base, ten.n) == (4, 8, 2, 76)
    assert (twenty.both, twenty.only_attack, twenty.only_base, twenty.n) == (8, 4, 2, 76)
    assert ten.gain == pytest.approx(6 / 76)
    assert [rate.count for rate in ten.success] == [12, 6]
    whole = {row.base: row for row in compare.compare(ledger, base="mi", denominator="all").each}["mi[steps=10]"]
    assert (whole.both, whole.only_attack, whole.only_base, whole.n) == (8, 8, 2, 80)
    assert compare.compare(ledger, base="i").each == []


def test_one_attack_costs_from_each_source_what_it_costs_there(ledger: Ledger) -> None:
    """An ensemble of three takes three gradients where one network takes one; the attack is the same."""
    for part in range(2):
        commit(ledger, "mi[steps=10]", {0}, part=part, cost=30, source="three")
        commit(ledger, "gnp+mi", {0}, part=part, cost=60, source="three")
    rows = compare.compare(ledger, base="mi").each
    costs = {(row.source, row.base): (row.gradients, row.base_gradients) for row in rows}
    assert costs[("three", "mi[steps=10]")] == (60, 30)
    assert costs[("net", "mi[steps=10]")] == (20, 10)


def test_the_test_is_mcnemars_exact_one() -> None:
    assert comparison(9, 1, both=50).p_value == pytest.approx(2 * 11 / 2**10)
    assert comparison(9, 1).p_value == binomtest(9, 10, 0.5).pvalue
    assert comparison(5, 5, both=10).p_value == 1
    assert comparison(0, 0).p_value == 1


def test_the_interval_covers_the_gain_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    for one, other, n in ((0.3, 0.2, 60), (0.1, 0.05, 200), (0.5, 0.1, 30)):
        draws = random.multinomial(n, [one, other, 1 - one - other], size=2000)
        intervals = [comparison(int(a), int(b), n=n).interval for a, b, _ in draws]
        held = np.mean([low <= one - other <= high for low, high in intervals])  # type: ignore[misc]
        assert 0.93 < held <= 0.99, (one, other, n)


def test_targets_together_are_all_but_the_source_itself(ledger: Ledger) -> None:
    for part in range(2):
        for target, wrong in (("net", {0}), ("y", {5})):
            commit(ledger, "clean", wrong, part=part, target=target)
            commit(ledger, "mi[steps=10]", {0, 1}, part=part, target=target)
            commit(ledger, "gnp+mi", {0, 1, 2, 5, 6}, part=part, target=target)
    (row,) = (row for row in compare.compare(ledger, base="mi").together if row.base == "mi[steps=10]")
    # In each part: x, right about 38, gives +1 on 5, 6, 7, 8 and -1 on 2; y, right about 39, +1 on 2 and 6.
    assert (row.source, row.models, row.gain.images, row.gain.n, row.gain.count) == ("net", 2, 80, 154, 10)
    # Gained: 0 on 2, +1 on 5 (of one), 7 and 8, +2 on 6. Counted: 1 on 0, 1 and 5, else 2.
    assert row.gain.squares == (2 * (1 + 1 + 1 + 4), 2 * (1 + 2 + 2 + 4), 2 * (3 + 37 * 4))


def test_sources_are_set_together_where_there_are_several(ledger: Ledger) -> None:
    assert [row.source for row in compare.compare(ledger, base="mi").together] == ["net", "net"]
    commit(ledger, "mi[steps=10]", {1}, source="other")
    commit(ledger, "gnp+mi", {1, 2, 3}, source="other")
    rows = [row for row in compare.compare(ledger, base="mi").together if row.base == "mi[steps=10]"]
    assert {row.source: (row.models, row.gain.count, row.gain.n) for row in rows} == {
        "": (2, 8, 114),
        "net": (1, 6, 76),
        "other": (1, 2, 38),
    }
    console = Console(record=True, width=160, file=io.StringIO())
    tables.show_comparisons(compare.compare(ledger, base="mi"), denominator="target", console=console)
    assert "from every source, ε = 8/255" in console.export_text()


def test_of_one_target_the_interval_is_the_pairs_own_but_for_few_images() -> None:
    gained = np.array([1] * 9 + [-1] * 2 + [0] * 39)
    pair, all_of_it = comparison(9, 2, n=50).interval, PooledGain.over(gained, np.ones(50)).interval
    assert pair is not None
    assert all_of_it is not None
    wider = float(t.ppf(0.975, 51) / norm.ppf(0.975))
    assert np.diff(all_of_it) == pytest.approx(np.diff(pair) * wider)
    assert np.mean(all_of_it) == pytest.approx(np.mean(pair))


def test_the_figure_has_each_attack_beside_the_base_nearest_in_cost(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in range(2):
        commit(ledger, "mi[steps=10]", {0}, part=part, epsilon=4 / 255)
    rows = compare.compare(ledger, base="mi").together
    assert {(row.attack, row.base, row.epsilon) for row in forest_plot.beside(rows)} == {
        ("gnp+mi", "mi[steps=20]", 8 / 255),
        ("gnp+mi", "mi[steps=10]", 4 / 255),
    }
    foreign = [replace(row, gradients=None) for row in rows]
    assert {row.base for row in forest_plot.beside(foreign)} == {"mi[steps=20]", "mi[steps=10]"}, "or the costliest"
    out = tmp_path / "out"
    ledger.record_plan({"dataset": DATASET, "shards": ["s"], "sources": [], "attacks": [], "targets": []})
    monkeypatch.setattr("sys.argv", ["gnp", "compare", ledger.storage.url, "--base", "mi", "--out", str(out)])
    assert cli.run() == 0
    (picture,) = out.iterdir()
    assert str(picture) in capsys.readouterr().out
    assert picture.name == f"compare-mi-net-1-{DATASET}.png"
    image = np.asarray(Image.open(picture).convert("RGB"))
    assert min(image.shape[:2]) > 200
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 20


def test_of_no_images_there_is_no_gain() -> None:
    nothing = comparison(0, 0, n=0)
    assert (nothing.gain, nothing.interval, nothing.p_value) == (None, None, 1)


def test_what_is_shown_has_gain_interval_p_count_and_cost(ledger: Ledger) -> None:
    compared = compare.compare(ledger, base="mi")
    console = Console(record=True, width=160, file=io.StringIO())
    tables.show_comparisons(compared, denominator="target", console=console)
    shown = " ".join(console.export_text().split())
    for piece in (
        "from net, ε = 8/255",
        "gnp+mi (20)",
        "mi[steps=10] (10)",
        "+8 of 76",
        "p = 0.11",
        "of 2 comparisons",
    ):
        assert piece in shown, shown
    told = json.loads(json.dumps(compare.to_json(compared)))
    assert told["each"][0]["p_value"] == pytest.approx(binomtest(8, 10, 0.5).pvalue)
