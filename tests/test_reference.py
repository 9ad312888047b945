"""Pages that are made of commands, configuration and registries say what these say."""

from pathlib import Path

import pytest
import yaml

from portability import cli
from portability.porting.strategies import STRATEGIES
from support.reference import CONF, DOCS, PAGES, SLOW, page, settings


@pytest.mark.parametrize("name", [name for name in PAGES if name != SLOW])
def test_a_page_is_what_it_is_made_of(name):
    assert (DOCS / name).read_text() == page(name), f"PYTHONPATH=tests python -m support.reference {name}"


def leaves(values: dict, above: str = "") -> set[str]:
    """Full names of the keys of a mapping that hold no further keys in lines of their own."""
    found = set()
    for key, value in values.items():
        held = isinstance(value, dict) and value and key not in ("relations", "sets", "options")
        found |= leaves(value, f"{above}{key}.") if held else {f"{above}{key}"}
    return found


def test_every_setting_is_there_with_its_default():
    held = yaml.safe_load((CONF / "config.yaml").read_text())
    groups = {name for one in held.pop("defaults") if isinstance(one, dict) for name in one}
    told = {one.key: one.default for one in settings() if one.default}
    assert groups and told.keys() == leaves(held) | groups
    for key in leaves(held):
        value = held
        for part in key.split("."):
            value = value[part]
        assert yaml.safe_load(told[key]) == value, key


def test_every_command_and_strategy_has_its_part():
    commands, strategies = (
        (DOCS / f"reference/{name}.md").read_text() for name in ("commands", "strategies")
    )
    assert all(f"\n## portability {name}\n" in commands for name in cli.COMMANDS)
    assert all(f"\n## {name}\n" in strategies for name in STRATEGIES)
    starts = (DOCS / "reference/starts.md").read_text()
    assert all(f"| `{path.stem}` |" in starts for path in Path(CONF / "init").glob("*.yaml"))
