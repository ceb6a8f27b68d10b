"""Content of the HTML page: success by class, class changes, norms, sample gallery, curves."""

from collections import Counter
from typing import Any, cast

import numpy as np
from matplotlib.figure import Figure

from pipeline.analysis import drawing, report
from pipeline.analysis.page import charts
from pipeline.analysis.page.details import attack_details, perturbation_norms
from pipeline.analysis.page.gallery import SAMPLES_PER_RULE, choose_samples
from pipeline.analysis.report import PooledSuccess
from pipeline.analysis.sample_view import Prediction, SampleView, TargetPredictions
from pipeline.ledger import Ledger
from pipeline.results.denominators import DENOMINATOR_LABELS
from pipeline.results.intervals import PooledRate
from tests.analysis.conftest import IMAGES
from tests.samples import CLASSES


def transfer_of(ledger: Ledger, attack: str) -> PooledSuccess:
    return next(row for row in report.summarise(ledger).transfer if row.attack == attack)


def test_success_by_class_adds_up_to_the_total(scored: Ledger) -> None:
    row = transfer_of(scored, "mi")
    for denominator in DENOMINATOR_LABELS:
        details = attack_details(scored, row, denominator=denominator)
        total, expected = sum(details.by_class.values(), PooledRate()), row.rates[denominator]
        assert (total.count, total.n, total.images) == (expected.count, expected.n, expected.images)
        assert sorted(details.by_class) == list(range(CLASSES))


def test_class_changes_are_the_successes_under_the_target_denominator(scored: Ledger) -> None:
    row = transfer_of(scored, "mi")
    changes = attack_details(scored, row, denominator="target").class_changes
    assert sum(changes.values()) == row.rates["target"].count
    assert all(clean != adversarial for clean, adversarial in changes)


def test_norms_are_read_for_every_image_and_within_the_budget(scored: Ledger) -> None:
    norms = perturbation_norms(scored, transfer_of(scored, "mi"))
    assert len(norms.linf) == len(norms.l2) == IMAGES
    assert norms.linf.max() <= 8 / 255
    assert (norms.parts_read, norms.parts) == (4, 4)


def view(key: str, *fooled: bool, probability: float = 0.5) -> SampleView:
    clean = Prediction(0, 0.9, True, False)
    targets = tuple(
        TargetPredictions("t", "t-1", clean, Prediction(int(is_fooled), probability, not is_fooled, False), is_fooled)
        for is_fooled in fooled
    )
    return SampleView(cast("Any", None), key, 0, "s", "a", 8 / 255, "linf", None, targets)


def test_gallery_samples_are_chosen_by_rule_and_never_twice() -> None:
    views = [view(str(number), number % 2 == 0, number % 3 == 0, probability=number / 100) for number in range(30)]
    chosen = choose_samples(views)
    assert [len(samples) for samples in chosen.values()] == [SAMPLES_PER_RULE] * 3
    assert max(Counter(sample.key for samples in chosen.values() for sample in samples).values()) == 1
    random = {sample.key for sample in chosen["random"]}
    strongest = [key for key in ("0", "6", "12", "18", "24") if key not in random]
    assert [sample.key for sample in chosen["strongest"]] == strongest[:SAMPLES_PER_RULE]
    assert {sample.targets_fooled for sample in chosen["failures"]} == {0}
    assert choose_samples(views) == chosen
    assert choose_samples([]) == {"random": [], "strongest": [], "failures": []}


def test_attacks_that_differ_in_one_setting_form_a_curve() -> None:
    def success(name: str) -> PooledSuccess:
        rate = PooledRate.over(np.array([1, 0]), np.array([2, 2]))
        return PooledSuccess("d", "s", "s-1", name, name, 1, {"all": rate, "target": rate, "joint": rate})

    settings: dict[str, dict[str, Any]] = {
        f"{name}[epsilon={epsilon},steps={steps}]": {"epsilon": epsilon, "steps": steps, "decay": 1.0, "norm": "linf"}
        for name in ("mi", "gnp+mi")
        for epsilon in ("16/255", "4/255")
        for steps in (10, 50)
    } | {"l2": {"epsilon": "3", "steps": 10, "norm": "l2"}}
    rows = [success(name) for name in settings]
    curves = charts.setting_curves(rows, settings, along="epsilon", norm="linf")
    assert set(curves) == {f"{name}, steps = {steps}" for name in ("mi", "gnp+mi") for steps in (10, 50)}
    assert [round(255 * epsilon) for epsilon, _ in curves["mi, steps = 10"]] == [4, 16]
    assert charts.setting_curves(rows, settings, along="epsilon", norm="l2") == {}
    figure = charts.draw_curves(curves, label="ε", scale=255, denominator="all")
    assert drawing.svg(figure, alt_text="x") == drawing.svg(figure, alt_text="x")


def test_svg_has_an_alternative_text_and_the_text_colour_of_the_page() -> None:
    figure = Figure()
    figure.subplots().set_title("<&>")
    svg = drawing.svg(figure, alt_text='"a" < b')
    assert svg.startswith('<svg role="img" aria-label="&quot;a&quot; &lt; b"')
    assert "currentColor" in svg
    assert "#000000" not in svg
    assert "&lt;&amp;&gt;" in svg
