"""`pytest --result-table FILE`: what became of the tests of each file, as a Markdown table."""

import platform
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import pytest

OUTCOMES = ("passed", "failed", "skipped")
STARTED = time.monotonic()
VERSIONS = ("torch", "transformers", "adapters", "peft", "numpy", "scipy")


def counts(stats: dict[str, list]) -> dict[str, Counter]:
    """Numbers of tests by file and outcome, and their seconds; an error before or after a test is a failure.

    Args:
        stats: reports of pytest by outcome.
    """
    found: dict[str, Counter] = {}
    for outcome, reports in stats.items():
        kind = {"error": "failed", "xfailed": "skipped", "xpassed": "failed"}.get(outcome, outcome)
        for report in reports:
            # "": a fixture made or put away
            if isinstance(report, pytest.TestReport) and kind in ("", *OUTCOMES):
                row = found.setdefault(report.nodeid.partition("::")[0], Counter())
                row["seconds"] += report.duration
                row[kind] += 1
    return found


def text(found: dict[str, Counter]) -> str:
    """The table, a sum below it, and versions of what was tested with."""
    total = sum(found.values(), Counter())
    rows = [f"| {name} | {' | '.join(str(row[kind]) for kind in OUTCOMES)} | {row['seconds'] / 60:.1f} |"
            for name, row in [*sorted(found.items()), ("all", total)]]
    libraries = ", ".join(f"{name} {version(name)}" for name in VERSIONS)
    return "\n".join([
        "# Full products of the tests", "",
        f"`make test-full`, {time.strftime('%Y-%m-%d')}: {sum(total[kind] for kind in OUTCOMES)} tests in "
        f"{(time.monotonic() - STARTED) / 60:.1f} minutes. Python {platform.python_version()}, {libraries}; "
        f"{platform.machine()}.", "",
        f"| file | {' | '.join(OUTCOMES)} | minutes of one process |", "|---|--:|--:|--:|--:|", *rows, ""])


def write(path: Path, stats: dict[str, list]) -> None:
    """Write the table of a finished session."""
    path.write_text(text(counts(stats)))
