"""The results that the project publishes are whole, and their tables are what this version makes of their
records."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from portability.analyze import main as analyze
from portability.store import Store
from portability.store.__main__ import main as store_command

ROOT = Path(__file__).parents[2] / "results"
PUBLISHED = sorted(path.parent for path in ROOT.glob("*/published")) if ROOT.is_dir() else []


def test_the_full_grid_on_the_embedded_hosts_is_published():
    assert "nano_full" in [path.name for path in PUBLISHED]
    cells = [cell for manifest in Store(ROOT / "nano_full").manifests() for cell in manifest["cells"]
             if cell["budget"] > 0]
    assert len(cells) == 1440 and {cell["run_id"] for cell in cells} <= set(Store(ROOT / "nano_full").marks())


@pytest.fixture(scope="module")
def again(tmp_path_factory):
    """Copies of a published study without what was made of it, analysed anew; the same copy whenever it is
    asked for."""
    made = {}

    def copy(name, number=1):
        if (name, number) not in made:
            root = tmp_path_factory.mktemp(f"again{number}") / name
            shutil.copytree(ROOT / name, root, ignore=shutil.ignore_patterns("tables", "plots", "report.md",
                                                                             "report"))
            assert store_command(["verify", str(root)]) == 0
            assert analyze([str(root), "--quiet"]) == 0
            made[name, number] = root
        return made[name, number]

    return copy


NUMBER = re.compile(r"-?\d+\.\d+(?:e[-+]?\d+)?")


def assert_alike(one, other, name):
    """The same text, but for the last digits of numbers, in which processors of other makes differ."""
    assert NUMBER.sub("#", one) == NUMBER.sub("#", other), name
    numbers = [np.array(NUMBER.findall(text), float) for text in (one, other)]
    np.testing.assert_allclose(*numbers, rtol=1e-6, atol=2e-3 if name.startswith("mixed") else 1e-9,
                               err_msg=name)


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda path: path.name)
def test_what_is_published_is_sound_and_its_tables_are_made_of_it(folder, again):
    assert store_command(["verify", "--submission", str(folder)]) == 0
    copy = again(folder.name)
    for path in [folder / "report.md", *sorted((folder / "tables").iterdir())]:
        assert_alike((copy / path.relative_to(folder)).read_text(), path.read_text(), path.name)


def test_the_same_study_gives_the_same_files_twice(again):
    one, two = again("nano_full"), again("nano_full", 2)
    names = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert len(names) > 20
    assert [name for name in names if (one / name).read_bytes() != (two / name).read_bytes()] == []


def test_numbers_that_differ_are_seen():
    assert_alike("a 1.25000000 b", "a 1.25000001 b", "tables")
    for other in ("a 1.26 b", "a 1.25 c", "a 1.25 b 2.0"):
        with pytest.raises(AssertionError):
            assert_alike("a 1.25 b", other, "tables")
