"""The page of a front and the page about two studies in a real browser, on desktop and phone."""

import pytest
from browser import browser  # noqa: F401
from fakes import SUMS, Fake
from made_studies import Asked
from test_pareto import Cheap

from prunetune.review.report.report_file import write_report
from prunetune.review.report.versus_page import write_versus
from prunetune.spec import SpaceSpec, StudySpec
from prunetune.study.find import find_study
from prunetune.study.study import run_search

ALL = "document.querySelectorAll('script[data-figure]').length"
ALONE = """
const cards = [...document.querySelectorAll('.cards > div')];
const rows = new Map();
for (const card of cards) {
  const box = card.getBoundingClientRect();
  rows.set(Math.round(box.top), [...(rows.get(Math.round(box.top)) || []), box.width]);
}
const whole = document.querySelector('.cards').getBoundingClientRect().width;
return cards.length > 1 && [...rows.values()].some(row => row.length === 1 && row[0] < 0.9 * whole);
"""


class Shapes(Asked, Cheap):
    """A model whose front has many points, and whose samples have kinds."""


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    kinds, few = {"types": ("color", "count", "shape")}, {"model": "fake", "trials": 24}
    held_out = Shapes(96, seed=1, **kinds)
    wide = {"keep": 0.05, "up_to": 0.5, "space": SpaceSpec(**SUMS)}
    promise = {"loss": "gap", "most": 0.45}
    run_search(StudySpec(**few, **wide, promise=promise), Cheap(), held_out, out=folder / "front")
    run_search(StudySpec(**few), Fake(), Asked(96, seed=1, **kinds), out=folder / "one")
    found = [find_study(str(folder / name)) for name in ("front", "one")]
    write_report(found[0], folder / "front.html", None)
    write_report(found[1], folder / "one.html", None)
    write_versus((found[0], found[1]), folder / "both.html")
    return folder


@pytest.mark.parametrize("size", ["desktop", "phone"])
@pytest.mark.parametrize("page", ["front", "one", "both"])
def test_pages_draw_everything_and_fit(browser, pages, page, size):  # noqa: F811
    browser.open(pages / f"{page}.html", size)
    for place in range(browser.run(f"return {ALL}")):
        browser.run("document.querySelectorAll('.plot')[arguments[0]].scrollIntoView()", place)
    browser.until(f"return document.querySelectorAll('.plot svg.main-svg').length >= {ALL}")
    browser.run("window.scrollTo(0, 0)")
    assert browser.errors() == []
    wide, window = browser.run("return [document.documentElement.scrollWidth, innerWidth]")
    assert wide <= window
    if page != "both":
        assert not browser.run(ALONE)
    if size == "desktop":
        name = {"front": "#front", "one": "#types", "both": ".top"}[page]
        picture = {"front": "report-front", "one": "report-losses", "both": "report-versus"}[page]
        assert browser.element(name, picture).stat().st_size > 5000


def test_a_card_alone_would_be_noticed(browser, pages):  # noqa: F811
    browser.open(pages / "one.html")
    count = browser.run("return document.querySelectorAll('.cards > div').length")
    browser.run(
        "document.querySelector('.cards').style.setProperty('--columns', arguments[0])", count - 1
    )
    assert browser.run(ALONE)
