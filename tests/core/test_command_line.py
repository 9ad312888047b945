"""Commands speak with one voice: help of a page with examples that can be typed, one name for one thing, one
prefix, and the same exit codes.
"""

import argparse
import errno
import os
import shlex
import signal

import pytest

from portability import cli, options
from portability.analysis.comparison.rows import LEVELS
from portability.analysis.metrics import METRICS
from portability.bench.given import SHAPES
from portability.config.compose import folders_of, names_of
from portability.core.command_line import Command, Parser, carry_out
from portability.core.errors import Failed, UnknownName, UserError
from portability.data.files import ENDINGS
from portability.options import COMMANDS, GROUPS, all_parsers, parser, strategies
from portability.porting.layer_maps import LAYER_MAPS, MEASURED
from portability.porting.strategies import STRATEGIES

LINES = 60  # of a page
SHARED = ("out", "config_dir", "results", "study", "run")  # things that several commands name


def actions(made: argparse.ArgumentParser) -> list[argparse.Action]:
    """Options and words of a parser and of those in it."""
    found = []
    for action in made._actions:
        nested = action.nargs == argparse.PARSER
        found += [one for below in action.choices.values() for one in actions(below)] if nested else [action]
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_a_page_with_three_examples_that_can_be_typed(name, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr("sys.argv", ["portability", name, "--help"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    page = capsys.readouterr().out.splitlines()
    assert end.value.code == 0 and len(page) <= LINES and max(map(len, page)) <= 110
    assert page[0].startswith(f"usage: portability {name} ")
    examples = [line.strip() for line in page[page.index("examples:") + 1 :]]
    assert len(examples) >= 3 and any(f"portability {name}" in line for line in examples)
    for line in examples:
        words = shlex.split(line)
        assert words[0] == "portability" and parser(words[1]).read(words[2:])


def test_every_command_has_its_work_and_its_line_in_the_help_of_all(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    assert cli.WORK.keys() == COMMANDS.keys()
    text = all_parsers().format_help()
    assert all(f"  {name} " in text and command.line in text for name, command in COMMANDS.items())


def test_one_thing_has_one_name():
    said: dict[str, set[str]] = {}
    for action in actions(all_parsers()):
        assert action.help, action
        if action.dest in SHARED:
            said.setdefault(action.dest, set()).add(f"{action.metavar} {action.type} {action.option_strings}")
    assert said.keys() == {*SHARED}
    assert all(len(ways) == 1 for ways in said.values()), said


def test_names_in_the_help_are_those_of_the_registries():
    assert {f"eval_{name}" for name in options.METRICS} == {*METRICS}
    assert options.SHAPES == tuple(sorted(SHAPES)) and strategies() == tuple(sorted(STRATEGIES))
    assert options.BY == (*LEVELS,) and options.ENDINGS == ENDINGS
    assert options.LAYER_MAPS == tuple(sorted({*LAYER_MAPS, MEASURED}))
    assert {*GROUPS.values()} - {""} == {*names_of(folders_of([]))}


@pytest.mark.parametrize(("happening", "code", "said"), [
    (None, 0, ""), (Failed("the losses differ"), 1, "the losses differ"),
    (UserError("no\nhost"), 2, "no host"),
    (UnknownName("no 'ful'; did you mean 'full'?", "ful", "full"), 2, "no 'ful'; did you mean 'a=full'?"),
    (OSError(errno.ENOSPC, "No space left", "out"), 2, "out: No space left; nothing was written, repeat the "
     "command when it is put right"),
    (KeyboardInterrupt(), 130, "interrupted; nothing was written, repeat the command to go on"),
    (KeyboardInterrupt(signal.SIGTERM), 143, "terminated; nothing was written, repeat the command to go on"),
])
def test_exit_codes_and_the_sentence(happening, code, said, capsys):
    def work(_):
        if happening:
            raise happening

    made = Parser(Command("about", add=lambda parser: parser.add_argument("word")), prog="portability try")
    assert carry_out(made, work, ["a=ful"]) == code
    assert capsys.readouterr() == ("", f"portability: {said}\n" if said else "")


@pytest.mark.parametrize("length", [10, 1_000_000])  # within what is held back for one write, and beyond
def test_a_reader_that_has_enough_ends_the_command_in_silence(length, monkeypatch, capsys):
    reads, writes = os.pipe()
    os.close(reads)
    with os.fdopen(writes, "w") as closed:
        monkeypatch.setattr("sys.stdout", closed)
        made = Parser(Command("about"), prog="portability try")
        assert carry_out(made, lambda _: closed.write("x" * length) and None, []) == 128 + signal.SIGPIPE
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("typed", "said"), [
    ("port my-lora", "missing: --to; portability port --help shows what it takes"),
    ("port a --to", "--to: expected one argument; portability port --help shows what it takes"),
    ("merge results/a run folder --out b", "'folder' is one word too many; portability merge --help shows "
     "what it takes"),
    ("store verfy", "unknown command 'verfy'; choose one of: compact, merge, pack, tidy, verify; did you "
     "mean 'verify'?"),
    ("store verify --discrad", "there is no option --discrad; did you mean '--discard'?"),
    ("store verify --submission --discard", "--discard: not allowed with argument --submission; portability "
     "store verify --help shows what it takes"),
    ("bench --members x", "--members must be whole numbers, as in 1,4,16, got 'x'"),
    ("publish --to wandb --mode ofline", "unknown --mode 'ofline'; choose one of: auto, offline, online; did "
     "you mean 'offline'?"),
    ("run --dry-run", "there is no option --dry-run; type mode=plan"),
    ("run -yes=true", "there is no option -yes; type yes=true"),
    ("run --quux", "there is no option --quux; portability run --help lists the options"),
    ("analyse", "unknown command 'analyse'; choose one of: analyze, bench, compare, derive, export, init, "
     "list, merge, port, publish, run, store; did you mean 'analyze'?"),
])
def test_what_cannot_be_read_is_one_sentence(typed, said, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["portability", *shlex.split(typed)])
    assert cli.main() == 2 and capsys.readouterr() == ("", f"portability: {said}\n")


def test_without_a_word_the_commands_are_shown(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["portability"])
    assert cli.main() == 2 and capsys.readouterr().out == all_parsers().format_help()


def test_names_are_listed_with_those_of_ones_own(tmp_path, monkeypatch, capsys):
    (tmp_path / "host").mkdir()
    (tmp_path / "host" / "mine.yaml").write_text("# a host of mine\nmine: {path: there}\n")
    for group, words in {"hosts": ["--config-dir", str(tmp_path)], "strategies": [], "methods": []}.items():
        monkeypatch.setattr("sys.argv", ["portability", "list", group, *words])
        assert cli.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"{'mine':22} a host of mine" in lines and "procrustes" in lines
    assert any(line.startswith("nano-raw-base ") for line in lines)
    assert {line.split()[0] for line in lines} >= {*names_of(folders_of([]))["method"]}
