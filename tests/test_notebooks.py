"""The notebooks of docs/: they run as they are, and show what they gave when they were run last.

`python tests/test_notebooks.py` runs them and writes their outputs.
"""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "docs/notebooks").glob("*.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return request.param


def executed(notebook, folder):
    """The notebook with the outputs of a run in this folder."""
    import nbformat
    from nbclient import NotebookClient

    document = nbformat.read(notebook, as_version=4)
    return NotebookClient(document, timeout=None, resources={"metadata": {"path": str(folder)}}).execute()


def test_every_cell_was_run_once_from_top_to_bottom(notebook):
    cells = [cell for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert outputs
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]


@pytest.mark.slow
@pytest.mark.timeout(3600)  # the first one embeds all texts
def test_it_runs(notebook, tmp_path):
    executed(notebook, tmp_path)


def refresh():
    """Write the outputs of a new run into the notebooks, without warnings and times."""
    import nbformat

    for notebook in NOTEBOOKS:
        with TemporaryDirectory() as folder:
            document = executed(notebook, folder)
        for cell in document.cells:
            cell.metadata.pop("execution", None)
            if cell.cell_type == "code":
                cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        nbformat.write(document, notebook)


if __name__ == "__main__":
    refresh()
