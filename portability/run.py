"""The command: ``python -m portability.run [+sweep=NAME] [key=value ...]``.

Hydra composes the configuration, the planner expands it, and an engine carries out what the store lacks.
"""

import logging
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from portability.config.compose import composed, options, shown
from portability.config.study import to_study
from portability.core.errors import UserError, without_places
from portability.core.measures import MEASURES, name_of, own
from portability.core.specs import METRICS
from portability.core.wording import counted
from portability.execution.ledger import to_do
from portability.execution.preview import example_lines, preview
from portability.execution.scheduler import carry_out
from portability.execution.status import status_lines
from portability.execution.worker import Setup
from portability.planning.plan import Plan, plan, updates_of
from portability.planning.selection import chosen
from portability.planning.study import Study
from portability.store import Store
from portability.store.records import measured
from portability.tracking.runs import TrackingSpec, resolve_mode

log = logging.getLogger(__name__)
STOPPED = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
HOW = ("mode", "only", "shard", "retry", "yes", "similarity", "results", "study", "engine", "tracking",
       "known_methods")  # keys that say how, where and under which name, and not what


def compose(arguments: Sequence[str]) -> Study:
    """The study that these words on the command line ask for, without carrying it out."""
    return to_study(composed(options(arguments)))


def _terminate(number: int, _: object) -> NoReturn:
    """SIGTERM ends the command as Ctrl-C does: what is in training is kept."""
    raise KeyboardInterrupt(number)


def _stop(message: str, code: int) -> NoReturn:
    sys.stderr.write(f"portability: {message}\n")
    sys.exit(code)


def asked_for(arguments: Sequence[str]) -> list[str]:
    """The overrides that say what a study is made of, for the manifest; folders stand as PATH.

    Example:
        >>> asked_for(["+sweep=full", "mode=plan", "grid.seeds=[0]", "host.a={path: /home/me/a}"])
        ['+sweep=full', 'grid.seeds=[0]', 'host.a=PATH']
    """
    found = []
    for word in arguments:
        name, equals, value = word.partition("=")
        if not equals or name.lstrip("+~").split(".")[0] in HOW:
            continue
        place = name.endswith((".path", "_root")) or any(mark in value for mark in ("/home", "~/", "../"))
        found.append(f"{name}=PATH" if place or without_places(value) != value or Path(value).is_absolute() else word)
    return found


def command(study: Study, asked: Sequence[str] = ()) -> int:
    """Plan, and then print, or show the state of, or carry out the plan. Gives back the exit code.

    Args:
        asked: the overrides of `asked_for`, for the manifest.
    """
    planned = plan(study.grid)
    store = Store(study.results / study.name)
    ids = chosen(planned, study.part)
    part = planned if len(ids) == len(planned.runs) else planned.part(ids)
    if study.mode == "plan":
        untracked = TrackingSpec("disabled", study.tracking.project, store.root)
        found = preview(part, to_do(part, store, part.runs)[0], Setup(store.root, study.sources, study.overlap, untracked))
        _say([*plan_lines(study, part, store), *example_lines(part, found)])
        return 0
    if study.mode == "status":
        _say(status_lines(part, store))
        return 0
    _try_metrics(study)
    for line in lacking(study, part, store):
        log.info(line)
    sweep = next((word.partition("=")[2] for word in asked if word.startswith("+sweep=")), None)
    tracking = TrackingSpec(resolve_mode(study.tracking.wandb), study.tracking.project, store.root.resolve(), sweep)
    failed = carry_out(planned, ids, store, study, tracking, asked)
    _say([*status_lines(part, store), f"verdict and report: python -m portability.analyze {shlex.quote(str(store.root))}"])
    return 1 if failed else 0


def _try_metrics(study: Study) -> None:
    """Refuse a metric of the user's own that does not work, before any work is done."""
    if files := own(study.grid.eval.metrics):
        from portability.tasks.metrics import own_metric  # with evaluate, which takes seconds

        for path in files:
            own_metric(path)


def plan_lines(study: Study, planned: Plan, store: Store) -> list[str]:
    """What would be done: cells, the distinct runs behind them, what sharing saves, and what is done already."""
    cells = [cell for cell in planned.cells if cell.budget > 0]
    behind: dict[str, list[str]] = {}
    for cell in cells:
        behind.setdefault(cell.init, []).append(cell.run_id)
    marks = store.marks()
    done = sum(planned.marks[run_id] <= marks.get(run_id, frozenset()) for run_id in planned.runs)
    updates, alone = updates_of(planned)
    return [
        f"study {study.name}: {counted(len(cells), 'cell')} (zero-shot and bare hosts: {len(planned.cells) - len(cells)} more)",
        *(f"  {init}: {counted(len(ids), 'cell')} of {counted(len(set(ids)), 'run')}" for init, ids in behind.items()),
        f"runs: {len(planned.runs)} distinct, {done} done, {len(planned.runs) - done} to do",
        f"updates: {updates} planned, {alone} if every cell and its origin were trained for themselves"
        + (f" (saving {1 - updates / alone:.0%})" if alone > updates else ""),
        *(f"data {name}: " + ", ".join(f"{counts[key]} {key}" for key in ("train", "validation", "test", "dropped"))
          for name, counts in study.data.counts.items()),
        *lacking(study, planned, store),
    ]


def lacking(study: Study, planned: Plan, store: Store) -> list[str]:
    """Which of the metrics that are asked for done runs were stored without: what is done is not done again for them."""
    asked = study.grid.eval.metrics
    if asked == METRICS:
        return []
    names = [measured(record) for run_id in store.marks() if run_id in planned.runs and (record := store.read(run_id))]
    names = [held for held in names if "eval_positive_share" in held]  # of texts with labels
    found = []
    for metric in asked:
        name = f"eval_{name_of(metric)}"
        hint = "it is computed for new runs only; name a new study (study=NAME) to have it for all"
        others: tuple[str, ...] = (f"{name}_",)  # one of the user's own may give several numbers
        if metric in MEASURES:
            hint, others = f"`python -m portability.analyze --metric {name}` computes it from their predictions", ()
        if count := sum(not any(key == name or key.startswith(others) for key in held) for held in names):
            found.append(f"metric {name_of(metric)}: {counted(count, 'done run')} stored without it; {hint}")
    return found


def _say(lines: Sequence[str]) -> None:
    sys.stdout.write("\n".join(lines) + "\n")


def main() -> None:
    """Entry point."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    signal.signal(signal.SIGTERM, _terminate)
    try:
        asked = options(sys.argv[1:])
        if text := shown(asked):
            _say([text])
            sys.exit(0)
        sys.exit(command(to_study(composed(asked)), asked_for(asked.words)))
    except UserError as error:
        _stop(str(error), 2)
    except OSError as error:
        _stop(f"{error}; finished runs are kept, repeat the command when it is put right", 2)
    except KeyboardInterrupt as stop:
        number = signal.Signals(stop.args[0] if stop.args else signal.SIGINT)
        _stop(f"{STOPPED[number]}; finished runs and checkpoints are kept, repeat the command to go on", 128 + number)


if __name__ == "__main__":
    main()
