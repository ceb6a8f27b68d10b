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
from pipeline.analysis.json_values import comparison_values
from pipeline.analysis.paired_statistics import TargetComparison
from pipeline.data.sample import Part
from pipeline.ledger import Ledger, Unit
from pipeline.results import schema
from pipeline.results.intervals import PooledGain
from pipeline.storage import Storage

DATASET, N = "d-1", 40
LABELS = np.arange(N) % 10


def comparison(only_attack: int, only_base: int, *, both: int = 0, n: int = 100) -> TargetComparison:
    return TargetComparison("d", "net", 8 / 255, "linf", "gnp+mi", "mi", 20, 10, "x", both, only_attack, only_base, n)


def predictions(wrong: set[int]) -> np.ndarray:
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
    """Commits predictions that are wrong on some images: clean ones, or those of an attack with `cost` gradients."""
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
        "prediction": predictions(wrong),
        "label_probability": 0.5,
        "abstained": False,
    }
    unit = Unit(DATASET, Part("s", part, 2), target=f"{target}-1")
    if name == "clean":
        ledger.commit(unit, schema.to_parquet(schema.build_table(schema.CLEAN, columns)), "parquet", {})
        return
    attack = f"{name}-{epsilon}"
    columns |= {"source": source, "source_id": f"{source}-1", "attack": name, "attack_id": attack}
    columns |= {"epsilon": epsilon, "norm": "linf", "target_class": None}
    images = Unit(DATASET, Part("s", part, 2), f"{source}-1", attack)
    ledger.commit(images, b"", "tar", {"gradients": cost, "source": {"digest": source}})
    unit = Unit(DATASET, Part("s", part, 2), f"{source}-1", attack, f"{target}-1")
    ledger.commit(
        unit, schema.to_parquet(schema.build_table(schema.TRANSFER, columns)), "parquet", {"target": {"digest": target}}
    )


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """Two parts; on clean images, the target is wrong on the first two of each."""
    ledger = Ledger(Storage(str(tmp_path / "store"), create=True))
    for part in range(2):
        commit(ledger, "clean", {0, 1}, part=part)
        commit(ledger, "mi[steps=10]", {0, 1, 2, 3, 4}, part=part)
        commit(ledger, "mi[steps=20]", {0, 2, 3, 4, 5, 6}, part=part, cost=20)
        commit(ledger, "gnp+mi", {0, 1, 3, 4, 5, 6, 7, 8}, part=part, cost=20)
        commit(ledger, "gnp+mi", {9}, part=part, epsilon=4 / 255, cost=20)
    return ledger


def test_attacks_are_compared_image_by_image_over_all_parts(ledger: Ledger) -> None:
    rows = {row.base: row for row in compare.compare(ledger, base="mi").by_target}
    assert rows.keys() == {"mi[steps=10]", "mi[steps=20]"}, "there is no base attack at the other budget"
    ten, twenty = rows["mi[steps=10]"], rows["mi[steps=20]"]
    assert (ten.attack, ten.gradients, ten.base_gradients, twenty.base_gradients) == ("gnp+mi", 20, 10, 20)
    assert (ten.both, ten.only_attack, ten.only_base, ten.n) == (4, 8, 2, 76)
    assert (twenty.both, twenty.only_attack, twenty.only_base, twenty.n) == (8, 4, 2, 76)
    assert ten.gain == pytest.approx(6 / 76)
    assert [rate.count for rate in ten.success] == [12, 6]
    whole = {row.base: row for row in compare.compare(ledger, base="mi", denominator="all").by_target}["mi[steps=10]"]
    assert (whole.both, whole.only_attack, whole.only_base, whole.n) == (8, 8, 2, 80)
    assert compare.compare(ledger, base="i").by_target == []


def test_cost_of_an_attack_depends_on_the_source(ledger: Ledger) -> None:
    """An ensemble of three takes three gradients where one network takes one; the attack is the same."""
    for part in range(2):
        commit(ledger, "mi[steps=10]", {0}, part=part, cost=30, source="three")
        commit(ledger, "gnp+mi", {0}, part=part, cost=60, source="three")
    rows = compare.compare(ledger, base="mi").by_target
    costs = {(row.source, row.base): (row.gradients, row.base_gradients) for row in rows}
    assert costs[("three", "mi[steps=10]")] == (60, 30)
    assert costs[("net", "mi[steps=10]")] == (20, 10)


def test_p_value_is_mcnemars_exact() -> None:
    assert comparison(9, 1, both=50).p_value == pytest.approx(2 * 11 / 2**10)
    assert comparison(9, 1).p_value == binomtest(9, 10, 0.5).pvalue
    assert comparison(5, 5, both=10).p_value == 1
    assert comparison(0, 0).p_value == 1


def test_interval_covers_the_gain_at_its_confidence() -> None:
    random = np.random.default_rng(0)
    for p_attack, p_base, n in ((0.3, 0.2, 60), (0.1, 0.05, 200), (0.5, 0.1, 30)):
        draws = random.multinomial(n, [p_attack, p_base, 1 - p_attack - p_base], size=2000)
        intervals = [comparison(int(a), int(b), n=n).interval for a, b, _ in draws]
        covered = np.mean([low <= p_attack - p_base <= high for low, high in intervals])  # type: ignore[misc]
        assert 0.93 < covered <= 0.99, (p_attack, p_base, n)


def test_pooled_comparisons_leave_out_the_source_itself(ledger: Ledger) -> None:
    for part in range(2):
        for target, wrong in (("net", {0}), ("y", {5})):
            commit(ledger, "clean", wrong, part=part, target=target)
            commit(ledger, "mi[steps=10]", {0, 1}, part=part, target=target)
            commit(ledger, "gnp+mi", {0, 1, 2, 5, 6}, part=part, target=target)
    (row,) = (row for row in compare.compare(ledger, base="mi").pooled if row.base == "mi[steps=10]")
    # In each part: x, correct on 38 images, gains +1 on 5, 6, 7, 8 and -1 on 2; y, correct on 39, gains +1 on 2 and 6.
    assert (row.source, row.models, row.gain.images, row.gain.n, row.gain.count) == ("net", 2, 80, 154, 10)
    # Gain: 0 on 2, +1 on 5 (one target), 7 and 8, +2 on 6. Targets that count: 1 on 0, 1 and 5, else 2.
    assert row.gain.squares == (2 * (1 + 1 + 1 + 4), 2 * (1 + 2 + 2 + 4), 2 * (3 + 37 * 4))


def test_several_sources_are_pooled_as_well(ledger: Ledger) -> None:
    assert [row.source for row in compare.compare(ledger, base="mi").pooled] == ["net", "net"]
    commit(ledger, "mi[steps=10]", {1}, source="other")
    commit(ledger, "gnp+mi", {1, 2, 3}, source="other")
    rows = [row for row in compare.compare(ledger, base="mi").pooled if row.base == "mi[steps=10]"]
    assert {row.source: (row.models, row.gain.count, row.gain.n) for row in rows} == {
        "": (2, 8, 114),
        "net": (1, 6, 76),
        "other": (1, 2, 38),
    }
    console = Console(record=True, width=160, file=io.StringIO())
    tables.print_comparisons(compare.compare(ledger, base="mi"), denominator="target", console=console)
    assert "from every source, ε = 8/255" in console.export_text()


def test_pooled_interval_on_one_target_is_the_paired_interval_with_t() -> None:
    gained = np.array([1] * 9 + [-1] * 2 + [0] * 39)
    paired, pooled = comparison(9, 2, n=50).interval, PooledGain.over(gained, np.ones(50)).interval
    assert paired is not None
    assert pooled is not None
    ratio = float(t.ppf(0.975, 51) / norm.ppf(0.975))
    assert np.diff(pooled) == pytest.approx(np.diff(paired) * ratio)
    assert np.mean(pooled) == pytest.approx(np.mean(paired))


def test_figure_compares_each_attack_with_the_base_nearest_in_cost(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in range(2):
        commit(ledger, "mi[steps=10]", {0}, part=part, epsilon=4 / 255)
    rows = compare.compare(ledger, base="mi").pooled
    assert {(row.attack, row.base, row.epsilon) for row in forest_plot.nearest_in_cost(rows)} == {
        ("gnp+mi", "mi[steps=20]", 8 / 255),
        ("gnp+mi", "mi[steps=10]", 4 / 255),
    }
    external = [replace(row, gradients=None) for row in rows]
    assert {row.base for row in forest_plot.nearest_in_cost(external)} == {"mi[steps=20]", "mi[steps=10]"}
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


def test_without_images_there_is_no_gain() -> None:
    empty = comparison(0, 0, n=0)
    assert (empty.gain, empty.interval, empty.p_value) == (None, None, 1)


def test_table_has_gain_interval_p_count_and_cost(ledger: Ledger) -> None:
    compared = compare.compare(ledger, base="mi")
    console = Console(record=True, width=160, file=io.StringIO())
    tables.print_comparisons(compared, denominator="target", console=console)
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
    values = json.loads(json.dumps(comparison_values(compared)))
    assert values["each"][0]["p_value"] == pytest.approx(binomtest(8, 10, 0.5).pvalue)
