"""Every odd input of the corpus has the outcome that its table states."""

from pathlib import Path

from tests.corpus import calls, checkpoints, environments, folders, images, scoring, stores, tars
from tests.corpus.cases import CASES, Case, judge, parametrize

MODULES = (
    calls,
    checkpoints,
    environments,
    folders,
    images,
    scoring,
    stores,
    tars,
)  # importing one registers its cases


def test_the_corpus_is_large() -> None:
    assert len(CASES) >= 120


@parametrize()
def test_outcome(one: Case, tmp_path: Path) -> None:
    verdict = judge(one, tmp_path)
    assert not verdict.fault, f"{verdict.outcome}: {verdict.fault}"
