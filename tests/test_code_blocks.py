"""Code blocks of documents that are not run: studies in them are composed, YAML and Python can be read."""

import importlib.util

import pytest
import yaml

from portability.cli import COMMANDS
from portability.config.compose import composed, options
from portability.config.study import checked
from portability.options import parser
from support.blocks import ROOT, blocks, commands, compared, pages

BLOCKS = [
    (path.relative_to(ROOT).as_posix(), block) for path in pages() for block in blocks(path.read_text())
]
PLANNED = [
    pytest.param(words, id=f"{name}-{number}")
    for number, (name, words) in enumerate(
        (name, words) for name, block in BLOCKS if block.mark == "plan" for words in commands(block)
    )
]


@pytest.mark.system  # half a second each
@pytest.mark.parametrize("words", PLANNED)
def test_a_command_that_is_not_carried_out_could_be(words):
    """A study can be asked for so; any other command of ours knows these options."""
    if words[0] == "portability":
        assert words[1] in COMMANDS
        module, rest = words[1], words[2:]
    elif words[:2] == ["python", "-m"]:
        assert importlib.util.find_spec(words[2]), words
        module, rest = words[2].removeprefix("portability."), words[3:]
    else:
        return
    if module == "run":
        assert checked(composed(options(rest))).grid.inits
    elif module in COMMANDS:
        assert parser(module).read(rest)


def test_blocks_are_told_apart():
    text = (
        "```sh\na\n```\n<!-- run: plan -->\n```sh\nc \\\n  d=t5\ne 'f g'  # h\n```\n<!-- run: no: long -->\n"
        "```sh\ni\n```\n```yaml\n# @package _global_\n# mine/a.yaml\nb: 1\n```\n```text\nj\n```\n"
    )
    found = blocks(text)
    assert [block.mark for block in found] == ["run", "plan", "no", "run", "run"]
    assert [block.runs for block in found] == [True, False, False, False, False]
    assert list(commands(found[1])) == [["c", "d=t5"], ["e", "f g"]] and found[3].file == "mine/a.yaml"
    with pytest.raises(ValueError, match="cannot read the mark"):
        blocks("<!-- run: no -->\n```sh\nk\n```\n")


def test_what_is_measured_is_not_compared():
    one = "slowest: 59ccffd8a4df5688 (sampled, seed 4) 53.9 s; two\nahead   +47.2 pp  ──\nruns: 17"
    other = "slowest: 02e0c1d8a4df5680 (ported, seed 2) 1.2 s\nahead +7.0 pp ───\nruns: 17"
    assert compared(one) == compared(other) != compared(other.replace("17", "18"))


def test_yaml_and_python_can_be_read():
    for name, block in BLOCKS:
        if block.language == "yaml":
            assert yaml.safe_load(block.text), name
        elif block.language == "python":
            compile(block.text, name, "exec")
