"""The fixture most of these tests start from."""

from pathlib import Path

import pytest
from synthetic import Synthetic, build


@pytest.fixture
def study(tmp_path: Path) -> Synthetic:
    """A whole small study, every cell done."""
    return build(tmp_path / "results" / "toy")
