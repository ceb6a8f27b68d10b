"""Every odd input of the corpus has the outcome that its table states."""

from pathlib import Path

from tests.corpus import (
    call_settings,
    call_tensors,
    calls,
    checkpoints,
    environments,
    folders,
    images,
    loaders,
    scoring,
    tars,
)
from tests.corpus.cases import CASES, Case, judge, parametrize

# Importing one registers its cases.
MODULES = (call_settings, call_tensors, calls, checkpoints, environments, folders, images, loaders, scoring, tars)


def test_the_corpus_is_large() -> None:
    assert len(CASES) >= 120


@parametrize()
def test_outcome(one: Case, tmp_path: Path) -> None:
    verdict = judge(one, tmp_path)
    assert not verdict.fault, f"{verdict.outcome}: {verdict.fault}"
