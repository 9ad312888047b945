"""The command `portability run [STUDY.yaml] [+sweep=NAME] [key=value ...]`.

Hydra composes the configuration, the planner expands it, and an engine carries out what the store lacks.
"""

import logging
import shlex
import signal
import sys
from argparse import Namespace
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import NoReturn

from portability.config.compose import composed, options, shown, spelled
from portability.config.study import to_study
from portability.core.command_line import carry_out
from portability.core.errors import redact_paths
from portability.core.measures import own
from portability.execution.needs import need_lines
from portability.execution.preview import example_lines, preview
from portability.execution.scheduler import run_plan, to_do
from portability.execution.status import status_lines
from portability.execution.worker import Setup
from portability.options import parser
from portability.planning.plan import plan
from portability.planning.selection import select_runs
from portability.planning.study import Study
from portability.planning.summary import lacking, plan_lines
from portability.store import Store
from portability.tracking.runs import TrackingSpec, resolve_mode

log = logging.getLogger(__name__)
HOW = ("mode", "only", "shard", "retry", "yes", "similarity", "results", "study", "engine", "tracking",
       "known_methods", "eval.batch_size")  # keys that say how, where and under which name, and not what


def compose(arguments: Sequence[str]) -> Study:
    """The study that these words on the command line ask for, without carrying it out."""
    return to_study(composed(options(arguments)))


def _terminate(number: int, _: object) -> NoReturn:
    """SIGTERM ends the command as Ctrl-C does: what is in training is kept."""
    raise KeyboardInterrupt(number)


def asked_for(arguments: Sequence[str]) -> list[str]:
    """The overrides that say what a study is made of, for the manifest; folders stand as PATH.

    Example:
        >>> asked_for(["+sweep=full", "eval.batch_size=8", "grid.seeds=[0]", "host.a={path: /home/me/a}"])
        ['+sweep=full', 'grid.seeds=[0]', 'host.a=PATH']
    """
    found = []
    for word in arguments:
        name, equals, value = word.partition("=")
        key = name.lstrip("+~")
        if equals and not {key, key.split(".")[0]} & {*HOW}:
            place = name.endswith((".path", "_root", ".from", "origin.module"))
            place = place or any(mark in value for mark in ("/home", "~/", "../"))
            place = place or redact_paths(value) != value or Path(value).is_absolute()
            found.append(f"{name}=PATH" if place else word)
    return found


def command(study: Study, asked: Sequence[str] = ()) -> int:
    """Plan, and then print, or show the state of, or carry out the plan. Gives back the exit code.

    Args:
        asked: the overrides of `asked_for`, for the manifest.
    """
    planned = plan(study.grid)
    store = Store(study.results / study.name)
    ids = select_runs(planned, study.part)
    part = planned if len(ids) == len(planned.runs) else planned.part(ids)
    if study.mode == "plan":
        untracked = TrackingSpec("disabled", study.tracking.project, store.root)
        setup = Setup(store.root, study.sources, study.overlap, untracked)
        todo = to_do(part, store, part.runs)[0]
        found = preview(part, todo, setup)
        _say([*plan_lines(study, part, store), *example_lines(part, found), *need_lines(found, todo)])
        return 0
    if study.mode == "status":
        _say(status_lines(part, store))
        return 0
    if files := own(study.grid.eval.metrics):  # one that does not work is refused before work
        from portability.tasks.metrics import own_metric  # with evaluate, which takes seconds

        for path, count in product(files, sorted(study.grid.label_counts)):
            own_metric(path, count)
    for line in (*lacking(study, part, store), *study.warnings):
        log.info(line)
    sweep = next((word.partition("=")[2] for word in asked if word.startswith("+sweep=")), None)
    mode = resolve_mode(study.tracking.wandb)
    tracking = TrackingSpec(mode, study.tracking.project, store.root.resolve(), sweep)
    failed = run_plan(planned, ids, store, study, tracking, asked)
    report = f"portability analyze {shlex.quote(str(store.root))}"
    _say([*status_lines(part, store), f"verdict and report: {report}"])
    return 1 if failed else 0


def _say(lines: Sequence[str]) -> None:
    sys.stdout.write("\n".join(lines) + "\n")


def work(asked: Namespace) -> int:
    """Show, plan or carry out what the words ask for. Gives back the exit code."""
    signal.signal(signal.SIGTERM, _terminate)
    asked = spelled(asked)
    if text := shown(asked):
        _say([text])
        return 0
    cfg = composed(asked)
    study, words = to_study(cfg), asked.words
    if asked.limit:
        words += [f"grid.train_examples={cfg.grid.train_examples}", f"eval.limit={cfg.eval.limit}"]
    return command(study, asked_for(words))


def main() -> None:
    """Entry point."""
    sys.exit(carry_out(parser("run"), work))


if __name__ == "__main__":
    main()
