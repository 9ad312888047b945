"""Makes the pages of docs that are generated: from commands, configuration, registries and
published tables. Tests compare each with what is there.

    PYTHONPATH=tests python -m support.reference              # all that need no host: seconds
    PYTHONPATH=tests python -m support.reference methods.md   # named ones; methods.md tries every method out
"""

import contextlib
import importlib
import inspect
import io
import json
import logging
import os
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import pandas as pd
import yaml

from portability import cli
from portability.analysis.formatting import number
from portability.analysis.metrics import PREFIX, UNITS, metric_of
from portability.core.init_kinds import INIT_KINDS
from portability.core.paths import bundled
from portability.porting.layer_maps import LAYER_MAPS, MEASURED
from portability.porting.strategies import STRATEGIES

ROOT = Path(__file__).parents[2]
DOCS, CONF = ROOT / "docs", bundled("conf")
MADE = "\n<!-- Made by PYTHONPATH=tests python -m support.reference {page}; a test compares the two. -->\n"
KEY = re.compile(r'^(?P<indent> *)"?(?P<key>\w+)"?:(?: +(?P<value>[^ #].*?))?(?: +# (?P<remark>.*))?$')
CHOSEN = ("method", "engine", "host_set", "protocol")  # files that are chosen by name
GROUPS = {
    "host": "Hosts",
    "host_set": "Sets of hosts",
    "data": "Data sets",
    "sweep": "Studies",
    "protocol": "Protocols",
    "engine": "Engines",
}
SENTENCE = re.compile(r"\.\s+(?=[A-Z])")  # where one ends
SUBCOMMANDS = re.compile(r"^    (\w+) +\S", re.M)  # of a command that has some, in its help

HEADS = {  # page -> what stands before the part that is made
    "reference/commands.md": """# Commands

Each command prints its page with `--help`. Without an installed package: `python -m portability` for
`portability`.

| command | what it does |
|---|---|""",
    "reference/configuration.md": """# Configuration

Every setting of `portability run`, its default, and what it means, as they stand in
[conf/config.yaml](../../conf/config.yaml). `KEY=VALUE` on the command line sets one, a file of
[sweeps](../../sweeps) several at once; *our choice* marks what the papers do not fix. D-01 and the like are
[decisions](../decisions/README.md).""",
    "reference/names.md": """# Names

What can be named on the command line, each a file of [conf](../../conf) or [sweeps](../../sweeps). Methods
are in [Methods and families](../methods.md), ports in [Strategies](strategies.md), starts in
[Starts](starts.md).""",
    "reference/strategies.md": """# Strategies

A strategy says how a module's numbers are written for another host, a layer map which of the origin's
layers feed which of the receiving host's ([Port an adapter](../porting.md#strategies)). `portability port
--strategy NAME` uses one; in a study, `grid.ports` names files of [conf/port](../../conf/port). How well
they do: [results](../results/strategies.md).
""",
    "reference/starts.md": """# Starts

A start (`init` in files and on the command line) is the module before its first update on the receiving
host. `grid.inits=[ported,sampled,scratch]` names files of [conf/init](../../conf/init). Why these: [Ports,
arms, seeds](../concepts.md#what-the-arms-mean).

| start | what it is | kind | options | made from |
|---|---|---|---|---|""",
    "gallery.md": """# Gallery

The studies that are published with the project: every record and prediction, the report, and the contrasts
that were declared before the runs. *Ahead* and *behind* are decided by t tests over seeds after Holm's
correction, *open* is what is not decided ([Statistics](statistics.md)). Hosts are tiny or small; what they
show need not hold for others. What was learned: [results](results/README.md).""",
}


# ---- commands


def commands() -> Iterator[str]:
    """Every command, with what its --help prints."""
    yield from (
        f"| [`portability {name}`](#portability-{name}) | {cell(one.line)} |"
        for name, one in cli.COMMANDS.items()
    )
    for name in cli.COMMANDS:
        text = printed(name, "--help")
        yield f"\n## portability {name}\n\n```text\n{text}\n```"
        for below in (
            SUBCOMMANDS.findall(text.partition("positional arguments")[2]) if "COMMAND" in text else ()
        ):
            yield f"\n```text\n{printed(name, below, '--help')}\n```"


def printed(*words: str) -> str:
    """What a command prints on a terminal of 88 columns."""
    out = io.StringIO()
    with (
        patch.object(sys, "argv", ["portability", *words]),
        patch.dict(os.environ, COLUMNS="88", NO_COLOR="1"),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(out),
        contextlib.suppress(SystemExit),
    ):
        cli.main()
    return re.sub(r" +$", "", out.getvalue(), flags=re.M).rstrip()


# ---- configuration


class Setting(NamedTuple):
    """A key of conf/config.yaml: its full name, its default as it stands there, and what is said of it."""

    key: str
    default: str
    remark: str


def settings() -> list[Setting]:
    """Every key of conf/config.yaml, groups of the defaults list among them."""
    found: list[Setting] = []
    above: list[str] = []
    for line in (CONF / "config.yaml").read_text().splitlines():
        further = re.match(r"^ +# (.*)$", line)
        if further and found:
            found[-1] = found[-1]._replace(remark=f"{found[-1].remark} {further[1]}")
        match = KEY.match(line.replace("  - ", "  ", 1))
        if match:
            above[len(match["indent"]) // 2 :] = [match["key"]]
            if match["value"] or match["remark"]:
                found.append(
                    Setting(
                        ".".join(above).removeprefix("defaults."), match["value"] or "", match["remark"] or ""
                    )
                )
    return found


def configuration() -> Iterator[str]:
    """Every setting."""
    parts = defaultdict[str, list[Setting]](list, {"Chosen as a whole": [], "The study": []})
    for one in settings():
        section = one.key.partition(".")[0]
        title = f"`{section}`" if "." in one.key or not one.default else "The study"
        parts["Chosen as a whole" if one.key in CHOSEN and one.default else title].append(one)
    for title, held in parts.items():
        yield f"\n## {title}\n\n| key | default | meaning |\n|---|---|---|"
        yield from (
            f"| `{one.key}` | {f'`{cell(one.default)}`' if one.default else ''} | {cell(one.remark)} |"
            for one in held
        )


# ---- names


def remark(path: Path) -> str:
    """The first sentence of a file's first comment; where it has none, where the thing is."""
    text = re.sub(r"^# @package.*\n", "", path.read_text())
    found = re.search(r"^# .*(?:\n# .*)*", text) or re.search(r"# .*", text)
    if found:
        words = " ".join(line.lstrip("# ") for line in found[0].splitlines())
        return SENTENCE.split(words, maxsplit=1)[0].rstrip(".")
    return ", ".join(
        f"{key} `{value}`"
        for values in yaml.safe_load(text).values()
        for key, value in values.items()
        if isinstance(value, str)
    )


def names() -> Iterator[str]:
    """Hosts, data sets, studies, ... that have a file."""
    for group, title in GROUPS.items():
        folder = CONF / group if group != "sweep" else bundled("conf") / "sweep"
        yield f"\n## {title}\n\n| name | what it is |\n|---|---|"
        yield from (f"| `{path.stem}` | {cell(remark(path))} |" for path in sorted(folder.glob("*.yaml")))


# ---- strategies and starts


def strategies() -> Iterator[str]:
    """Every strategy, as its own file says it, and the ports of conf/port that use it."""
    yield from layer_maps()
    ports = [
        (name, values, path)
        for path in sorted((CONF / "port").glob("*.yaml"))
        for name, values in yaml.safe_load(path.read_text()).items()
    ]
    for name, strategy in STRATEGIES.items():
        module = importlib.import_module(f"portability.porting.strategies.{name}")
        told = str(module.__doc__).split("\n\n")[0].partition(": ")[2]
        kinds = [one for one in type(strategy).__mro__ if one.__module__ == module.__name__]
        own = vars(module).get(name) or next(iter(kinds), None)
        needs = ", ".join(sorted(need.replace("_", " ") for need in strategy.needs)) or "the module alone"
        files = ", ".join(f"`{port}`" for port, values, _ in ports if values["strategy"] == name)
        yield f"\n## {name}\n\n{sentence(told)}\n\nUses: {needs}. In `conf/port`: {files}."
        if own and inspect.getdoc(own):
            yield f"\n```text\n{inspect.getdoc(own)}\n```"


def layer_maps() -> Iterator[str]:
    """Every layer map."""
    yield "## Layer maps\n\n| layer map | what it does |\n|---|---|"
    for name, function in LAYER_MAPS.items():
        told = "as `average`, but layers are added up, not averaged" if name == "sum" else first(function)
        yield f"| `{name}` | {cell(told)} |"
    yield f"| `{MEASURED}` | pairs layers whose weights are still the same, else that do the same to texts |"
    yield "| `0,2,4+5` | the origin's layers behind each receiving one, by their numbers |"


def starts() -> Iterator[str]:
    """Every start of conf/init."""
    for path in sorted((CONF / "init").glob("*.yaml")):
        for name, values in yaml.safe_load(path.read_text()).items():
            kind = INIT_KINDS[values["kind"]]
            options = ", ".join(f"{key}: {value}" for key, value in values.get("options", {}).items())
            needs = ", ".join(sorted(need.replace("_", " ") for need in kind.needs)) or "nothing else"
            yield f"| `{name}` | {cell(remark(path))} | {values['kind']} | {cell(options)} | {needs} |"


# ---- published studies


def gallery() -> Iterator[str]:
    """Every published study with its declared contrasts and a chart."""
    for folder in sorted(path.parent for path in (ROOT / "results").glob("*/published")):
        place = f"../results/{folder.name}"
        title = (folder / "README.md").read_text().partition("\n")[0].lstrip("# ")
        charts = [folder / "plots" / f"{chart}.svg" for chart in ("headline", "primary")]
        chart = next(path for path in charts if path.exists())
        yield f"\n## {folder.name}\n\n{title}. [How it was made]({place}/README.md), its"
        yield f"[report]({place}/report/index.html).\n\n![{title}]({place}/plots/{chart.name})\n"
        (manifest,) = (json.loads(path.read_text()) for path in (folder / "manifests").iterdir())
        metric = metric_of(PREFIX + manifest.get("primary_metric", "accuracy")).label
        yield f"| contrast | | difference in {metric}, 95 % | verdict |\n|---|---|---|---|"
        for row in pd.read_csv(folder / "tables/primary.csv").to_dict("records"):
            size, low, high = (number(row[key], UNITS[row["unit"]]) for key in ("mean", "low", "high"))
            between = f" [{low}, {high}]" if pd.notna(row["low"]) else ""
            verdict = f"**{row['verdict']}**" if row["verdict"] != "open" else "open"
            words = cell(row["name"]), cell(row["words"]), f"{size} {row['unit']}{between}", verdict
            yield f"| {' | '.join(words)} |"


# ---- words


def cell(text: str) -> str:
    """Text in a cell of a table."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def sentence(text: str) -> str:
    """Words as a sentence."""
    words = " ".join(text.split()).rstrip(".")
    return f"{words[:1].upper()}{words[1:]}."


def first(function: Callable[..., object]) -> str:
    """The first sentence of a function's docstring."""
    return SENTENCE.split(" ".join(str(function.__doc__).split("\n\n")[0].split()), maxsplit=1)[0].rstrip(".")


def methods() -> Iterator[str]:
    """What methods and families can do, tried out."""
    from support.methods_table import lines

    logging.disable(logging.WARNING)
    yield from lines()


PAGES: dict[str, Callable[[], Iterator[str]]] = {
    "reference/commands.md": commands,
    "reference/configuration.md": configuration,
    "reference/names.md": names,
    "reference/strategies.md": strategies,
    "reference/starts.md": starts,
    "gallery.md": gallery,
    "methods.md": methods,
}
SLOW = "methods.md"


def page(name: str) -> str:
    """A page as it is now to be."""
    made = MADE.format(page=name) if name in HEADS else ""
    head = [HEADS[name]] if name in HEADS else []
    return "\n".join([*head, *PAGES[name]()]) + f"\n{made}"


if __name__ == "__main__":
    for asked in sys.argv[1:] or PAGES.keys() - {SLOW}:
        (DOCS / asked).write_text(page(asked))
