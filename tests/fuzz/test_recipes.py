"""Fuzzed recipes: each is parsed, or refused with the file, the field and what is wrong."""

import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import timm
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import GnpError
from pipeline.plan.recipe_reader import load_recipe
from tests.fuzz.fuzzing import fuzz_settings, only_gnp_errors, scratch

pytestmark = pytest.mark.timeout(300)

RECIPE: dict[str, Any] = {
    "sources": [
        "resnet50.tv_in1k",
        {"name": "both", "ensemble": ["resnet50.tv_in1k", {"model": "vgg19_bn.tv_in1k"}], "fuse": "losses"},
    ],
    "targets": ["vgg19_bn.tv_in1k", {"model": "inception_v3.tv_in1k", "policy": "crop", "name": "wide"}],
    "attacks": [
        "mi",
        {"attack": "noise", "epsilon": "8/255"},
        {"attack": "gnp+mi", "name": "x", "steps": 20, "decay": 0.9, "gnp": {"form": "exact", "r": 0.01, "beta": 0.8}},
        {
            "attack": "rap+ni+di+ti",
            "name": "y",
            "norm": "l2",
            "epsilon": 3,
            "loss": "logit",
            "target_class": "random",
            "ti": {"kernel": "linear", "size": [5, 7]},
            "rap": {"steps": 4},
            "di": {"variant": "no-resize-back"},
        },
        {"attack": "pgn+mi+admix+si", "name": "z", "admix": {"share": [0.1, 0.2]}, "target_class": 3},
    ],
    "batch_size": 8,
    "data": {
        "name": "val",
        "shards": "s3://bucket/val-{0000..0063}.tar",
        "part_size": 64,
        "fraction": 0.5,
        "limit": 100,
        "preparation": {"resize": 256, "crop": 224, "interpolation": "bicubic"},
    },
    "budget": {"epsilon": ["8/255", "16/255"], "steps": [10, 20], "seed": 3},
    "engine": {"generators": "auto", "gpus_per_generator": 0.5, "cpus_per_worker": 2, "item_minutes": 3.5},
}


def custom_model() -> dict[str, Any]:
    return {
        "model": "tf_efficientnet_lite0",
        "name": "own",
        "checkpoint": "x.safetensors",
        "mean": [0.1, 0.2, 0.3],
        "std": [1, 1, 1],
        "input_size": 224,
    }


class RawToml(str):
    """TOML that is written into the recipe as it is."""

    __slots__ = ()


hostile_values = st.one_of(
    st.sampled_from(
        [
            *("0", "-1", "1", "10", "99999999999999999999", "9" * 5000, "-0x1", "0x" + "f" * 5000, "1_000", "0b1" * 9),
            *("nan", "inf", "-inf", "1e400", "1e-400", "-0.0", "0.1", "1e308", "3.5", "true", "false"),
            *("1979-05-27", "07:32:00", "1979-05-27T07:32:00Z", "[]", "{}", "[[]]", "[1]", "{a = 1}", '[""]', "''"),
            *('"1e999999999"', '"1/0"', '"0/1"', '"16/255"', '"10"', '" 1 "', '"1_0"', '"-1"', '"٣"', '"1e-5"', '"½"'),
            *(
                '"nan"',
                '"auto"',
                '"i"',
                '"gnp"',
                '"mi+mi"',
                '"gnp+gnp+mi"',
                '"noise+mi"',
                '"crop"',
                '"' + "+" * 999 + '"',
            ),
            *(
                '"\\u0000"',
                '"a\\nb"',
                '"\\u001b[31m"',
                '"💥"',
                '"../../etc"',
                '"~\\u0000/x"',
                '"{1..9}"',
                '"hf-hub:a/b"',
            ),
            *('"resnet50"', '"torchvision/resnet50"', '"torchvision/"', '"' + "a" * 100_000 + '"', '"s3://"', '"%"'),
            *("[" * 60 + "]" * 60, "[" * 2000 + "]" * 2000, "{a = " * 60 + "1" + "}" * 60, '{model = "x", model = 1}'),
            '{model = "resnet50.tv_in1k", name = ["x"]}',
            '{attack = "gnp+mi", gnp = {r = "0.1"}}',
        ]
    ).map(RawToml),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.builds(custom_model),
)
odd_keys = st.one_of(
    st.sampled_from(
        ["epsilom", "name", "model", "gnp", "steps", "a.b.c", "", "\n", "é", "0", "__class__", ".".join("a" * 50)]
    ),
    st.text(max_size=8),
)


def toml(value: Any) -> str:
    """A value as inline TOML."""
    if isinstance(value, RawToml):
        return str(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return str(value) if isinstance(value, (int, float)) else json.dumps(value)


def toml_document(recipe: dict[str, Any]) -> str:
    return "".join(
        f"{key if isinstance(key, RawToml) else json.dumps(key)} = {toml(item)}\n" for key, item in recipe.items()
    )


@st.composite
def recipes(draw: st.DrawFn) -> str:
    """RECIPE as TOML, after up to three edits of its values, and perhaps one of its text."""
    recipe = json.loads(json.dumps(RECIPE))
    for _ in range(draw(st.integers(0, 3))):
        node: Any = recipe
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            key = draw(st.sampled_from(keys)) if keys else None
            if key is None or not isinstance(node[key], (dict, list)) or draw(st.integers(0, 3)) == 0:
                break
            node = node[key]
        edit = draw(st.integers(0, 4))
        if key is None or edit == 0:
            if isinstance(node, dict):
                node[draw(odd_keys)] = draw(hostile_values)
            else:
                node.append(draw(hostile_values))
        elif edit == 1:
            del node[key]
        elif edit == 2 and isinstance(node, list):
            node.append(node[key])
        else:
            node[key] = draw(hostile_values)
    text = toml_document(recipe)
    if draw(st.integers(0, 3)) == 0:
        start = draw(st.integers(0, len(text)))
        end = start + draw(st.integers(0, 20))
        text = (
            text[:start]
            + draw(st.sampled_from(["", "\n", '"""', "[[", "=", "\0", "\ud800", "a." * 3000, "# "]))
            + text[end:]
        )
    return text


@pytest.fixture(scope="module")
def _cached_model_names() -> Iterator[None]:
    """Caches timm's lists of models, which it builds at every call: that takes longer than all else in a recipe."""
    tags, names = timm.list_pretrained(), timm.list_models()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timm, "list_pretrained", lambda: tags)
        patch.setattr(timm, "list_models", lambda: names)
        yield


@pytest.mark.usefixtures("_cached_model_names")
@fuzz_settings(3000)
@given(recipes())
def test_a_recipe_is_parsed_or_refused_with_printable_lines(text: str) -> None:
    with tempfile.NamedTemporaryFile(suffix=".toml", dir=scratch()) as file:
        file.write(text.encode("utf-8", "surrogatepass"))
        file.flush()
        with only_gnp_errors("recipes"):
            try:
                json.dumps(asdict(load_recipe(Path(file.name)).job()), default=str)
            except GnpError as error:
                for line in str(error).split("\n"):
                    assert line.startswith(file.name)
                    assert line.isprintable()
                raise
