"""The dashboard in a real browser: pages load, notes and pictures are shown, data stays text."""

import threading

import pytest
from boards import NAME, SCRIPT, make_study
from browser import browser  # noqa: F401

from prunetune.models import load_model
from prunetune.review.artifacts import ArtifactFolder
from prunetune.review.dashboard import Dashboard
from prunetune.review.facts import study_facts
from prunetune.search.prepare import load_data


@pytest.fixture(scope="module")
def page(browser, tmp_path_factory):  # noqa: F811
    """A dashboard that serves, and the URL of its study."""
    out = tmp_path_factory.mktemp("run")
    study = make_study(out)
    tiny = load_model("tiny")

    def prepare(publisher):
        publisher.loaded = tiny
        publisher.samples = load_data(study_facts(publisher.study).spec)[0].samples

    board = Dashboard(study._storage, ArtifactFolder(out / "artifacts"), prepare=prepare)
    board.refresh()
    thread = threading.Thread(target=board.serve, daemon=True)
    thread.start()
    yield f"{board.url}/studies/{study._study_id}", board.url
    board.stop()
    thread.join(20)


def shows(browser, text):  # noqa: F811
    browser.until(f"return document.body.innerText.includes({text!r})")


def check(browser, name):  # noqa: F811
    browser.screenshot(name)
    assert browser.errors() == []
    # A script that ran would have opened a dialogue, and any further command would fail.
    assert browser.run("return [...document.scripts].every(s => !s.text.includes('alert(1)'))")


def test_the_list_of_studies_loads(page, browser):  # noqa: F811
    browser.open(page[1])
    shows(browser, NAME)
    check(browser, "dashboard-studies")


def test_the_page_of_a_study_loads_with_its_figures(page, browser):  # noqa: F811
    browser.open(page[0])
    shows(browser, NAME)
    found = "return document.querySelectorAll('.js-plotly-plot .main-svg').length"
    browser.until(f"{found} >= 4")
    check(browser, "dashboard-study")


def test_the_page_of_a_trial_shows_note_and_picture(page, browser):  # noqa: F811
    browser.open(f"{page[0]}/trials?numbers=5")
    shows(browser, "score weight")
    shows(browser, "trial-5-kept.png")
    # In the note, and among the files.
    pictures = "[...document.images].filter(i => i.src.includes('/artifacts/'))"
    loaded = "every(i => i.complete && i.naturalWidth > 500)"
    browser.until(f"const i = {pictures}; return i.length == 2 && i.{loaded}")
    assert browser.run("return document.querySelectorAll('table').length") >= 3
    # A config among the user attributes must not make the page wider than the window.
    assert browser.run("return document.documentElement.scrollWidth <= innerWidth")
    check(browser, "dashboard-trial")
    browser.run(f"{pictures}[0].scrollIntoView()")
    browser.screenshot("dashboard-trial-picture", whole=False)


def test_the_note_of_a_study_shows_markup_of_data_as_text(page, browser):  # noqa: F811
    browser.open(f"{page[0]}/note")
    shows(browser, "Best: trial 5")
    shows(browser, SCRIPT)
    check(browser, "dashboard-note")


def test_html_in_a_note_would_not_run_either(page, browser, tmp_path):  # noqa: F811
    """The twin: unescaped markup becomes an element or nothing, but never a script that runs."""
    study = make_study(tmp_path, trials=1)
    from optuna_dashboard import save_note

    save_note(study, f"<b>bold</b> {SCRIPT} <img src=x onerror='document.title=\"hit\"'> **end**")
    board = Dashboard(study._storage, ArtifactFolder(tmp_path / "artifacts"))
    thread = threading.Thread(target=board._server.serve_forever, daemon=True)
    thread.start()
    try:
        browser.open(f"{board.url}/studies/{study._study_id}/note")
        shows(browser, "end")
        assert browser.run("return document.title") != "hit"
        assert not browser.run("return [...document.querySelectorAll('img[src=x]')].length")
        assert browser.run("return [...document.querySelectorAll('strong')].length") == 1
    finally:
        board._server.shutdown()
        board._server.server_close()
