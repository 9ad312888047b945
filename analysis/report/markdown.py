"""A study's report in Markdown: the verdict, every question with its charts and tables, problems, and
provenance."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from portability.analysis.context import StudyContext
from portability.analysis.figures.svg import Chart
from portability.analysis.load import Study
from portability.analysis.report.findings import Section, caveats, headline_numbers, verdict_words
from portability.analysis.stats.pairing import STATUSES
from portability.analysis.tables.render import markdown
from portability.core.specs import BARE


def counts(study: Study) -> list[tuple[str, int, str]]:
    """Cells as the grid counts them, trained ones, those before any update, and those of bare hosts: the
    kind, how many were asked for, and what became of them."""
    cells = study.cells
    bare, start = cells["init"] == BARE, cells["budget"] == 0
    kinds = {"cells of the grid": ~bare & ~start, "before any update": ~bare & start, "of bare hosts": bare}
    tallies = {kind: cells.loc[own, "status"].value_counts() for kind, own in kinds.items() if own.any()}
    return [(kind, int(tally.sum()), ", ".join(f"{tally[name]:,} {name}" for name in STATUSES
                                               if tally.get(name, 0)))
            for kind, tally in tallies.items()]


def count_words(study: Study) -> str:
    """The counts in one line."""
    return "; ".join(f"{asked:,} {kind} ({became})" for kind, asked, became in counts(study))


def report(context: StudyContext, parts: Sequence[Section], chart: Sequence[Chart]) -> str:
    """The whole report: the verdict, its chart and numbers, every question with its charts and tables,
    problems, provenance."""
    study = context.study
    lines = [f"# Study {study.name}: {context.metric.label}", "", f"**{_plain(verdict_words(context))}**", ""]
    lines += map(_picture, chart)
    lines += [f"- {_plain(f'{row.words}: {row.size} {row.between}'.rstrip())} ({row.verdict})"
              for row in headline_numbers(context)]
    lines += ["", f"{count_words(study)}.", "", "Read with care:", "",
              *(f"- {_plain(line)}" for line in caveats(context)), ""]
    problems = [f"- {_plain(str(problem))}" for problem in study.problems] or ["None."]
    for part in parts:
        lines += [f"## {part.title}", "", *(f"- {_plain(line)}" for line in part.said), "",
                  *map(_picture, part.charts)]
        lines += [markdown(table) for table in part.tables]
    lines += ["## What is wrong with records and runs?", "", *problems, ""]
    lines += ["## Where do the numbers come from?", "",
              *(f"- {name}: {value}" for name, value in provenance(study)), ""]
    return "\n".join(lines)


def _picture(chart: Chart) -> str:
    return f"![{chart.title}](plots/{chart.name}.svg)\n\n{chart.note}\n"


def _plain(text: str) -> str:
    """One line of Markdown that shows the text as it is."""
    return " ".join(text.split()).replace("<", "\\<").replace("*", "\\*")


def provenance(study: Study) -> list[tuple[str, str]]:
    """Commits, packages, machines and time behind the records that are used; what differs between records is
    listed with the number of runs."""
    infos, metas = ([record[part] for record in study.records] for part in ("run_info", "meta_info"))
    if not infos:
        return [("runs used", "none")]
    dates = sorted(str(info["created_at"]) for info in infos if info.get("created_at"))
    dirty = [info.get("worktree_dirty") for info in infos]
    facts = [("runs used", f"{len(infos)}, {study.hours:.2f} h of running time together"),
             ("written", f"{dates[0]} to {dates[-1]}" if dates else "not recorded"),
             ("git commit", _tally([info.get("git_commit") for info in infos])),
             ("runs from a changed working tree", str(sum(map(bool, dirty))))]
    for item in study.facts:
        plain = {key: value for key, value in item.items() if isinstance(value, str | int | float)}
        name = str(plain.pop("sweep", None) or "sweep")
        facts.append((name, ", ".join(f"{key} {value}" for key, value in plain.items())))
    for part in ("package_info", "system_info"):
        values = [meta.get(part) or {} for meta in metas]
        names = sorted({name for value in values for name in value})
        facts += [(name, _tally([value.get(name) for value in values])) for name in names]
    return facts


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
