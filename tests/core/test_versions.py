"""Versions in records."""

import portability
from portability.core.versions import packages


def test_every_package_that_can_change_a_number_has_its_version():
    found = packages()
    assert found["portability"] == portability.__version__ and "not installed" not in found.values()
