"""The commonest mistakes, made in this process."""

import shlex
from collections import Counter
from pathlib import Path

import pytest

from portability import cli
from portability.core import errors
from support import mistakes
from support.mistakes import BEGIN, MISTAKES, PAGE, matches, prepare


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("mistakes")
    prepare(made)
    return made


def held(folder: Path) -> dict[Path, int]:
    """Every path below a folder, and the size of files."""
    return {path: path.stat().st_size if path.is_file() else -1 for path in folder.rglob("*")}


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.typed)
def test_a_mistake_is_answered_by_one_sentence_and_leaves_nothing(mistake, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr("sys.argv", shlex.split(mistake.typed))
    if mistake.raised:
        name, happening = mistake.raised

        def fails(*_, **__):
            raise happening

        monkeypatch.setattr(name, fails)
    before = held(folder)
    assert cli.main() == mistake.code
    said = capsys.readouterr().err
    assert said.startswith("portability: ") and said.count("\n") == 1
    assert matches(said.removeprefix("portability: ").strip(), mistake.said), said
    assert held(folder) == before


def test_there_are_thirty_of_them_of_six_kinds_and_each_says_something():
    kinds = Counter(mistake.kind for mistake in MISTAKES)
    assert len(MISTAKES) >= 30 and len(kinds) == 6 and min(kinds.values()) >= 5
    assert all(len(mistake.said.replace("…", "")) > 20 for mistake in MISTAKES)
    assert not matches("there is no option --dryrun; did you mean '--dry-run'", MISTAKES[1].said)


def test_the_page_shows_them_all():
    page = PAGE.read_text()
    assert BEGIN in page
    assert mistakes.filled(page) == page, "PYTHONPATH=tests python -m support.mistakes"


@pytest.mark.parametrize(("name", "known", "close"), [
    ("LoRA", ["lora", "lora_all"], "lora"), ("conf/method/lora.yaml", ["lora", "prefix"], "lora"),
    ("nano_raw_base", ["nano-raw-base", "nano-raw-large"], "nano-raw-base"), ("x", ["lora"], ""),
    ("", ["a"], ""),
])
def test_the_name_that_was_probably_meant(name, known, close):
    assert errors.closest(name, known) == close
