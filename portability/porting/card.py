"""The model card (README.md) of a ported adapter."""

import re
from pathlib import Path
from typing import Any

import yaml

from portability.hosts.resolve import public_name
from portability.porting.adapter import PortedAdapter

TAGS = ["portability", "ported"]


def card(done: PortedAdapter, found: dict[str, Any], command: str, base: str, merged: bool) -> str:
    """Markdown with the front matter that the hub reads: the receiving host is the base model.

    Args:
        found: what the command reports: its "scores", where some were measured.
        base: the receiving host's name, or its folder, of which no path is told.
    """
    report, base = found["report"], public_name(base)
    trained_on = public_name(done.adapter.base) if done.adapter.base else done.origin.name
    front: dict[str, Any] = {"base_model": base, "tags": TAGS}
    if not merged:
        front["library_name"] = done.spec.library
    if licence := licence_of(done.adapter.folder):
        front["license"] = licence
    lines = [
        f"# {done.adapter.called} on {done.receiving.name}", "",
        f"A {done.adapter.spec.config} trained on {trained_on}, ported to {base} "
        f"without training, by the strategy `{report['strategy']}`"
        + (", and merged into its weights." if merged else "."), "",
        f"- carried of its numbers: {report['carried_entries_fraction']:.1%}",
        f"- carried of its squared norm: {report['carried_norm_fraction']:.1%}",
        f"- filled of the receiving module: {report['filled_fraction']:.1%}",
        f"- tensors: {', '.join(f'{count} {action}' for action, count in report['actions'].items())}",
        *(f"- {action}: {'; '.join(places)}" for action, places in report.get("left", {}).items()),
        f"- licence of the origin's adapter: {licence_of(done.adapter.folder) or 'not stated'}", "",
        *_scores(found.get("scores")), f"Made by `{command}`.", "",
    ]
    return f"---\n{yaml.safe_dump(front, sort_keys=True)}---\n\n" + "\n".join(lines)


def _scores(scores: dict[str, Any] | None) -> list[str]:
    if not scores:
        return []
    rows = [f"| {arm} | {value['accuracy']:.1%} | {value['low']:.1%} to {value['high']:.1%} |"
            for arm, value in scores["arms"].items()]
    return [f"Accuracy on {scores['examples']} examples, with 95 % intervals:", "",
            "| host | accuracy | interval |", "|---|---|---|", *rows, ""]


def licence_of(folder: Path) -> str | None:
    """The licence that an adapter's own card states."""
    path = folder / "README.md"
    if not path.is_file() or path.stat().st_size > 1 << 20:
        return None
    front = re.match(r"---\s*\n(.*?)\n---", path.read_text(errors="replace"), re.DOTALL)
    found = re.search(r"^license:\s*([\w.-]+)\s*$", front[1], re.MULTILINE) if front else None
    return found[1] if found else None
