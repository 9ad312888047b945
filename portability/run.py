"""The command: ``python -m portability.run [+sweep=NAME] [key=value ...]``.

Hydra composes the configuration, the planner expands it, and an engine carries out what the store lacks.
"""

import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import hydra
from omegaconf import DictConfig

from portability.choice import chosen
from portability.config import Study, to_study
from portability.errors import UserError, without_places
from portability.paths import bundled
from portability.plan import Plan, plan, updates_of
from portability.preview import example_lines, preview
from portability.progress import carry_out, to_do
from portability.status import status_lines
from portability.store import Store
from portability.tracking import TrackingSpec, resolve_mode
from portability.worker import Setup

log = logging.getLogger(__name__)
STOPPED = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
HOW = ("mode", "only", "shard", "retry", "yes", "similarity", "results", "study", "engine", "tracking", "hydra",
       "known_methods")  # keys that say how, where and under which name, and not what
CATALOGUES = ("host", "data", "init", "port")  # conf groups that are loaded whole; the axes name their entries


def prepare(arguments: Sequence[str]) -> list[str]:
    """Hydra's arguments for ours: every catalogue is loaded whole, so that the axes can name any of its entries.

    Example:
        >>> prepare(["study=mine"])[-1], any(a.startswith("+host=[") for a in prepare([]))
        ('study=mine', True)
    """
    folders = [bundled("conf"), *_config_dirs(arguments)]
    known = {group: ",".join(sorted({path.stem for folder in folders for path in (folder / group).glob("*.yaml")}))
             for group in (*CATALOGUES, "method")}
    ours = [*(f"+{group}=[{known[group]}]" for group in CATALOGUES), f"known_methods=[{known['method']}]"]
    first = next((i for i, a in enumerate(arguments) if "=" in a and not a.startswith("-")), len(arguments))
    return [*arguments[:first], *ours, *arguments[first:]]  # side by side with the user's: argparse wants them together


def _config_dirs(arguments: Sequence[str]) -> list[Path]:
    """Folders given with ``--config-dir`` (or -cd)."""
    found = []
    for place, argument in enumerate(arguments):
        name, _, value = argument.partition("=")
        if name in ("--config-dir", "-cd"):
            found.append(Path(value or (arguments[place + 1] if place + 1 < len(arguments) else ".")))
    return found


@hydra.main(config_path=str(bundled("conf")), config_name="config", version_base="1.3")
def _composed(cfg: DictConfig) -> None:
    try:
        sys.exit(command(to_study(cfg), asked_for(sys.argv[1:])))
    except UserError as error:
        _stop(str(error), 2)
    except OSError as error:
        _stop(f"{error}; finished runs are kept, repeat the command when it is put right", 2)
    except KeyboardInterrupt as stop:
        number = signal.Signals(stop.args[0] if stop.args else signal.SIGINT)
        _stop(f"{STOPPED[number]}; finished runs and checkpoints are kept, repeat the command to go on", 128 + number)


def compose(arguments: Sequence[str]) -> Study:
    """The study that these words on the command line ask for, without carrying it out."""
    with hydra.initialize_config_dir(str(bundled("conf")), version_base="1.3"):
        return to_study(hydra.compose("config", overrides=prepare(arguments)))


def _terminate(number: int, _: object) -> NoReturn:
    """SIGTERM ends the command as Ctrl-C does: what is in training is kept."""
    raise KeyboardInterrupt(number)


def _stop(message: str, code: int) -> NoReturn:
    sys.stderr.write(f"portability: {message}\n")
    sys.exit(code)


def asked_for(arguments: Sequence[str]) -> list[str]:
    """The overrides that say what a study is made of, for the manifest; folders stand as PATH.

    Example:
        >>> asked_for(["+host=[a,b]", "+sweep=full", "mode=plan", "grid.seeds=[0]", "host.a={path: /home/me/a}"])
        ['+sweep=full', 'grid.seeds=[0]', 'host.a=PATH']
    """
    ours = tuple(f"+{group}=[" for group in CATALOGUES)
    found = []
    for word in arguments:
        name, equals, value = word.partition("=")
        if not equals or word.startswith(("-", *ours)) or name.lstrip("+~").split(".")[0] in HOW:
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
    sweep = next((word.partition("=")[2] for word in asked if word.startswith("+sweep=")), None)
    tracking = TrackingSpec(resolve_mode(study.tracking.wandb), study.tracking.project, store.root.resolve(), sweep)
    failed = carry_out(planned, ids, store, study, tracking, asked)
    _say(status_lines(part, store))
    return 1 if failed else 0


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
        f"study {study.name}: {len(cells)} cells (zero-shot and bare hosts: {len(planned.cells) - len(cells)} more)",
        *(f"  {init}: {len(ids)} cells are {len(set(ids))} runs" for init, ids in behind.items()),
        f"runs: {len(planned.runs)} distinct, {done} done, {len(planned.runs) - done} to do",
        f"updates: {updates} planned, {alone} if every cell and its origin were trained for themselves"
        + (f" (saving {1 - updates / alone:.0%})" if alone > updates else ""),
        *(f"data {name}: " + ", ".join(f"{counts[key]} {key}" for key in ("train", "validation", "test", "dropped"))
          for name, counts in study.data.counts.items()),
    ]


def _say(lines: Sequence[str]) -> None:
    sys.stdout.write("\n".join(lines) + "\n")


def main() -> None:
    """Entry point."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    signal.signal(signal.SIGTERM, _terminate)
    sys.argv[1:] = prepare(sys.argv[1:])
    _composed()


if __name__ == "__main__":
    main()
