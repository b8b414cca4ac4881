"""MkDocs hooks: pages of the repository's root join docs/, and links that leave it are mended.

Pages are written for a repository: ``../README.md`` in docs/, ``docs/data.md`` in the root. On the
site both lie in one folder. What is no page there (a folder, a script) becomes plain text, as the
site has no address of the repository. The notebook becomes a page of its own.
"""

import json
import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
NOTEBOOK = "first_search"
_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)")
_PICTURE = re.compile(r"(!\[[^\]]*\]\()docs/")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that lie elsewhere, and the notebook as one."""
    from mkdocs.structure.files import File

    for name in PAGES:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    notebook = ROOT / "docs" / f"{NOTEBOOK}.ipynb"
    page = notebook_page(json.loads(notebook.read_text("utf-8")), notebook.name)
    files.append(File.generated(config, f"{NOTEBOOK}.md", content=page))
    return files


def on_page_markdown(markdown: str, page: Any, files: Any, **_: Any) -> str:
    """Point links to where things are on the site."""
    name = page.file.src_uri
    known = {file.src_uri for file in files}
    return mended(markdown, "" if name in PAGES else "docs", known)


def mended(markdown: str, folder: str, known: set[str]) -> str:
    """Return a page with links as they are on the site.

    Args:
        markdown: The page.
        folder: Where it lies in the repository; empty for its root.
        known: What is on the site, as paths from its root.
    """

    def link(found: re.Match[str]) -> str:
        text, target = found[1], found[2]
        if "://" in target or target.startswith(("#", "mailto:")):
            return found[0]
        path, mark, anchor = target.partition("#")
        place = posixpath.normpath(posixpath.join(folder, path))
        inside = place.removeprefix("docs/").replace(f"{NOTEBOOK}.ipynb", f"{NOTEBOOK}.md")
        if inside in known:
            return f"[{text}]({inside}{mark}{anchor})"
        # A wrong one stays, and --strict says so.
        return text if (ROOT / place).exists() else found[0]

    markdown = _LINK.sub(link, markdown)
    return _PICTURE.sub(r"\1", markdown) if not folder else markdown


def notebook_page(notebook: dict[str, Any], name: str) -> str:
    """Return a notebook's texts and code as Markdown."""
    parts = [f'<a href="{name}" download>This page as a notebook</a>']
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    return "\n\n".join(parts) + "\n"
