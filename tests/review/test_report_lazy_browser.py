"""When the report draws its figures: near the window, in idle time, for print; nothing moves."""

import pytest
from browser import browser  # noqa: F401
from made_studies import made_study

from prunetune.review.facts import study_facts
from prunetune.review.report.report import Pictures, render
from prunetune.review.report.worst import worst_samples

UNDRAWN = """
return [...document.querySelectorAll('.plot')].filter(x => !x.querySelector('svg.main-svg .trace,'
  + 'svg.main-svg .points')).map(x => x.id);
"""
FRAMES = """
const done = arguments[0];
const wait = (left) => left ? requestAnimationFrame(() => setTimeout(wait, 0, left - 1)) : done();
wait(20);
"""
EAGER = ('"50% 0px"', '"99999px 0px"')
BLIND = ("watch.observe(place)", "void place")
UNPRINTED = ('"beforeprint"', '"never"')
UNRESERVED = ('style="min-height:', 'style="max-width:')


@pytest.fixture(scope="module")
def text():
    """The page of a study of 30 trials."""
    facts = study_facts(made_study(trials=30))
    return render(facts, "here", Pictures(worst_samples(facts), "none."))


@pytest.fixture
def busy(browser):  # noqa: F811
    """A browser that never has idle time: what is drawn has been asked for."""
    forget = browser.before("window.requestIdleCallback = () => 0")
    yield browser
    forget()


@pytest.fixture
def opened(text, tmp_path):
    """Return what opens the page in a browser, with one thing in it replaced."""

    def opened(browser, change=None):  # noqa: F811
        page = tmp_path / "page.html"
        if change:
            assert text.count(change[0]) >= 1
        page.write_text(text.replace(*change) if change else text)
        browser.open(page)
        browser.driver.execute_async_script(FRAMES)

    return opened


def before_and_after_scrolling(browser):  # noqa: F811
    """Return whether the figure at the page's end is drawn before and after one scrolls there."""
    drawn = ["plot-gaps" not in browser.run(UNDRAWN)]
    browser.run("document.getElementById('plot-gaps').scrollIntoView()")
    browser.driver.execute_async_script(FRAMES)
    return [*drawn, "plot-gaps" not in browser.run(UNDRAWN)]


def test_a_figure_is_drawn_when_one_scrolls_to_it(opened, busy):
    opened(busy)
    assert before_and_after_scrolling(busy) == [False, True]
    assert "plot-history-0" in busy.run(UNDRAWN)
    assert busy.errors() == []


@pytest.mark.parametrize(
    ("change", "seen"), [(EAGER, [True, True]), (BLIND, [False, False])], ids=["eager", "blind"]
)
def test_a_page_that_draws_all_or_nothing_would_be_noticed(opened, busy, change, seen):
    opened(busy, change)
    assert before_and_after_scrolling(busy) == seen


def test_a_link_lands_on_its_drawn_figure(opened, busy):
    opened(busy)
    busy.run("document.querySelector('nav a[href=\"#gaps\"]').click()")
    busy.driver.execute_async_script(FRAMES)
    top = "return document.querySelector('#gaps').getBoundingClientRect().top"
    padding = "return parseFloat(getComputedStyle(document.documentElement).scrollPaddingTop)"
    assert "plot-gaps" not in busy.run(UNDRAWN)
    assert busy.run(top) == pytest.approx(busy.run(padding), abs=1)
    # Figures above it, drawn later, do not push it away.
    busy.run("dispatchEvent(new Event('beforeprint')); dispatchEvent(new Event('afterprint'))")
    assert busy.run(UNDRAWN) == []
    assert busy.run(top) == pytest.approx(busy.run(padding), abs=1)


HEIGHT = "return document.documentElement.scrollHeight"


@pytest.mark.parametrize("change", [None, UNRESERVED], ids=["reserved", "unreserved"])
def test_drawing_moves_nothing(opened, browser, change):  # noqa: F811
    forget = browser.before("window.requestIdleCallback = (call) => { window.later = call; }")
    opened(browser, change)
    forget()
    undrawn, height = browser.run(UNDRAWN), browser.run(HEIGHT)
    while not browser.run("return document.documentElement.dataset.ready"):
        browser.run("later()")
    assert undrawn
    assert browser.run(UNDRAWN) == []
    assert (browser.run(HEIGHT) == height) is (change is None)


def test_printing_draws_every_figure(opened, busy):
    sizes = {}
    for change in (None, UNPRINTED):
        opened(busy, change)
        assert busy.run(UNDRAWN)
        sizes[change] = len(busy.pdf("report-lazy").read_bytes())
        assert bool(busy.run(UNDRAWN)) is (change is UNPRINTED)
        assert bool(busy.errors()) is (change is UNPRINTED)
    assert sizes[None] > sizes[UNPRINTED]


@pytest.mark.parametrize("missing", ["", "requestIdleCallback"])
def test_the_others_are_drawn_in_idle_time(opened, browser, missing):  # noqa: F811
    forget = browser.before(f"if ('{missing}') delete window.{missing or 'nothing'}")
    opened(browser)
    forget()
    browser.until("return document.documentElement.dataset.ready")
    assert browser.run(UNDRAWN) == []
    assert browser.errors() == []
    assert browser.run("return scrollY") == 0
