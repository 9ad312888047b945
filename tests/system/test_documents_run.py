"""What a page tells a reader to type works, from top to bottom in an empty folder, and prints what it shows.
"""

import pytest

from support.blocks import ROOT, begun, blocks, compared, environment, pages, run

OTHERWISE = {"docs/tutorial.md": "test_stranger.py, with a wheel", "docs/porting.md": "test_porting_page.py"}
PAGES = [path.relative_to(ROOT).as_posix() for path in pages() if any(
    block.runs for block in blocks(path.read_text()))]


@pytest.mark.parametrize("name", [name for name in PAGES if name not in OTHERWISE])
def test_the_blocks_of_a_page_run(name, tmp_path):
    page = (ROOT / name).read_text()
    here = tmp_path / "here"
    here.mkdir()
    env = environment(tmp_path / "installed")
    begun(page, here, env)
    assert compared(run(page, here, env)) == compared(page), f"python -m support.blocks {name}"
