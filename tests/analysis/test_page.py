"""The HTML page in a real browser, without a network."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver.chrome.webdriver import WebDriver
from selenium.webdriver.common.by import By

from pipeline.analysis import page
from pipeline.ledger import Ledger
from pipeline.storage import Storage
from tests.analysis.conftest import ATTACKS
from tests.browser import browser
from tests.journeys.journey import gnp
from tests.samples import make_plan, sample, tiny_job, write_shard

# Contrast ratios by WCAG 2 of all rates, notes and texts in figures.
CONTRAST = """
  const rgb = (text) => {
    const canvas = document.createElement("canvas").getContext("2d");
    canvas.fillStyle = text;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map((value) => value / 255);
  };
  const linear = (value) => (value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
  const weights = [0.2126, 0.7152, 0.0722];
  const luminance = (text) => rgb(text).reduce((sum, value, index) => sum + linear(value) * weights[index], 0);
  const ratio = (a, b) => (Math.max(luminance(a), luminance(b)) + 0.05) / (Math.min(luminance(a), luminance(b)) + 0.05);
  const paper = getComputedStyle(document.body).backgroundColor;
  const of = (selector, measure) =>
    [...document.querySelectorAll(selector)].map((element) => measure(getComputedStyle(element)));
  return [
    ...of("td.rate", (style) => ratio(style.color, style.backgroundColor)),
    ...of(".dim, figcaption", (style) => ratio(style.color, paper)),
    ...of("svg text", (style) => ratio(style.fill, paper)),
  ];
"""
SHOWN_TABLE = "[data-denominator]:not([hidden])"
MATRIX_ROWS = f"{SHOWN_TABLE} tbody:last-of-type tr"


@pytest.fixture(scope="module")
def html(scored: Ledger, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("html") / "index.html"
    path.write_text(page.render(scored, denominator="all"), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def driver(html: Path) -> Iterator[WebDriver]:
    with browser() as driver:
        driver.get(html.as_uri())
        yield driver


def visible_texts(driver: WebDriver, selector: str) -> list[str]:
    elements = driver.find_elements(By.CSS_SELECTOR, selector)
    return [element.text for element in elements if element.is_displayed()]


def test_page_loads_without_network_and_without_errors(driver: WebDriver) -> None:
    log: list[dict[str, Any]] = driver.get_log("browser")  # type: ignore[no-untyped-call]
    assert [entry for entry in log if entry["level"] == "SEVERE"] == []
    loaded = driver.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert [name for name in loaded if not name.startswith("data:")] == []
    broken = "return [...document.images].filter((image) => !image.complete || !image.naturalWidth).length"
    assert driver.execute_script(broken) == 0
    samples = driver.find_elements(By.CSS_SELECTOR, ".sample")
    assert driver.execute_script("return document.images.length") == 3 * len(samples)


def test_images_and_figures_have_alternative_texts(driver: WebDriver) -> None:
    assert driver.execute_script("return [...document.images].every((image) => image.alt)")
    figures = driver.find_elements(By.CSS_SELECTOR, "svg[role=img]")
    assert len(figures) >= 4
    assert all(figure.get_attribute("aria-label") for figure in figures)
    assert all(figure.size["width"] > 200 for figure in figures)


def test_matrix_is_filtered(driver: WebDriver) -> None:
    rows = visible_texts(driver, MATRIX_ROWS)
    assert len(rows) == len(ATTACKS) + 1
    field = driver.find_element(By.CSS_SELECTOR, "input[data-filters^=matrix]")
    field.send_keys("GNP")
    assert visible_texts(driver, MATRIX_ROWS) == [row for row in rows if "gnp+mi" in row]
    field.send_keys(" nothing-like-it")
    assert visible_texts(driver, MATRIX_ROWS) == []
    driver.execute_script("arguments[0].value = ''; arguments[0].dispatchEvent(new Event('input'))", field)
    assert visible_texts(driver, MATRIX_ROWS) == rows


@pytest.mark.parametrize("column", [0, 4, 6])
def test_matrix_is_sorted_in_both_directions(driver: WebDriver, column: int) -> None:
    button = driver.find_elements(By.CSS_SELECTOR, f"{SHOWN_TABLE} thead th button")[column]

    def values() -> list[Any]:
        cells = driver.find_elements(By.CSS_SELECTOR, f"{MATRIX_ROWS} td:nth-child({column + 1})")
        texts = [cell.get_attribute("data-value") or cell.text for cell in cells]
        return [float(text) if re.fullmatch(r"[\d.e-]+", text) else text for text in texts]

    button.click()
    assert values() == sorted(values())
    button.click()
    assert values() == sorted(values(), reverse=True)
    sorted_headers = driver.find_elements(By.CSS_SELECTOR, f"{SHOWN_TABLE} th[aria-sort]")
    assert sorted_headers[0].text.startswith(button.text[:3])


def test_denominator_is_chosen(driver: WebDriver) -> None:
    before = visible_texts(driver, MATRIX_ROWS)
    driver.find_element(By.CSS_SELECTOR, "input[value=joint]").click()
    assert visible_texts(driver, f"{SHOWN_TABLE} caption")[0].startswith("Success among images that every")
    assert visible_texts(driver, MATRIX_ROWS) != before
    driver.find_element(By.CSS_SELECTOR, "input[value=all]").click()
    assert sorted(visible_texts(driver, MATRIX_ROWS)) == sorted(before)


@pytest.mark.parametrize("dark", [False, True])
def test_page_is_legible_in_light_and_dark(html: Path, dark: bool) -> None:
    with browser(dark=dark) as driver:
        driver.get(html.as_uri())
        ratios = driver.execute_script(CONTRAST)
        background = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert len(ratios) > 50
    assert min(ratios) >= 4.5
    assert (sum(map(int, re.findall(r"\d+", background)[:3])) < 3 * 128) == dark


def test_names_are_escaped_and_only_the_own_script_runs(html: Path) -> None:
    source = html.read_text()
    assert "<script>alert" not in source
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; $x$" in source
    assert "script-src 'sha256-" in source


def test_page_lists_quarantined_images_failures_and_provenance(html: Path, scored: Ledger) -> None:
    source = html.read_text()
    assert "image00014" in source, "quarantined, with its reason"
    assert "No item has failed" in source
    for marker in scored.read_markers(scored.list_units("adversarial")):
        assert marker.fact("source")["digest"] in source
        assert marker.fact("versions")["torch"] in source


def test_page_of_a_store_without_results(tmp_path: Path, tiny_checkpoint: Path) -> None:
    write_shard(tmp_path / "in" / "s.tar", [sample(0)])
    empty = Ledger(Storage(str(tmp_path / "store"), create=True))
    empty.record_plan(make_plan(tiny_job(tmp_path / "in", tiny_checkpoint)).to_record())
    assert "Incomplete: 1 shards" in page.render(empty)


def test_report_command_writes_the_page(scored: Ledger, tmp_path: Path) -> None:
    done = gnp("report", scored.storage.url, "--html", str(tmp_path / "out"))
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "out" / "index.html").stat().st_size > 50_000
    both = gnp("report", scored.storage.url, "--html", str(tmp_path / "out"), "--json")
    assert both.returncode == 2
    assert "give one" in both.stderr
