"""When the labels of a dataset look wrong."""

import pytest

from pipeline.results.chance import chance_warning
from pipeline.results.intervals import Rate


@pytest.mark.parametrize(
    ("rates", "classes", "warned"),
    [
        ([Rate(0, 20)], 1000, True),
        ([Rate(0, 19)], 1000, False),  # too few
        ([Rate(1, 20)], 1000, False),  # the interval begins at 0.9%
        ([Rate(1, 1000)], 1000, True),
        ([Rate(4, 24)], 10, True),
        ([Rate(8, 24)], 10, False),
        ([Rate(10, 20)], 2, True),
        ([Rate(18, 20)], 2, False),
        ([Rate(0, 20), Rate(1, 50)], 10, True),
        ([Rate(0, 20), Rate(40, 50)], 10, False),  # one that is right says that the labels are
        ([], 10, False),
    ],
)
def test_labels_look_wrong_where_every_target_guesses(rates: list[Rate], classes: int, warned: bool) -> None:
    accuracy = {f"target{number}": rate for number, rate in enumerate(rates)}
    assert (chance_warning(accuracy, classes) is not None) == warned


def test_the_sentence_has_the_counts_and_the_likely_causes() -> None:
    sentence = chance_warning({"b": Rate(1, 40), "a": Rate(0, 20)}, 10)
    assert sentence is not None
    for piece in ("(a 0 of 20, b 1 of 40 correct)", "count from 1", "classes.json", "docs/packing.md", "mean, std"):
        assert piece in sentence
