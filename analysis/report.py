"""A study's report in Markdown: what was found, every table and picture, what is wrong, and where the numbers come from."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from analysis.load import STATUSES, Problem, Study
from analysis.recipe import Table
from analysis.render import markdown


def counts(study: Study) -> str:
    """How many cells were asked for, and what became of them, in one line.

    Every status but "done" is left out where it has no cell.
    """
    tally = study.cells["status"].value_counts()
    words = [f"{tally.get(name, 0):,} {name}" for name in STATUSES if name == "done" or tally.get(name, 0)]
    return f"{len(study.cells):,} cells asked for: {', '.join(words)}"


def report(study: Study, said: Mapping[str, Sequence[str]], caveats: Sequence[str], tables: list[Table],
           pictures: list[str]) -> str:
    """The whole report.

    Args:
        said: findings (findings.findings): heading to sentences.
        pictures: paths of the PNG files, relative to the report.
    """
    parts = [f"# Study {study.name}", "", f"{counts(study)}.", "", "## Findings", ""]
    for heading, sentences in {**said, "What limits them": caveats}.items():
        parts += [f"### {heading}", "", *(f"- {_plain(sentence)}" for sentence in sentences), ""]
    parts += ["## Tables", ""]
    parts += [markdown(table) for table in tables]
    parts += ["## Plots", "", *(f"![{_stem(path)}]({path})\n" for path in pictures)]
    parts += ["## Problems", "", *_problems(study.problems), "", "## Provenance", "", *provenance(study), ""]
    return "\n".join(parts)


def _stem(path: str) -> str:
    return path.rsplit("/", 1)[-1].removesuffix(".png").replace("_", " ")


def _problems(problems: list[Problem]) -> list[str]:
    return [f"- {_plain(str(problem))}" for problem in problems] or ["None."]


def _plain(text: str) -> str:
    """One line of Markdown that shows the text as it is."""
    return " ".join(text.split()).replace("<", "\\<").replace("*", "\\*")


def provenance(study: Study) -> list[str]:
    """Commits, packages, machines and time behind the records that are used, as a Markdown list; what differs between
    records is listed with the number of runs."""
    records = study.records
    if not records:
        return ["No record is used."]
    infos = [record["run_info"] for record in records]
    dates = sorted(str(info["created_at"]) for info in infos if info.get("created_at"))
    dirty = sum(bool(info.get("worktree_dirty")) for info in infos)
    hours = sum(float(info.get("total_time") or 0) for info in infos) / 3600
    lines = [
        f"- runs used: {len(records)}, {hours:.2f} h of running time together",
        f"- written: {dates[0]} to {dates[-1]}" if dates else "- written: not recorded",
        f"- git commit: {_tally([info.get('git_commit') for info in infos])}",
        f"- runs from a changed working tree: {dirty}",
    ]
    lines += [f"- {item.get('sweep') or 'sweep'}: " + _facts(item) for item in study.facts]
    for part in ("package_info", "system_info"):
        values = [record["meta_info"].get(part) or {} for record in records]
        names = sorted({name for value in values for name in value})
        lines += [f"- {name}: {_tally([value.get(name) for value in values])}" for name in names]
    return lines


def _facts(item: dict[str, Any]) -> str:
    """The plain facts of one command."""
    plain = {key: value for key, value in item.items() if isinstance(value, str | int | float) and key != "sweep"}
    return ", ".join(f"{key} {value}" for key, value in plain.items())


def _tally(values: list[Any]) -> str:
    """One value, or every value with the number of runs it stands for.

    Example:
        >>> _tally(["a", "a", "b"])
        'a (2 runs), b (1 run)'
    """
    count = Counter("not recorded" if value is None else str(value) for value in values)
    if len(count) == 1:
        return next(iter(count))
    return ", ".join(f"{value} ({n} run{'s' if n > 1 else ''})" for value, n in count.most_common())
