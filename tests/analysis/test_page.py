"""The report as a page: what stands on it, and that it works in a real browser, without a network."""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import timm
import torch
from matplotlib.figure import Figure
from safetensors.torch import save_file
from selenium.webdriver.chrome.webdriver import WebDriver
from selenium.webdriver.common.by import By

from jobs import formats
from pipeline import dataset
from pipeline.analysis import drawing, page, picture, report
from pipeline.analysis.page import charts
from pipeline.analysis.page.details import details, norms
from pipeline.analysis.page.gallery import EACH, chosen
from pipeline.analysis.picture import Answer, Said, Word
from pipeline.analysis.report import Overall
from pipeline.ledger import Ledger
from pipeline.results import predictions
from pipeline.results.intervals import PooledRate
from pipeline.storage import Storage
from tests.browser import browser
from tests.journeys.test_journeys import gnp
from tests.samples import CLASSES, attack, resolve, sample, tiny_job, write_shard
from tests.stages.test_stages import run_all

# A name is text, whatever it looks like.
HOSTILE = "<script>alert(1)</script> & $x$"
FORMULA = r"i $\frac$ <i>"
ATTACKS, TARGETS = ("i", "mi", "gnp+mi"), 5


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Ledger:
    """Three attacks, one of them at two budgets, on five targets, one of which is the source."""
    folder = tmp_path_factory.mktemp("page")
    write_shard(folder / "in" / "s.tar", [*(sample(index) for index in range(14)), {**sample(14), "jpg": b"no image"}])
    job = tiny_job(
        folder / "in",
        tiny_checkpoint,
        attacks=[attack(name, name=FORMULA if name == "i" else name) for name in ATTACKS],
    )
    wider = attack("mi", name="mi[epsilon=16/255]", epsilon=Fraction(16, 255))
    targets = [job.targets[0]]
    for seed in range(1, TARGETS):
        torch.manual_seed(seed)
        save_file(timm.create_model("test_resnet", num_classes=CLASSES).state_dict(), folder / f"{seed}.safetensors")
        name = HOSTILE if seed == 1 else f"other{seed}"
        targets.append(replace(job.targets[0], name=name, checkpoint=str(folder / f"{seed}.safetensors")))
    planned = resolve(replace(job, attacks=(*job.attacks, wider), targets=tuple(targets)))
    made = Ledger(Storage(str(folder / "store"), create=True))
    made.record_plan(planned.describe())
    run_all(planned, made)
    return made


@pytest.fixture(scope="module")
def html(ledger: Ledger, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("html") / "index.html"
    path.write_text(page.render(ledger, denominator="all"), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def opened(html: Path) -> Iterator[WebDriver]:
    with browser() as driver:
        driver.get(html.as_uri())
        yield driver


def visible(driver: WebDriver, selector: str) -> list[str]:
    return [each.text for each in driver.find_elements(By.CSS_SELECTOR, selector) if each.is_displayed()]


# Contrasts as WCAG 2 has them, of every rate, every note and every figure's words.
CONTRAST = """
  const rgb = (text) => {
    const canvas = document.createElement("canvas").getContext("2d");
    canvas.fillStyle = text;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map((value) => value / 255);
  };
  const linear = (value) => (value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
  const light = (text) => rgb(text).reduce((sum, value, at) => sum + linear(value) * [0.2126, 0.7152, 0.0722][at], 0);
  const ratio = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);
  const paper = getComputedStyle(document.body).backgroundColor;
  const of = (selector, told) => [...document.querySelectorAll(selector)].map((each) => told(getComputedStyle(each)));
  return [
    ...of("td.rate", (style) => ratio(style.color, style.backgroundColor)),
    ...of(".dim, figcaption", (style) => ratio(style.color, paper)),
    ...of("svg text", (style) => ratio(style.fill, paper)),
  ];
"""
MATRIX = "[data-denominator]:not([hidden]) tbody:last-of-type tr"


def test_the_page_loads_without_a_network_and_without_an_error(opened: WebDriver) -> None:
    told: list[dict[str, Any]] = opened.get_log("browser")  # type: ignore[no-untyped-call]
    assert [each for each in told if each["level"] == "SEVERE"] == []
    loaded = opened.execute_script("return performance.getEntriesByType('resource').map((each) => each.name)")
    assert [name for name in loaded if not name.startswith("data:")] == []
    broken = "return [...document.images].filter((each) => !each.complete || !each.naturalWidth).length"
    assert opened.execute_script(broken) == 0
    assert opened.execute_script("return document.images.length") == 3 * len(
        opened.find_elements(By.CSS_SELECTOR, ".sample")
    )


def test_everything_shown_has_an_alternative_text(opened: WebDriver) -> None:
    assert opened.execute_script("return [...document.images].every((each) => each.alt)")
    charts = opened.find_elements(By.CSS_SELECTOR, "svg[role=img]")
    assert len(charts) >= 4
    assert all(each.get_attribute("aria-label") for each in charts)
    assert all(each.size["width"] > 200 for each in charts)


def test_the_matrix_is_filtered(opened: WebDriver) -> None:
    rows = visible(opened, MATRIX)
    assert len(rows) == len(ATTACKS) + 1
    field = opened.find_element(By.CSS_SELECTOR, "input[data-filters^=matrix]")
    field.send_keys("GNP")
    assert visible(opened, MATRIX) == [row for row in rows if "gnp+mi" in row]
    field.send_keys(" nothing-like-it")
    assert visible(opened, MATRIX) == []
    opened.execute_script("arguments[0].value = ''; arguments[0].dispatchEvent(new Event('input'))", field)
    assert visible(opened, MATRIX) == rows


def test_the_matrix_is_sorted_up_and_down_by_number(opened: WebDriver) -> None:
    shown = "[data-denominator]:not([hidden]) "
    for column in (0, 4, 6):
        cell = f"{MATRIX} td:nth-child({column + 1})"
        button = opened.find_elements(By.CSS_SELECTOR, f"{shown} thead th button")[column]

        def values(cell: str = cell) -> list[Any]:
            told = [
                each.get_attribute("data-value") or each.text for each in opened.find_elements(By.CSS_SELECTOR, cell)
            ]
            return [float(each) if re.fullmatch(r"[\d.e-]+", each) else each for each in told]

        button.click()
        assert values() == sorted(values())
        button.click()
        assert values() == sorted(values(), reverse=True)
        assert opened.find_elements(By.CSS_SELECTOR, f"{shown} th[aria-sort]")[0].text.startswith(button.text[:3])


def test_the_denominator_is_chosen(opened: WebDriver) -> None:
    before = visible(opened, MATRIX)
    opened.find_element(By.CSS_SELECTOR, "input[value=joint]").click()
    assert visible(opened, "[data-denominator]:not([hidden]) caption")[0].startswith("Success among images that every")
    assert visible(opened, MATRIX) != before
    opened.find_element(By.CSS_SELECTOR, "input[value=all]").click()
    assert sorted(visible(opened, MATRIX)) == sorted(before)


@pytest.mark.parametrize("dark", [False, True])
def test_it_is_legible_in_light_and_dark(html: Path, dark: bool) -> None:
    with browser(dark=dark) as driver:
        driver.get(html.as_uri())
        ratios = driver.execute_script(CONTRAST)
        background = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert len(ratios) > 50
    assert min(ratios) >= 4.5
    assert (sum(map(int, re.findall(r"\d+", background)[:3])) < 3 * 128) == dark


def test_names_are_text_and_no_other_script_runs(html: Path) -> None:
    source = html.read_text()
    assert "<script>alert" not in source
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; $x$" in source
    assert "script-src 'sha256-" in source


def test_the_page_says_what_was_left_out_and_what_made_it(html: Path, ledger: Ledger) -> None:
    source = html.read_text()
    assert "image00014" in source, "quarantined, with its reason"
    assert "No item has failed" in source
    for marker in ledger.markers(ledger.units("adversarial")):
        assert marker.fact("source")["digest"] in source
        assert marker.fact("versions")["torch"] in source


def test_a_store_without_results_has_a_page(tmp_path: Path, tiny_checkpoint: Path) -> None:
    write_shard(tmp_path / "in" / "s.tar", [sample(0)])
    empty = Ledger(Storage(str(tmp_path / "store"), create=True))
    empty.record_plan(resolve(tiny_job(tmp_path / "in", tiny_checkpoint)).describe())
    assert "Incomplete: 1 shards" in page.render(empty)


def test_the_command_writes_it(ledger: Ledger, tmp_path: Path) -> None:
    done = gnp("report", ledger.storage.url, "--html", str(tmp_path / "out"))
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "out" / "index.html").stat().st_size > 50_000
    both = gnp("report", ledger.storage.url, "--html", str(tmp_path / "out"), "--json")
    assert both.returncode == 2
    assert "give one" in both.stderr


# --- what stands on it ------------------------------------------------------------------------------------------------


def row_of(ledger: Ledger, name: str) -> Overall:
    return next(row for row in report.summarise(ledger).transfer if row.attack == name)


def test_success_class_by_class_adds_up_to_the_whole(ledger: Ledger) -> None:
    row = row_of(ledger, "mi")
    for denominator in predictions.COUNTED:
        told = details(ledger, row, denominator=denominator)
        whole, expected = sum(told.by_class.values(), PooledRate()), row.rates[denominator]
        assert (whole.count, whole.n, whole.images) == (expected.count, expected.n, expected.images)
    assert sorted(told.by_class) == list(range(CLASSES))


def test_right_answers_that_turn_are_those_of_the_target_denominator(ledger: Ledger) -> None:
    row = row_of(ledger, "mi")
    turned = details(ledger, row, denominator="target").turned
    assert sum(turned.values()) == row.rates["target"].count
    assert all(before != after for before, after in turned)


def test_norms_are_within_the_budget_and_of_every_image(ledger: Ledger) -> None:
    found = norms(ledger, row_of(ledger, "mi"))
    assert len(found.linf) == len(found.l2) == 14
    assert found.linf.max() <= 8 / 255
    assert (found.parts, found.of_parts) == (4, 4)


def said(key: str, *fooled: bool, probability: float = 0.5) -> Said:
    answers = tuple(
        Answer("t", "t-1", Word(0, 0.9, True, False), Word(int(each), probability, not each, False), each)
        for each in fooled
    )
    return Said(cast("Any", None), key, 0, "s", "a", 8 / 255, "linf", None, answers)


def test_samples_are_chosen_by_rule_and_none_twice() -> None:
    told = [said(str(number), number % 2 == 0, number % 3 == 0, probability=number / 100) for number in range(30)]
    found = chosen(told)
    assert [len(each) for each in found.values()] == [EACH] * 3
    assert max(Counter(each.key for some in found.values() for each in some).values()) == 1
    drawn = {each.key for each in found["random"]}
    assert [each.key for each in found["strongest"]] == [k for k in ("0", "6", "12", "18", "24") if k not in drawn][
        :EACH
    ]
    assert {each.fooled for each in found["failures"]} == {0}
    assert chosen(told) == found
    assert chosen([]) == {"random": [], "strongest": [], "failures": []}


def test_attacks_that_differ_in_one_setting_are_a_curve() -> None:
    def overall(name: str) -> Overall:
        rate = PooledRate.over(np.array([1, 0]), np.array([2, 2]))
        return Overall("d", "s", "s-1", name, name, 1, {"all": rate, "target": rate, "joint": rate})

    settings: dict[str, dict[str, Any]] = {
        f"{name}[epsilon={epsilon},steps={steps}]": {"epsilon": epsilon, "steps": steps, "decay": 1.0, "norm": "linf"}
        for name in ("mi", "gnp+mi")
        for epsilon in ("16/255", "4/255")
        for steps in (10, 50)
    } | {"l2": {"epsilon": "3", "steps": 10, "norm": "l2"}}
    rows = [overall(name) for name in settings]
    found = charts.curves(rows, settings, along="epsilon", norm="linf")
    assert set(found) == {f"{name}, steps = {steps}" for name in ("mi", "gnp+mi") for steps in (10, 50)}
    assert [round(255 * x) for x, _ in found["mi, steps = 10"]] == [4, 16]
    assert charts.curves(rows, settings, along="epsilon", norm="l2") == {}
    figure = charts.draw_curves(found, label="ε", scale=255, denominator="all")
    assert drawing.svg(figure, says="x") == drawing.svg(figure, says="x")


def test_a_drawing_says_what_it_shows_in_the_colours_of_its_page() -> None:
    figure = Figure()
    figure.subplots().set_title("<&>")
    drawn = drawing.svg(figure, says='"a" < b')
    assert drawn.startswith('<svg role="img" aria-label="&quot;a&quot; &lt; b"')
    assert "currentColor" in drawn
    assert "#000000" not in drawn
    assert "&lt;&amp;&gt;" in drawn


def test_csv_has_every_rate_of_the_report(ledger: Ledger) -> None:
    summary = report.summarise(ledger)
    rows = list(csv.DictReader(io.StringIO(formats.csv_of(summary))))
    assert len(rows) == len(summary.accuracy) + 3 * (len(summary.success) + len(summary.transfer))
    for row in summary.success:
        (found,) = [
            each
            for each in rows
            if (each["attack_id"], each["target_id"], each["denominator"]) == (row.attack_id, row.target_id, "joint")
        ]
        rate = row.rates["joint"]
        assert (int(found["count"]), int(found["n"]), found["target"]) == (rate.count, rate.n, row.target)


def test_tables_for_papers_escape_what_names_hold(ledger: Ledger) -> None:
    summary = report.summarise(ledger)
    latex = formats.table(summary, denominator="target", latex=True)
    assert r"\toprule" in latex
    assert r"\$x\$" in latex
    markdown = formats.table(summary, denominator="target", latex=False)
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 1 + len(ATTACKS) + 1
    assert len({line.count("|") - line.count("\\|") for line in lines}) == 1


# --- one sample -------------------------------------------------------------------------------------------------------


def test_a_sample_is_had_by_its_key(ledger: Ledger) -> None:
    store = dataset.open(ledger.storage.url)
    found = store.sample("image00003")
    assert (found.key, found.shard, found.label) == ("image00003", "s", 3)
    assert len(found.adversarial) == len(found.said) == len(ATTACKS) + 1
    for image in found.adversarial.values():
        assert 0 < np.abs(image.astype(int) - found.original).max() <= 16
    assert all(len(each.answers) == TARGETS for each in found.said)
    assert found._repr_png_().startswith(b"\x89PNG")  # type: ignore[union-attr]
    assert store.sample("s/image00003").key == "image00003"
    (name,) = report.of(ledger.storage.url).images
    assert store.sample(f"{name}/s/image00003").key == "image00003"


def test_results_are_one_table(ledger: Ledger) -> None:
    store = dataset.open(ledger.storage.url)
    assert store.results().num_rows == 14 * (len(ATTACKS) + 1) * TARGETS
    assert store.results("clean").num_rows == 14 * TARGETS
    import polars

    frame = polars.DataFrame(polars.from_arrow(store.results()))
    rates = frame.filter(polars.col("source") == "tiny").group_by("attack").len()
    assert sorted(rates["len"]) == [14 * TARGETS] * (len(ATTACKS) + 1)


def test_show_prints_a_row_an_attack_and_writes_a_picture(ledger: Ledger, tmp_path: Path) -> None:
    done = gnp("show", ledger.storage.url, "image00003", "--attack", "mi", "--out", str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert "tiny →" in done.stdout
    assert Path(done.stdout.splitlines()[-1]).read_bytes().startswith(b"\x89PNG")
    for key, attack_name, said_of_it in (
        ("nobody", "mi", "no original of that key"),
        ("image00003", "x", "mi from tiny"),
    ):
        refused = gnp("show", ledger.storage.url, key, "--attack", attack_name, "--out", str(tmp_path))
        assert refused.returncode == 2
        assert said_of_it in refused.stderr
        assert len(refused.stderr.splitlines()) == 1


def test_classes_are_called_by_number_where_they_are_not_imagenets(ledger: Ledger) -> None:
    (name,) = report.summarise(ledger).images
    assert picture.class_names(ledger, name)(3) == "3"
    assert json.loads(json.dumps(ledger.plan(ledger.plans()[0])))["data"]["classes"] == CLASSES
