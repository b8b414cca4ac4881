"""Links of pages that are written for a repository, on the docs site."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
_spec = importlib.util.spec_from_file_location("docs_site", ROOT / "tools" / "docs_site.py")
docs_site = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(docs_site)
KNOWN = {"README.md", "data.md", "first_search.md", "images/show.png"}


@pytest.mark.parametrize(
    ("folder", "written", "shown"),
    [
        ("docs", "[a](../README.md#b)", "[a](README.md#b)"),
        ("docs", "[a](data.md)", "[a](data.md)"),
        ("docs", "[a](first_search.ipynb)", "[a](first_search.md)"),
        ("docs", "see [deployments/](../deployments/).", "see deployments/."),
        (
            "",
            "[a](docs/data.md#b) ![p](docs/images/show.png)",
            "[a](data.md#b) ![p](images/show.png)",
        ),
        (
            "",
            "[a](#b) [c](https://example.org/docs/x.md)",
            "[a](#b) [c](https://example.org/docs/x.md)",
        ),
        # What is nowhere stays, and --strict refuses it.
        ("docs", "[a](../gone.md)", "[a](../gone.md)"),
    ],
)
def test_links_point_to_where_things_are_on_the_site(folder, written, shown):
    assert docs_site.mended(written, folder, KNOWN) == shown


def test_every_page_is_in_the_navigation():
    known = (ROOT / "mkdocs.yml").read_text()
    pages = {path.name for path in ROOT.glob("docs/*.md")}
    assert {page for page in pages if page not in known} == set()
