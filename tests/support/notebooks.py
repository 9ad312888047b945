"""The notebooks of docs, run from top to bottom in a kernel of this Python.

    PYTHONPATH=tests python -m support.notebooks                # writes into all what they print
    PYTHONPATH=tests python -m support.notebooks read_a_study   # into named ones
"""

import os
import sys
from pathlib import Path

import nbclient
import nbformat

NOTEBOOKS = sorted((Path(__file__).parents[2] / "docs/notebooks").glob("*.ipynb"))
SECONDS = 600  # at most, of a cell


def executed(path: Path) -> nbformat.NotebookNode:
    """A notebook with what its cells print now.

    Raises:
        CellExecutionError: a cell failed.
    """
    notebook = nbformat.read(path, as_version=4)
    where = {"metadata": {"path": str(path.parent)}}
    quiet = {**os.environ, "PYTHONWARNINGS": "ignore:IProgress"}  # tqdm's, of a kernel without widgets
    client = nbclient.NotebookClient(notebook, timeout=SECONDS, record_timing=False, resources=where)
    client.execute(env=quiet)
    notebook.metadata.language_info = {"name": "python"}  # nothing of this machine's Python
    return notebook


def printed(notebook: nbformat.NotebookNode) -> str:
    """All that the cells of a notebook printed, one after another.

    Raises:
        AssertionError: a warning or an error among it.
    """
    found = []
    for cell in notebook.cells:
        outputs = cell.get("outputs", ())
        assert not [output["text"] for output in outputs if output.get("name") == "stderr"]
        # a kernel sends what was printed in pieces, as it happens
        found.append("".join(output["text"] if "text" in output else output["data"]["text/plain"]
                             for output in outputs).rstrip())
    return "\n".join(found)


if __name__ == "__main__":
    for notebook in NOTEBOOKS:
        if notebook.stem in sys.argv[1:] or not sys.argv[1:]:
            nbformat.write(executed(notebook), notebook)
