import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from scipy.stats import binomtest

from jobs import tables
from pipeline import compare, results
from pipeline.compare import Comparison
from pipeline.ledger import Ledger, Unit
from pipeline.sample import Part
from pipeline.storage import Storage

DATASET, N = "d-1", 40
LABELS = np.arange(N) % 10


def comparison(only_attack: int, only_base: int, *, both: int = 0, n: int = 100) -> Comparison:
    return Comparison("d", "net", 8 / 255, "linf", "x", "gnp+mi", "mi", 20, 10, both, only_attack, only_base, n)


def predicted(wrong: set[int]) -> np.ndarray:
    return np.where(np.isin(np.arange(N), list(wrong)), (LABELS + 1) % 10, LABELS)


def commit(
    ledger: Ledger, name: str, wrong: set[int], *, part: int = 0, epsilon: float = 8 / 255, cost: int = 10
) -> None:
    """Clean predictions, or those on the images of an attack that costs so much, wrong on some images."""
    columns: dict[str, Any] = {
        "dataset": DATASET,
        "shard": "s",
        "part": part,
        "key": [f"{part}-{i}" for i in range(N)],
        "label": LABELS,
        "target": "x",
        "target_id": "x-1",
        "policy": "direct",
        "defense": "",
        "weights_sha256": "0",
        "pixels_sha256": ["0"] * N,
        "prediction": predicted(wrong),
        "label_probability": 0.5,
        "abstained": False,
    }
    unit = Unit(DATASET, Part("s", part, 2), target="x-1")
    if name == "clean":
        ledger.commit(unit, results.write(results.CLEAN, columns), "parquet", {})
        return
    attack = f"{name}-{epsilon}"
    columns |= {"source": "net", "source_id": "net-1", "attack": name, "attack_id": attack}
    columns |= {"epsilon": epsilon, "norm": "linf", "target_class": None}
    images = Unit(DATASET, Part("s", part, 2), "net-1", attack)
    ledger.commit(images, b"", "tar", {"gradients": cost})
    unit = Unit(DATASET, Part("s", part, 2), "net-1", attack, "x-1")
    ledger.commit(unit, results.write(results.TRANSFER, columns), "parquet", {})


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
    rows = {row.base: row for row in compare.compare(ledger, base="mi")}
    assert rows.keys() == {"mi[steps=10]", "mi[steps=20]"}, "the other budget has no base to be held against"
    ten, twenty = rows["mi[steps=10]"], rows["mi[steps=20]"]
    assert (ten.attack, ten.gradients, ten.base_gradients, twenty.base_gradients) == ("gnp+mi", 20, 10, 20)
    assert (ten.both, ten.only_attack, ten.only_base, ten.n) == (4, 8, 2, 76)
    assert (twenty.both, twenty.only_attack, twenty.only_base, twenty.n) == (8, 4, 2, 76)
    assert ten.gain == pytest.approx(6 / 76)
    assert [rate.count for rate in ten.success] == [12, 6]
    whole = {row.base: row for row in compare.compare(ledger, base="mi", denominator="all")}["mi[steps=10]"]
    assert (whole.both, whole.only_attack, whole.only_base, whole.n) == (8, 8, 2, 80)
    assert compare.compare(ledger, base="i") == []


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


def test_of_no_images_there_is_no_gain() -> None:
    nothing = comparison(0, 0, n=0)
    assert (nothing.gain, nothing.interval, nothing.p_value) == (None, None, 1)


def test_what_is_shown_has_gain_interval_p_count_and_cost(ledger: Ledger) -> None:
    rows = compare.compare(ledger, base="mi")
    console = Console(record=True, width=160, file=io.StringIO())
    tables.show_comparisons(rows, denominator="target", console=console)
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
    told = json.loads(json.dumps(compare.to_json(rows)))
    assert told[0]["p_value"] == pytest.approx(binomtest(8, 10, 0.5).pvalue)
