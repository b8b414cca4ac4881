"""The notebook of docs/ runs from top to bottom, in a kernel of its own."""

import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient", reason="nbclient is not installed")
pytest.importorskip("ipykernel", reason="ipykernel is not installed")

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "docs" / "first_search.ipynb"


def run(notebook, folder, monkeypatch):
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    # The kernel of this environment, whatever others a person has.
    monkeypatch.setenv("JUPYTER_PATH", str(folder / "none"))
    client = NotebookClient(notebook, timeout=240, kernel_name="python3")
    return client.execute(cwd=str(folder))


def printed(notebook):
    return [
        part.get("text", "")
        for cell in notebook.cells
        for part in cell.get("outputs", ())
        if part.output_type == "stream" and part.name == "stdout"
    ]


@pytest.mark.slow
@pytest.mark.script
def test_the_notebook_runs(tmp_path, monkeypatch):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    cell = next(cell for cell in notebook.cells if "trials=6" in cell.source)
    cell.source = cell.source.replace("trials=6", "trials=2")
    found = run(notebook, tmp_path, monkeypatch)
    text = "".join(printed(found))
    assert re.search(r"searched +gap 0\.\d+", text), text
    assert "expected:" in text
    last = [part for cell in found.cells for part in cell.get("outputs", ())][-1]
    assert "image/png" in last.data, "the last output is the picture of what is kept"


def test_it_is_kept_without_outputs_and_a_failing_one_fails(tmp_path, monkeypatch):
    from nbclient.exceptions import CellExecutionError

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    notebook.cells = [nbformat.v4.new_code_cell("raise ValueError('no')")]
    with pytest.raises(CellExecutionError, match="no"):
        run(notebook, tmp_path, monkeypatch)
