"""The notebooks run, and print what they show."""

import nbformat
import pytest

from support.blocks import compared
from support.notebooks import NOTEBOOKS, executed, printed


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_prints_what_it_shows(path):
    shown = printed(nbformat.read(path, as_version=4))
    assert shown and compared(printed(executed(path))) == compared(shown), "python -m support.notebooks"
