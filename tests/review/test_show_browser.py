"""Pictures of ``show`` for people to look at: sheets, and the terminal's as a browser draws it."""

import io

import pytest
from browser import SCREENSHOTS, browser  # noqa: F401
from PIL import Image
from rich.console import Console

from prunetune.calibration.sources import tiny_folder
from prunetune.config import ModelRef, PruningConfig
from prunetune.models import load_model
from prunetune.review.pictures.overlay import kept_tokens
from prunetune.review.pictures.sheet import Row, sheet
from prunetune.review.pictures.terminal import print_kept

QUESTION = "what color is the circle ?"
STAGES = (
    {"layer": 0, "retention": 0.6, "scorers": [{"name": "coverage"}, {"name": "cls_attention"}]},
    {"layer": 4, "retention": 0.15, "scorers": [{"name": "last_query"}]},
)
ONLY_ATTENTION = (STAGES[0] | {"scorers": [{"name": "cls_attention"}]}, STAGES[1])


@pytest.fixture(scope="module")
def rows():
    """Two pictures under two configs."""
    tiny = load_model("tiny")
    depth = tiny.model.config.text_config.num_hidden_layers
    ref = ModelRef(model_type="llava_next", num_layers=depth, name="tiny")
    one, two = (PruningConfig(model=ref, stages=s) for s in (STAGES, ONLY_ATTENTION))
    found = []
    for name in ("calibration-000.png", "calibration-003.png"):
        with Image.open(tiny_folder() / "calibration" / name) as file:
            image = file.convert("RGB")
        kept = (kept_tokens(tiny, config, image, QUESTION) for config in (one, two))
        found.append(Row(name, image, *kept))
    return found


@pytest.mark.parametrize(
    ("name", "scores", "both"),
    [("show", False, False), ("show-scores", True, False), ("show-against", False, True)],
)
def test_sheets_are_kept_to_be_looked_at(rows, name, scores, both):
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    shown = [row if both else Row(row.name, row.image, row.kept) for row in rows]
    notes = ("A: coverage and attention", "B: attention alone") if both else ()
    shown = shown if name == "show" else shown[:1]
    page = sheet(shown, f"{QUESTION}", notes, scores=scores)
    page.save(SCREENSHOTS / f"{name}.png")
    assert page.width > 3 * 250 * (2 if both else 1) - 250
    assert len(page.getcolors(1 << 24)) > 100


def test_the_terminal_as_a_browser_draws_it(rows, browser, tmp_path):  # noqa: F811
    console = Console(
        record=True,
        file=io.StringIO(),
        width=100,
        color_system="truecolor",
        force_terminal=True,
    )
    print_kept(console, [Row(rows[1].name, rows[1].image, rows[1].kept)])
    console.save_html(str(tmp_path / "terminal.html"))
    browser.open(tmp_path / "terminal.html")
    assert browser.errors() == []
    assert "layer 4:" in browser.text()
    blocks = "[...document.querySelectorAll('span')].filter(s => s.innerText.includes('▀'))"
    assert browser.run(f"return {blocks}.length") > 100
    browser.element("pre", "show-terminal")
