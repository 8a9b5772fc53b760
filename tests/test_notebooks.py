"""The notebooks of the documentation run from top to bottom."""

import nbformat
import pytest
from conftest import ROOT
from nbclient import NotebookClient

NOTEBOOKS = sorted((ROOT / "docs/notebooks").glob("*.ipynb"))


def read(path):
    return nbformat.read(path, as_version=4)


def test_they_are_committed_without_outputs():
    assert len(NOTEBOOKS) == 2
    code = [cell for path in NOTEBOOKS for cell in read(path).cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(path, tmp_path):
    book = read(path)
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(book, timeout=300, resources=resources).execute()
    said = str([cell.outputs for cell in book.cells if cell.cell_type == "code"])
    assert said.count("image/png") == 1
    if path.stem == "own_method":
        assert "local_step" in said
        assert "changes x" in said
