"""What docs/porting.md shows is what the command prints."""

import pytest

from support.porting_page import BLOCK, PAGE, compared, filled


@pytest.mark.system
def test_the_page_shows_what_the_command_prints():
    page = PAGE.read_text()
    assert len(BLOCK.findall(page)) >= 10
    assert compared(filled(page)) == compared(page), "PYTHONPATH=tests python -m support.porting_page"
