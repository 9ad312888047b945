"""What can be known before work: each kind of run is rehearsed once (rehearse.py), in a process of its own
where torch is not loaded yet, so that planning needs none; what was found to fit is kept by its content and
not tried again."""

import importlib.util
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from portability.core.errors import UserError
from portability.core.hashing import remember, remembered
from portability.core.specs import RunSpec, digest, too_long_words
from portability.core.versions import look_for, own_code
from portability.core.wording import counted
from portability.data.splits import study_data
from portability.execution.processes import ChildDied, in_child
from portability.execution.worker import Setup, Worker
from portability.hosts.devices import Place, count_gpus
from portability.planning.plan import Plan
from portability.store import Store

if TYPE_CHECKING:
    from portability.execution.execute import WorkerContext

log = logging.getLogger(__name__)
Question = tuple[RunSpec, RunSpec | None]  # a run, and the one that it starts from
Facts = dict[str, Any]  # what a rehearsal gives: see rehearse.Rehearsal.of


def preview(planned: Plan, todo: Mapping[str, RunSpec], setup: Setup,
            place: Place | None = None) -> dict[str, Facts]:
    """What each run will ask of its host; by run id, and nothing where torch is not installed.

    Args:
        place: of a worker; where it spreads hosts over devices, whether they and their methods go there.

    Raises:
        UserError: a run that could only fail: names the host, method or data set, and why.
    """
    if importlib.util.find_spec("torch") is None:
        log.warning("torch is not installed, so whether methods and texts fit the hosts was not looked at")
        return {}
    for method in {run.method.name: run.method for run in todo.values() if run.method}.values():
        look_for(method.library, f"method '{method.name}'")
    questions = {run_id: (run, planned.runs.get(str(run.origin))) for run_id, run in todo.items()}
    ours = own_code() if todo else ""
    if todo and place is not None and place.device_map:
        precisions = sorted({run.precision for run in todo.values()})
        ours = digest([ours, place.device, place.device_map, count_gpus(), precisions])
    names = {run_id: _name(ours, *question) for run_id, question in questions.items()}
    known = {name: remembered("preview", name) for name in set(names.values())}
    new = {name: questions[run_id] for run_id, name in names.items() if known[name] is None}
    if new:
        log.info("looking whether methods and texts fit the hosts: %s of run", counted(len(new), "new kind"))
    for name, facts in zip(new, _rehearsed(list(new.values()), setup, place), strict=True):
        remember("preview", name, facts)
        known[name] = facts
    return {run_id: known[name] for run_id, name in names.items()}


def _name(ours: str, run: RunSpec, origin: RunSpec | None) -> str:
    """Runs with one name fit or do not fit alike: seeds, updates and precision make no difference."""
    identity = run.identity() | {"seed": None, "train": run.train.updates > 0, "precision": None}
    return digest([ours, identity | {"origin": origin.host.fingerprint if origin else None}])


def _rehearsed(questions: Sequence[Question], setup: Setup, place: Place | None = None) -> Iterator[Facts]:
    """The facts of each question in order, up to the first that is refused."""
    if questions and "torch" in sys.modules:
        from portability.execution.execute import WorkerContext

        data = study_data(setup.sources, setup.overlap)
        yield from _rehearse(questions, setup, place, WorkerContext(Store(setup.store), data))
    elif questions:
        try:
            yield from in_child(_rehearse, questions, setup, place)
        except ChildDied as error:
            raise UserError(f"what fits the hosts could not be looked at: {error}") from error


def _rehearse(questions: Sequence[Question], setup: Setup, place: Place | None = None,
              context: "WorkerContext | None" = None) -> Iterator[Facts]:
    """The same, in a process of its own where no context is given."""
    from portability.execution.rehearse import Rehearsal

    rehearsal = Rehearsal(context or Worker(setup, Place("cpu", 1.0)).context, place)
    for question in questions:
        yield rehearsal.of(*question)


def example_lines(planned: Plan, found: Mapping[str, Facts]) -> list[str]:
    """What is asked, in the first test example of each receiving set: once for all hosts that read and answer
    it alike; and how many answers are too long for a host."""
    asked: dict[str, dict[str, dict[str, None]]] = {cell.data: {} for cell in planned.cells}
    cut: dict[str, None] = {}
    for run_id in dict.fromkeys(i for cell in planned.cells
                                for i in (cell.run_id, str(planned.runs[cell.run_id].origin))):
        if run_id in found and (run := planned.runs[run_id]).data.name in asked:
            data, host, facts = run.data.name, run.host.name, found[run_id]
            asked[data].setdefault(facts["example"], {})[host] = None
            if "train_dropped" in facts["too_long"]:
                cut[f"answers of {data} too long for {host}: {too_long_words(facts['too_long'])}"] = None
    return [*(f"example of {data} on {', '.join(hosts)}: {example}"
              for data, examples in asked.items() for example, hosts in examples.items()), *cut]
