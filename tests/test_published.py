"""The results that the project publishes are whole, and their tables are what this version makes of their records."""

import shutil
from pathlib import Path

import pytest

from portability.analyze import main as analyze
from portability.store import Store
from portability.store.__main__ import main as store_command

ROOT = Path(__file__).parents[1] / "results"
PUBLISHED = sorted(path.parent for path in ROOT.glob("*/published")) if ROOT.is_dir() else []


def test_the_full_grid_on_the_embedded_hosts_is_published():
    assert "nano_full" in [path.name for path in PUBLISHED]
    cells = [cell for manifest in Store(ROOT / "nano_full").manifests() for cell in manifest["cells"] if cell["budget"] > 0]
    assert len(cells) == 1440 and {cell["run_id"] for cell in cells} <= set(Store(ROOT / "nano_full").marks())


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda path: path.name)
def test_what_is_published_is_sound_and_its_tables_are_made_of_it(folder, tmp_path, capsys):
    copy = tmp_path / folder.name
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("tables", "plots", "report.md"))
    assert store_command(["verify", str(copy)]) == 0, capsys.readouterr().out
    assert analyze([str(copy), "--quiet"]) == 0
    for path in [folder / "report.md", *sorted((folder / "tables").iterdir())]:
        assert (copy / path.relative_to(folder)).read_text() == path.read_text(), path.name


def test_the_same_study_gives_the_same_files_twice(tmp_path):
    again = [shutil.copytree(ROOT / "nano_full", tmp_path / str(number) / "nano_full") for number in (1, 2)]
    for copy in again:
        assert analyze([str(copy), "--quiet"]) == 0
    names = sorted(path.relative_to(again[0]) for path in again[0].rglob("*") if path.is_file())
    assert len(names) > 20
    assert [name for name in names if (again[0] / name).read_bytes() != (again[1] / name).read_bytes()] == []
