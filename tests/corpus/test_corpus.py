"""Every odd input of the corpus has the outcome that its table states."""

from pathlib import Path

import pytest

from tests.corpus import (
    call_settings,
    call_tensors,
    calls,
    checkpoints,
    environments,
    folders,
    images,
    loaders,
    models,
    runs,
    scoring,
    stores,
    tables,
    tars,
)
from tests.corpus.cases import CASES, judge

# Importing a module registers its cases.
MODULES = (
    *(folders, tables, images, tars, runs, scoring, checkpoints, models),
    *(call_settings, call_tensors, calls, loaders, environments, stores),
)


def test_the_corpus_is_large() -> None:
    assert len(CASES) >= 120


@pytest.mark.parametrize("name", CASES)
def test_outcome(name: str, tmp_path: Path) -> None:
    verdict = judge(CASES[name], tmp_path)
    assert not verdict.fault, f"{verdict.outcome}: {verdict.fault}"
