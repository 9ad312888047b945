"""What a grid costs without this project: one warm process, and every cell trained for itself, its origin too."""

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from portability.bench.line import Line
from portability.bench.plain import PlainLoop
from portability.bench.workload import Workload
from portability.core.seeds import stream_seed
from portability.core.specs import FROM_ORIGIN, Cell, RunSpec
from portability.data.sampling import pad
from portability.data.splits import Encoded
from portability.execution.worker_context import Desk
from portability.hosts.devices import places
from portability.inits.base import INITS, Given
from portability.methods import attach
from portability.methods.module import ModuleState
from portability.planning.plan import Plan, plan
from portability.planning.study import Study
from portability.run import compose
from portability.store import Store
from portability.tasks.classification import Scorer
from portability.training.stack import Bench
from portability.training.trainer import window

TRIED = 12  # updates on which one thread is compared with all


class Naive:
    """A plain loop over cells, for hosts that score label words; hosts and token ids are loaded once."""

    def __init__(self, study: Study, planned: Plan, device: str):
        self.planned, self.desk = planned, Desk(Store(study.results), study.data, place=places(device, 1)[0])

    def bench(self, run: RunSpec) -> Bench:
        """The run's method on its host."""
        assert run.method is not None
        host = self.desk.host(run)
        test = self.desk.encoded(host, run, run.eval.split, run.eval.limit)
        return Bench(attach(host, run.method), Scorer(host, run.task), self.desk.encoded(host, run, "train", 0), test)

    def cell(self, cell: Cell) -> float:
        """Train one cell, after its origin where it has one, and score it: accuracy."""
        run = self.planned.runs[cell.run_id]
        origin = None
        if run.init.kind in FROM_ORIGIN:
            source = self.planned.runs[str(run.origin)]
            origin, _ = self.train(source, source.train.updates, None, score=False)
        module, found = self.train(run, cell.mark, origin, score=True)
        return found

    def train(self, run: RunSpec, updates: int, origin: ModuleState | None, score: bool) -> tuple[ModuleState, float]:
        """Train one module for so many updates; the mean of its last iterates, and that one's accuracy (0: not asked for)."""
        bench = self.bench(run)
        try:
            start = bench.parameters(self._start(run, bench, origin), {})
            loop = PlainLoop(bench.scorer, start, replace(run.train, updates=updates), run.method.learning_rate)
            averages = [value.detach().clone() for value in loop.parameters]
            schedule = bench.schedule(run)
            for step in range(updates):
                picks = schedule.examples(step, int(run.seed or 0))
                target = torch.tensor([bench.scorer.label_ids[bench.training.labels[i]] for i in picks])
                batch = (*pad(bench.training, picks, schedule.length(step)), target)
                loop.update(*(part.to(bench.scorer.device) for part in batch))
                place = step + 1 - updates + window(updates, run.train.tail)
                if place > 0:
                    torch._foreach_lerp_(averages, [value.detach() for value in loop.parameters], 1 / place)
            with torch.no_grad():
                for value, average in zip(loop.parameters, averages, strict=True):
                    value.copy_(average)
            named = dict(zip(start, averages, strict=True))
            module = bench.attached.to_state({name.removeprefix("model."): value.cpu() for name, value in named.items()})
            return module, accuracy(bench.scorer, bench.test, run.eval.batch_size) if score else 0.0
        finally:
            bench.attached.detach()

    def _start(self, run: RunSpec, bench: Bench, origin: ModuleState | None) -> ModuleState:
        fresh = bench.attached.init_parameters(stream_seed(*run.stream, "module"))
        source = self.planned.runs[str(run.origin)].host if run.origin else None
        given = Given(fresh=fresh, receiving=run.host, seed=int(run.seed or 0), stream=run.stream, module=origin,
                      origin=source, port=run.port)
        return INITS[run.init.kind](given, run.init.options)[0]


@torch.no_grad()
def accuracy(scorer: Scorer, test: Encoded, batch_size: int) -> float:
    """Share of examples whose label word is the likelier one, scored at one step, in batches of like length."""
    order = test.lengths.argsort(kind="stable")
    negative, positive = scorer.label_ids
    right = 0
    for first in range(0, len(order), batch_size):
        picks = order[first : first + batch_size]
        batch = pad(test, picks, int(test.lengths[picks].max()))
        logits: Tensor = scorer(*(part.to(scorer.device) for part in batch)).cpu()
        right += int(((logits[:, positive] > logits[:, negative]) == torch.from_numpy(test.labels[picks] == 1)).sum())
    return right / len(test)


def play(work: Workload, line: Line) -> None:
    """Go through the cells of the first seeds of a grid, and tell what they took and what they reached."""
    study = compose(work.overrides)
    planned = plan(study.grid)
    seeds = list(study.grid.seeds)[: work.seeds]
    naive, began = Naive(study, planned, work.device), time.perf_counter()
    for run in planned.runs.values():
        naive.desk.host(run)
    threads = _threads(naive, next(run for run in planned.runs.values() if run.method is not None))
    loaded, found = time.perf_counter(), {}
    for cell in planned.cells:
        if cell.budget > 0 and cell.seed in seeds:
            found[f"{cell.run_id}@{cell.mark}"] = naive.cell(cell)
    spent = time.perf_counter() - loaded
    line.answer(seconds=spent, setup_s=loaded - began, cells=len(found), threads=threads, accuracy=found,
                share_of_seeds=len(seeds) / len(study.grid.seeds))


def _threads(naive: Naive, run: RunSpec) -> int:
    """One thread or all, whichever is faster here."""
    taken: Mapping[int, float] = {count: _timed(naive, run, count) for count in (1, torch.get_num_threads())}
    best = min(taken, key=lambda count: taken[count])
    torch.set_num_threads(best)
    return best


def _timed(naive: Naive, run: RunSpec, threads: int) -> float:
    torch.set_num_threads(threads)
    began: Any = time.perf_counter()
    naive.train(run.with_updates(TRIED), TRIED, None, score=False)
    return time.perf_counter() - began
