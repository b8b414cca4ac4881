"""The dashboard in a real browser: pages load, notes and pictures are shown, data stays text."""

import threading

import pytest
from boards import NAME, SCRIPT, make_example, make_study, serving
from browser import browser  # noqa: F401

from prunetune.models import load_model
from prunetune.review.dashboard.artifacts import ArtifactFolder
from prunetune.review.dashboard.dashboard import Dashboard
from prunetune.review.facts import study_facts


@pytest.fixture(scope="module")
def page(browser, tmp_path_factory):  # noqa: F811
    """A dashboard that serves; the URLs of its list, an ordinary study, and one full of markup."""
    out = tmp_path_factory.mktemp("run")
    ordinary, hostile = make_example(out), make_study(out)
    best = study_facts(ordinary).best.number
    with serving(ordinary, out, load_model("tiny")) as board:
        place = f"{board.url}/studies"
        yield board.url, f"{place}/{ordinary._study_id}", f"{place}/{hostile._study_id}", best


def shows(browser, text):  # noqa: F811
    browser.until(f"return document.body.innerText.includes({text!r})")


def check(browser, name):  # noqa: F811
    browser.screenshot(name)
    assert browser.errors() == []
    # A script that ran would have opened a dialogue, and any further command would fail.
    assert browser.run("return [...document.scripts].every(s => !s.text.includes('alert(1)'))")


def test_the_list_of_studies_loads(page, browser):  # noqa: F811
    browser.open(page[0])
    shows(browser, NAME)
    shows(browser, "tiny/keep0.25/cosine")
    check(browser, "dashboard-studies")


def test_the_page_of_a_study_loads_with_its_figures(page, browser):  # noqa: F811
    browser.open(page[1])
    shows(browser, "tiny/keep0.25/cosine")
    for figure in ("schedules", "gap-against-cost"):
        place = f"document.getElementById('user-defined-plot:{figure}')"
        browser.until(f"return {place} && {place}.querySelector('.main-svg .gtitle')")
    check(browser, "dashboard-study")
    browser.run(f"{place}.scrollIntoView({{block: 'center'}})")
    browser.screenshot("dashboard-figures", whole=False)


def test_the_page_of_a_trial_shows_note_and_picture(page, browser):  # noqa: F811
    browser.open(f"{page[1]}/trials?numbers={page[3]}")
    shows(browser, "score weight")
    shows(browser, f"trial-{page[3]}-kept.png")
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


def test_the_note_of_a_study_loads(page, browser):  # noqa: F811
    browser.open(f"{page[1]}/note")
    shows(browser, f"Best: trial {page[3]}")
    check(browser, "dashboard-note")


def test_markup_in_data_is_shown_as_text_everywhere(page, browser):  # noqa: F811
    browser.open(f"{page[2]}/note")
    shows(browser, "Best: trial 5")
    shows(browser, SCRIPT)
    check(browser, "dashboard-note-hostile")
    browser.open(f"{page[2]}/trials?numbers=5")
    shows(browser, "trial-5-kept.png")
    shows(browser, "'quoted\" <b>&amp; *name* |.png")
    check(browser, "dashboard-trial-hostile")


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
        # The page shows the note's text first and renders it then.
        browser.until("return document.querySelectorAll('strong').length == 1")
        assert browser.run("return document.title") != "hit"
        assert not browser.run("return [...document.querySelectorAll('img[src=x]')].length")
    finally:
        board._server.shutdown()
        board._server.server_close()
