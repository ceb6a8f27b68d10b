"""The dataset card of a version: `README.md` in the Hugging Face style, rendered from facts of the store.

Names come from recipes and stored facts, so every character with a meaning in Markdown or HTML is written as a
character reference. URLs of input shards are left out: they may contain local paths or user names.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Characters with a meaning in Markdown or HTML; an underscore within a word has none.
_SPECIAL = re.compile(r"[&<>|`\\\[\]*~$!#]|(?<!\w)_|_(?!\w)")
_MAX_LENGTH = 300
# Hugging Face's size categories: the first whose upper bound exceeds the count.
_SIZES = (
    *((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M")),
    *((10**8, "10M<n<100M"), (10**9, "100M<n<1B")),
)


@dataclass(frozen=True)
class DatasetRow:
    """One dataset in the card's table.

    Attributes:
        id: Identity of the prepared images.
        shards: Number of input shards with committed results.
        input: Number of input images.
        usable: Number of stored originals.
        quarantined: Number of images that could not be used.
        adversarial: Number of stored adversarial images.
    """

    id: str
    shards: int
    input: int
    usable: int
    quarantined: int
    adversarial: int


@dataclass(frozen=True)
class ModelRow:
    """One source or target in the card's table: its name, its identity, and what the identity stands for."""

    name: str
    id: str
    identity: Mapping[str, Any]


@dataclass(frozen=True)
class Card:
    """The facts of a dataset card.

    Attributes:
        version: The version's id.
        datasets: Counts of each dataset.
        sources: Models attacked.
        targets: Models scored.
        attacks: Identity → provenance.
        splits: Split → its number of images.
        rows: `clean` and `transfer` → number of rows in the compacted files.
        software: Package → its versions, from the markers.
        plans: Keys of the recorded plans.
        missing_shards: Number of shards that plans name and that have nothing committed.
        missing_results: Number of results of the other shards that plans want and that are not committed.
    """

    version: str
    datasets: Sequence[DatasetRow]
    sources: Sequence[ModelRow]
    targets: Sequence[ModelRow]
    attacks: Mapping[str, Mapping[str, Any]]
    splits: Mapping[str, int]
    rows: Mapping[str, int]
    software: Mapping[str, Iterable[str]]
    plans: Sequence[str]
    missing_shards: int
    missing_results: int

    @property
    def folder(self) -> str:
        """The version's folder, relative to the store's root."""
        return f"versions/{self.version}"


def render(card: Card) -> str:
    """The card as Markdown."""
    sections = [_header(card), _summary(card), _data(card), _models(card), _attacks(card), _reading(card)]
    return "\n\n".join([*sections, _software(card), _TERMS, _provenance(card)]) + "\n"


def escape(value: object) -> str:
    """A value as one line of plain text, for Markdown tables and running text."""
    line = "".join(character if character.isprintable() else " " for character in str(value))
    line = line if len(line) <= _MAX_LENGTH else f"{line[:_MAX_LENGTH]}…"
    return _SPECIAL.sub(lambda match: f"&#{ord(match[0])};", line)


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; every cell is escaped."""
    lines = [head, ["---"] * len(head), *([escape(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _header(card: Card) -> str:
    images = sum(dataset.adversarial for dataset in card.datasets)
    size = next((name for bound, name in _SIZES if images < bound), "1B<n<10B")
    lines = ["license: other", "task_categories:", "- image-classification", "size_categories:", f"- {size}"]
    lines += ["tags:", "- adversarial-examples", "- robustness", "- webdataset", "- gnp"]
    kinds = [kind for kind in ("transfer", "clean") if card.rows[kind]]
    if kinds:
        lines.append("configs:")
        for kind in kinds:
            lines += [f"- config_name: {kind}", f"  data_files: {card.folder}/{kind}/*.parquet"]
    return "\n".join(["---", *lines, "---"])


def _summary(card: Card) -> str:
    adversarial, usable, quarantined = (
        sum(getattr(dataset, name) for dataset in card.datasets) for name in ("adversarial", "usable", "quarantined")
    )
    lines = [
        f"# Transferable adversarial images, version {card.version}",
        "",
        "Adversarial images that `gnp` made on source models, the originals that they were made from, and what target",
        "models predict on both. Images are WebDataset shards (PNG, class, JSON), predictions are Parquet.",
        "",
        f"- {adversarial} adversarial images of {usable} originals; {quarantined} input images could not be used",
        f"- {len(card.attacks)} attacks, {len(card.sources)} sources, {len(card.targets)} targets",
        f"- {card.rows['clean']} clean and {card.rows['transfer']} transfer predictions",
    ]
    if card.missing_shards or card.missing_results:
        lines += [
            "",
            f"**This version is incomplete:** {card.missing_shards} input shards and {card.missing_results} results "
            "that runs set out to make were not committed when it was made.",
        ]
    return "\n".join(lines)


def _data(card: Card) -> str:
    head = ("dataset", "input shards", "images in", "usable", "quarantined", "adversarial images")
    rows = [(d.id, d.shards, d.input, d.usable, d.quarantined, d.adversarial) for d in card.datasets]
    splits = table(("split", "images"), card.splits.items())
    return f"## Images\n\n{table(head, rows)}\n\nSplits in `_info.json`:\n\n{splits}"


def _models(card: Card) -> str:
    head = ("", "name", "architecture", "weights", "policy", "id")
    rows = [
        (role, model.name, *_model_cells(model.identity), model.id)
        for role, models in (("source", card.sources), ("target", card.targets))
        for model in models
    ]
    note = "*weights*: the first digits of the sha256 of the state dict. *policy*: how an image becomes the input."
    return f"## Models\n\n{table(head, rows)}\n\n{note}"


def _model_cells(identity: Mapping[str, Any]) -> tuple[object, str, object]:
    """Architecture, digest and policy; a dash for what an identity lacks."""
    return identity.get("model", "–"), str(identity.get("digest", "–"))[:12], identity.get("policy", "–")


def _attacks(card: Card) -> str:
    columns = ("epsilon", "steps", "step_size", "decay", "transforms")
    rows = [
        (
            attack.get("name", "–"),
            *(_setting(attack[column]) if column in attack else "–" for column in columns),
            ", ".join(f"{name} = {_setting(attack[name])}" for name in sorted(attack.keys() - {"name", *columns})),
            identity,
        )
        for identity, attack in sorted(card.attacks.items())
    ]
    head = ("attack", "ε", "steps", "step size", "decay", "transforms, innermost first", "further settings", "id")
    return f"## Attacks\n\n{table(head, rows)}"


def _setting(value: Any) -> str:
    """A setting as one line: `GradientNormPenalty(beta = 0.8, form = literal, ...)`."""
    if isinstance(value, Mapping):
        settings = ", ".join(f"{name} = {_setting(value[name])}" for name in sorted(value) if name != "kind")
        return f"{value.get('kind', '')}({settings})"
    if isinstance(value, list):
        return ", ".join(map(_setting, value)) or "none"
    return str(value)


def _reading(card: Card) -> str:
    lines = ["## How to read it", "", "`STORE` is where this store lies; every path is relative to it."]
    if card.splits:
        split = next(iter(card.splits))
        lines += [
            "",
            "```python",
            "import json, timm.data, webdataset",
            "",
            f'images = timm.data.create_dataset("wds/gnp", root="STORE", split="{split}")  # a folder',
            "",
            f'files = json.load(open("STORE/_info.json"))["splits"]["{split}"]["filenames"]',
            'shards = [f"STORE/{file}" for file in files]',
            'for sample in webdataset.WebDataset(shards, shardshuffle=False).decode("pil"):',
            '    sample["__key__"], sample["png"], sample["cls"]',
            "```",
        ]
    columns = {"transfer": "source, attack, target", "clean": "target"}
    for kind in (kind for kind in columns if card.rows[kind]):
        lines += [
            "",
            "```sql",
            f"select {columns[kind]}, count(*), avg((prediction <> label)::int) as wrong  -- in DuckDB",
            f"from 'STORE/{card.folder}/{kind}/*.parquet' group by all",
            "```",
        ]
    return "\n".join(lines)


def _software(card: Card) -> str:
    rows = [(name, ", ".join(sorted(versions))) for name, versions in sorted(card.software.items())]
    return f"## Software that made it\n\n{table(('package', 'versions'), rows)}"


_TERMS = """## Terms

The images are derived from the input data and remain under its terms: keep this store as private as its source, and
name the source where you publish figures. The examples were made to study the robustness of one's own models, and to
train them; see ETHICS.md of `gnp`."""


def _provenance(card: Card) -> str:
    plans = [f"- plan: {escape(plan)}" for plan in card.plans] or ["- no plan was recorded"]
    lines = [
        "## Provenance",
        "",
        f"- every committed object, and every file of this version, with its sha256: {card.folder}/manifest.json",
        *plans,
    ]
    return "\n".join(lines)
