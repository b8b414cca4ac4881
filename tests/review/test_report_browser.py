"""The report in a real browser: loads clean, draws everything, reads well by hand, phone, print."""

import json
import os
import shutil
from pathlib import Path

import pytest
from browser import SIZES, browser  # noqa: F401
from cli_runner import call
from made_studies import NASTY, made_study
from pages import nasty_page
from selenium.common.exceptions import NoAlertPresentException
from selenium.webdriver.common.keys import Keys

from prunetune.calibration.sources import tiny_folder
from prunetune.review.facts import study_facts
from prunetune.review.report.report import Pictures, render
from prunetune.review.report.worst import worst_samples

PICTURES = 4
DRAWN = """
return [...document.querySelectorAll('.plot')].map(place => {
  const svg = place.querySelector('svg.main-svg');
  const box = svg ? svg.getBoundingClientRect() : {width: 0, height: 0};
  const marks = place.querySelectorAll('.trace path, .points path, .point path').length;
  return {id: place.id, width: box.width, height: box.height, marks};
});
"""


def part_of_tiny(folder):
    """Copy the shipped set's first pictures: real ones, and few, so that a search is short."""
    for split in ("calibration", "held_out"):
        target = folder / split
        target.mkdir(parents=True)
        rows = [json.loads(x) for x in (tiny_folder() / split / "metadata.jsonl").open()]
        names = list(dict.fromkeys(row["file_name"] for row in rows))[:PICTURES]
        for name in names:
            shutil.copy(tiny_folder() / split / name, target / name)
        kept = [json.dumps(row) + "\n" for row in rows if row["file_name"] in names]
        (target / "metadata.jsonl").write_text("".join(kept))
    return folder


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The report that a search of the embedded model writes, or the one in $PRUNETUNE_REPORT."""
    if given := os.environ.get("PRUNETUNE_REPORT"):
        return Path(given).resolve()
    folder = tmp_path_factory.mktemp("page")
    data = part_of_tiny(folder / "pictures")
    words = ("search", "--data", data, "--trials", "24", "--out", folder / "run")
    ran = call(*words, "--no-cache", "--json", "--threads", "1")
    assert ran.status == 0, ran.err
    return folder / "run" / "report.html"


@pytest.fixture(scope="module")
def nasty(searched, tmp_path_factory):
    """A page whose every text from data is markup."""
    path = tmp_path_factory.mktemp("nasty") / "nasty.html"
    path.write_text(nasty_page(searched))
    return path


def drawn(browser):  # noqa: F811
    count = browser.until("return document.documentElement.dataset.ready")
    found = browser.run(DRAWN)
    assert len(found) == int(count)
    return found


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_loads_clean_and_draws_every_figure(page, browser, size, dark):  # noqa: F811
    browser.open(page, size, dark=dark)
    found = drawn(browser)
    assert len(found) == 7
    for figure in found:
        assert figure["width"] > 0.8 * min(SIZES[size][0] - 40, 690), figure
        assert figure["height"] > 100, figure
        assert figure["marks"] > 0, figure
    assert browser.errors() == []
    loaded = "return performance.getEntriesByType('resource').map(x => x.name)"
    assert [x for x in browser.run(loaded) if not x.startswith(("data:", "blob:"))] == []
    # Only tables scroll sideways, each in its own box.
    assert browser.run("return document.documentElement.scrollWidth") <= SIZES[size][0]
    shown = "return [...document.images].every(x => x.complete && x.naturalWidth > 0)"
    assert browser.run(shown)
    assert browser.run("return document.images.length") >= 8 * 2
    browser.screenshot(f"report-{size}{'-dark' if dark else ''}")


def test_parts_of_the_page_for_the_documentation(page, browser):  # noqa: F811
    browser.open(page)
    drawn(browser)
    browser.screenshot("report-top", whole=False)
    names = ("config", "held-out", "history-0", "schedules", "importance", "parallel", "types")
    for name in names:
        browser.element(f"#{name}", f"report-{name}")
    browser.element(".sample", "report-sample")
    browser.open(page, "phone", dark=True)
    drawn(browser)
    browser.screenshot("report-phone-top", whole=False)


def test_a_page_with_an_error_would_be_noticed(page, browser, tmp_path):  # noqa: F811
    text = page.read_text()
    broken = tmp_path / "broken.html"
    broken.write_text(text.replace("const figures = new Map();", "undefined.x;"))
    browser.open(broken)
    assert browser.errors()
    empty = tmp_path / "empty.html"
    empty.write_text(text.replace("Plotly.newPlot(", "void ("))
    browser.open(empty)
    assert {figure["width"] for figure in drawn(browser)} == {0}
    foreign = tmp_path / "foreign.html"
    foreign.write_text(text.replace("<footer>", '<img src="http://127.0.0.1:9/x.png"><footer>'))
    browser.open(foreign)
    assert any("Content Security Policy" in line for line in browser.errors())


def test_text_from_data_runs_nothing(nasty, browser):  # noqa: F811
    browser.open(nasty)
    assert len(drawn(browser)) == 7
    with pytest.raises(NoAlertPresentException):
        _ = browser.driver.switch_to.alert
    assert browser.errors() == []
    assert browser.run("return document.querySelectorAll('script:not([data-figure])').length") == 2
    browser.run("document.querySelectorAll('details').forEach(x => { x.open = true; })")
    text = browser.text()
    assert text.count(NASTY) > 10
    types = browser.run("return document.getElementById('plot-types').textContent")
    # Long labels are cut.
    assert NASTY[:-5] in types
    browser.screenshot("report-nasty")


def test_the_page_is_read_by_keyboard(page, browser):  # noqa: F811
    browser.open(page)
    drawn(browser)
    body = browser.driver.switch_to.active_element
    body.send_keys(Keys.TAB)
    first = browser.driver.switch_to.active_element
    assert first.text == "Skip to the report"
    first.send_keys(Keys.ENTER)
    assert browser.run("return location.hash") == "#main"
    # Whatever scrolls or opens can be reached, and says what it is.
    bad = """
    return [...document.querySelectorAll('.scroll, pre')].filter(x => x.tabIndex !== 0).length
      + [...document.querySelectorAll('.scroll, .plot')].filter(x => !x.ariaLabel).length
      + [...document.querySelectorAll('img')].filter(x => !x.alt).length
      + [...document.querySelectorAll('nav a')].filter(
          x => !document.querySelector(x.getAttribute('href'))).length;
    """
    assert browser.run(bad) == 0
    summary = browser.driver.find_element("css selector", "#trials summary")
    summary.send_keys(Keys.ENTER)
    assert browser.run("return document.querySelector('#trials details').open")


TITLES_FIT = """
return [...document.querySelectorAll(".plot")].every((plot) => {
  const title = plot.querySelector(".ytitle");
  if (!title) return true;
  const mine = title.getBoundingClientRect(), whole = plot.getBoundingClientRect();
  return mine.top >= whole.top + 20 && mine.bottom <= whole.bottom - 20;
});
"""


def test_print_fits_the_paper(page, browser):  # noqa: F811
    browser.open(page)
    drawn(browser)
    path = browser.pdf("report")
    assert path.read_bytes().startswith(b"%PDF")
    assert 3 <= path.read_bytes().count(b"/Type /Page\n") <= 14
    browser.run("dispatchEvent(new Event('beforeprint'))")
    assert {round(figure["width"]) for figure in drawn(browser)} == {690}
    assert browser.run("return document.querySelector('details.printed').open")
    assert browser.run(TITLES_FIT)
    # The twin: a title as it is on the screen, where there is more room.
    long = "how far a parameter is along its range, from the lowest to the highest value of each"
    browser.run(
        f"Plotly.relayout(document.querySelector('.plot'), {{'yaxis.title.text': '{long}'}})"
    )
    assert not browser.run(TITLES_FIT)
    browser.run("dispatchEvent(new Event('afterprint'))")
    assert min(figure["width"] for figure in drawn(browser)) > 900


@pytest.mark.parametrize(
    "made",
    [
        {"trials": 0},
        {"trials": 1},
        {"trials": 0, "failed": 3},
        {"trials": 30, "directions": ["minimize", "maximize"], "running": 1},
    ],
)
def test_other_studies_load_clean_too(made, browser, tmp_path):  # noqa: F811
    facts = study_facts(made_study(**made))
    path = tmp_path / "page.html"
    path.write_text(render(facts, "here", Pictures(worst_samples(facts), "none.")))
    browser.open(path, "phone")
    found = drawn(browser)
    assert all(figure["width"] > 300 and figure["marks"] for figure in found)
    assert browser.errors() == []
    assert browser.run("return document.documentElement.scrollWidth") <= 390
