"""Fuzzed checkpoints: each is loaded or refused, and no pickle in one is executed."""

import contextlib
import io
import pickle
import random
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from safetensors.torch import save as save_safetensors

from pipeline.errors import WeightsError
from pipeline.ledger import Ledger
from pipeline.models.checkpoint_file import read_checkpoint
from pipeline.models.state_search import candidates, find_weights
from tests.fuzz.fuzzing import corrupt, fuzz_settings, only_gnp_errors, seeds

pytestmark = pytest.mark.timeout(300)

EXECUTED: list[str] = []
EXPECTED = {"a.weight": torch.zeros(2, 3), "a.bias": torch.zeros(2)}


def mark_executed(what: str) -> None:
    EXECUTED.append(what)


class RunsCode:
    """An object whose pickle calls a function as soon as it is loaded."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


_MARK = f"__import__('sys').modules[{__name__!r}].mark_executed('x')"
HOSTILE_PICKLES = [RunsCode(mark_executed, "x"), RunsCode(eval, _MARK), RunsCode(exec, _MARK)]


def valid_checkpoints() -> list[tuple[str, bytes]]:
    state = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.zeros(2, dtype=torch.float16)}
    checkpoints: list[tuple[str, bytes]] = [(".safetensors", save_safetensors(state))]
    contents: list[Any] = [
        state,
        {"state_dict": state, "epoch": 3},
        [1, 2],
        {"a": 1},
        {1: torch.ones(1), "b": torch.ones(1)},
        3,
    ]
    contents += [
        HOSTILE_PICKLES[0],
        {"state_dict": {"a": HOSTILE_PICKLES[1]}},
        [HOSTILE_PICKLES[2]],
        {"state_dict": 3},
        {"a": {"b": torch.ones(2)}},
    ]
    for content in contents:
        for legacy in (True, False):
            buffer = io.BytesIO()
            torch.save(content, buffer, _use_new_zipfile_serialization=not legacy)
            checkpoints.append((".pth", buffer.getvalue()))
        if not any(content is saved for saved in (state, contents[1])):
            checkpoints.append((".pth", pickle.dumps(content)))
    return checkpoints


@fuzz_settings(500)
@given(seed=seeds)
def test_a_corrupted_checkpoint_is_loaded_or_refused_and_never_executed(ledger: Ledger, seed: int) -> None:
    rng = random.Random(seed)
    suffix, data = rng.choice(CHECKPOINTS)
    if rng.random() < 0.7:
        data = corrupt(data, rng, [donor for _, donor in CHECKPOINTS])
    path = Path(ledger.storage.url_of(f"checkpoint{suffix}"))
    path.write_bytes(data)
    with only_gnp_errors("checkpoints"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of kinds of tensor that it will drop
        states = candidates(read_checkpoint(str(path)).contents)
        assert all(isinstance(key, str) for state in states.values() for key in state)
        with contextlib.suppress(WeightsError):
            find_weights(states, EXPECTED, choice="", checkpoint=str(path), architecture="network")
    assert EXECUTED == []


CHECKPOINTS = valid_checkpoints()


@pytest.mark.parametrize("pickled", HOSTILE_PICKLES, ids=["function", "eval", "exec"])
def test_a_hostile_pickle_runs_code_where_it_is_loaded(pickled: RunsCode) -> None:
    """Otherwise the test above would show nothing."""
    pickle.loads(pickle.dumps(pickled))
    assert EXECUTED.pop() == "x"
