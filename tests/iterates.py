"""Which iterate should a mark evaluate? ``python tests/iterates.py OUT.parquet +sweep=full [overrides]``.

Trains the scratch runs of a study (its natives among them) and scores, at each mark and every fourth update
of the twenty before it, the last iterate, means of the last 1/5, 1/10 and 1/20 of the updates, and
bias-corrected exponential averages. Prints accuracy against the last iterate's, and the range within a run
over those updates, in points (D-114).
"""

import sys

import numpy as np
import pandas as pd
import torch

from portability.core.seeds import stream_seed
from portability.execution.execute import WorkerContext
from portability.methods import attach
from portability.planning.plan import plan
from portability.run import compose
from portability.store import Store
from portability.tasks.registry import task_of
from portability.training import trainer as engine
from portability.training.stack import StackContext

SHARES, DECAYS = (0.2, 0.1, 0.05), (0.8, 0.9)
SPAN, STEP = 16, 4


def accuracies(scorer, trainer, theta, test, run) -> np.ndarray:
    """Accuracy of every member (K,) at parameters (K, P)."""
    found = scorer.predict(trainer.bank.views(theta) | trainer.frozen, test, run.eval.batch_size)
    return ((found.margin > 0) == (np.asarray(test.labels) == 1)).mean(1)


def follow(runs, context: WorkerContext, budgets) -> list[tuple]:
    """Train runs of one method, host and set as one stack; a row per seed, mark, update and iterate."""
    run, rows = runs[0], []
    host = context.host(run.host, run.precision)
    scorer, test, training = task_of(run.task).scorer(host), context.test(host, run), context.training(host,
                                                                                                       run)
    mounted = attach(host, run.method)
    bench = StackContext(mounted, scorer, training, test)
    seeds = [(stream_seed(*one.stream, "module"), stream_seed(one.seed, "head")) for one in runs]
    starts = [bench.parameters(mounted.init_parameters(module), scorer.fresh_head(head))
              for module, head in seeds]
    members = [engine.Member(start, one.seed, one.method.learning_rate)
               for start, one in zip(starts, runs, strict=True)]
    trainer, schedule = engine.Trainer(scorer, members, run.train), bench.schedule(run)
    start = trainer.bank.theta.detach().double()
    sums, averages = [torch.zeros_like(start)], {decay: start.clone() for decay in DECAYS}
    points = {update: mark for mark in budgets for update in range(mark - SPAN, mark + 1, STEP)}
    for update in range(1, max(budgets) + 1):
        trainer.update(update - 1, schedule, training)
        theta = trainer.bank.theta.detach().double()
        sums.append(sums[-1] + theta)
        for decay in DECAYS:
            averages[decay].lerp_(theta, 1 - decay)
        if update in points:
            found = {"last": theta}
            for share in SHARES:
                size = engine.window(update, share)
                found[f"tail {share}"] = (sums[update] - sums[update - size]) / size
            for decay in DECAYS:
                found[f"average {decay}"] = (averages[decay] - decay**update * start) / (1 - decay**update)
            for name, value in found.items():
                scores = accuracies(scorer, trainer, value.float(), test, run)
                rows += [(run.method.name, run.host.name, run.data.name, one.seed, points[update], update,
                          name, score)
                         for one, score in zip(runs, scores, strict=True)]
    mounted.detach()
    return rows


def main(out: str, *words: str) -> None:
    torch.set_num_threads(1)
    study = compose(list(words))
    groups: dict[tuple, list] = {}
    for run in plan(study.grid).runs.values():
        if run.init.kind == "scratch":
            groups.setdefault((run.method.name, run.host.name, run.data.name), []).append(run)
    context, rows = WorkerContext(Store("/nonexistent"), study.data), []
    for key, runs in groups.items():
        rows += follow(sorted(runs, key=lambda run: run.seed), context, study.grid.budgets)
        print(*key, flush=True)
    table = pd.DataFrame(rows, columns="method host data seed budget update iterate accuracy".split())
    table.to_parquet(out)
    show(table)


def show(table: pd.DataFrame) -> None:
    by = ["method", "budget", "iterate"]
    at = table[table["update"] == table["budget"]].groupby(by)["accuracy"].mean().unstack() * 100
    print(at.sub(at["last"], axis=0).assign(last=at["last"]).round(1).to_string())
    spread = table.groupby([*by, "host", "data", "seed"])["accuracy"].agg(np.ptp).groupby(
        by).mean().unstack() * 100
    print("range within a run over the last 20 updates, points")
    print(spread.round(1).to_string())


if __name__ == "__main__":
    if sys.argv[1:2] == ["show"]:
        show(pd.concat([pd.read_parquet(path) for path in sys.argv[2:]]))
    else:
        main(*sys.argv[1:])
