import importlib.metadata
from dataclasses import replace
from typing import Any

import duckdb
import pytest

from pipeline.ledger import Ledger
from pipeline.maintenance import card
from pipeline.maintenance.card import Card, DatasetRow, ModelRow
from pipeline.maintenance.finalize import finalize
from tests.maintenance.stores import ATTACKS, IMAGES, ROWS

HOSTILE = "a|b`c`\n# d <script>x</script> [e](javascript:f) *g* \\| _h_ \u202e&amp;"


def hostile_card() -> Card:
    return Card(
        version="0" * 12,
        datasets=[DatasetRow(HOSTILE, 1, 2, 1, 1, 5000)],
        sources=[ModelRow(HOSTILE, HOSTILE, {"model": HOSTILE, "digest": HOSTILE, "policy": HOSTILE})],
        targets=[ModelRow(HOSTILE, HOSTILE, {})],
        attacks={HOSTILE: {"name": HOSTILE, "epsilon": "8/255", HOSTILE: [{"kind": HOSTILE, "r": HOSTILE}]}},
        splits={"original": 1},
        rows={"clean": 1, "transfer": 1},
        software={HOSTILE: [HOSTILE]},
        plans=[HOSTILE],
        missing_shards=0,
        missing_results=0,
    )


def test_hostile_names_are_plain_text_in_a_card() -> None:
    text = card.render(hostile_card())
    for piece in ("<script", "</script", "`c", "[e]", "*g*", "\\", "_h_", "\u202e", "\n#  d", "\n# d", "&amp;"):
        assert piece not in text
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) == 5
    for lines in tables:
        assert {line.count("|") for line in lines} == {lines[0].count("|")}
        assert all(line.startswith("| ") and line.endswith(" |") for line in lines)


def test_an_escaped_value_is_one_short_line() -> None:
    assert card.escape("tf_efficientnet_lite0 gnp+mi 16/255 a.b-c") == "tf_efficientnet_lite0 gnp+mi 16/255 a.b-c"
    assert card.escape("a\r\n\x00\u2028b") == "a    b"
    assert card.escape("&|") == "&#38;&#124;"
    assert len(card.escape("x" * 10_000)) < 1000


@pytest.mark.parametrize(
    ("images", "category"),
    [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (10**6, "1M<n<10M"), (10**9, "1B<n<10B")],
)
def test_the_header_has_the_size_category(images: int, category: str) -> None:
    sized = replace(hostile_card(), datasets=[DatasetRow("d", 1, 2, 1, 1, images)])
    header = card.render(sized).split("---\n")[1]
    assert f"size_categories:\n- {category}\n" in header
    assert "license: other\n" in header
    assert "task_categories:\n- image-classification\n" in header


def test_a_card_lists_counts_attacks_models_and_software(ledger: Ledger) -> None:
    version = finalize(ledger)
    text = ledger.storage.get("README.md").decode()
    (key,) = ledger.plan_keys()
    for piece in (
        f"versions/{version.id}/manifest.json",
        f"- plan: {key}",
        f"{IMAGES * ATTACKS} adversarial images of {IMAGES} originals; 0 input images could not be used",
        "- 2 attacks, 1 sources, 1 targets",
        f"{ROWS['clean']} clean and {ROWS['transfer']} transfer predictions",
        "| source | tiny | test_resnet |",
        "| target+mi | 8/255 | 2 | 4/255 | 1.0 | GradientNormPenalty(beta = 0.8, form = literal, norm = l2, r = 0.01)",
        "| noise | 8/255 | – |",
        f"| torch | {importlib.metadata.version('torch')} |",
        "remain under its terms",
        "ETHICS.md",
    ):
        assert piece in text
    assert "incomplete" not in text


def test_the_code_in_a_card_runs(ledger: Ledger) -> None:
    finalize(ledger)
    text = ledger.storage.get("README.md").decode().replace("STORE", ledger.storage.url)
    blocks = [block.split("\n", 1) for block in text.split("```")[1::2] if "\n" in block]
    (python,) = (code for language, code in blocks if language == "python")
    left: dict[str, Any] = {}
    exec(python, left)
    assert len(list(left["images"])) == IMAGES * ATTACKS
    assert {"__key__", "png", "cls"} <= left["sample"].keys()
    transfer, clean = (duckdb.execute(code).fetchall() for language, code in blocks if language == "sql")
    assert [row[:4] for row in sorted(transfer)] == [("tiny", name, "tiny", IMAGES) for name in ("noise", "target+mi")]
    assert [row[:2] for row in clean] == [("tiny", IMAGES)]
