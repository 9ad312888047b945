"""docs/methods.md says what the methods and families really do, and leaves no type of peft out."""

from pathlib import Path

import pytest
from peft import PeftType

from support.methods_table import NOT_COVERED, covered, lines

PAGE = Path(__file__).parents[2] / "docs/methods.md"


def test_every_type_of_the_installed_peft_is_a_method_or_has_a_reason_why_not():
    known = {kind.value for kind in PeftType}
    new = known - covered() - NOT_COVERED.keys()
    assert new == set(), "a file in conf/method, or a reason in NOT_COVERED"
    assert covered() & NOT_COVERED.keys() == set(), "these are covered now: take them out of NOT_COVERED"
    assert NOT_COVERED.keys() <= known and all(NOT_COVERED.values())


@pytest.mark.system
def test_the_page_is_what_the_methods_do():
    assert PAGE.read_text() == "\n".join(lines()) + "\n", "its first lines say how to make it"
