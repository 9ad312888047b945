"""Plans of a grid without hosts or data, and a ledger of such a plan."""


from portability.core.specs import (
    DataSpec,
    EvalSpec,
    HostShape,
    HostSpec,
    InitSpec,
    MethodSpec,
    PortSpec,
    TaskSpec,
    TrainSpec,
)
from portability.execution.scheduler import Ledger
from portability.planning.grid import Grid
from portability.planning.plan import plan
from portability.store import Result, Store


def host(name, family="t5", hidden=64):
    return HostSpec(name, f"/somewhere/{name}", None, f"print-{name}", HostShape(
        family, {"encoder": 2, "decoder": 2} if family == "t5" else {"encoder": 2}, hidden, 128, 4, 4, 16))


def data(name):
    return DataSpec(name, f"/somewhere/{name}", None, f"train-{name}", f"eval-{name}",
                    {"train": 1, "eval": 400})


def grid(**changes):
    methods = [MethodSpec(name, "adapters", name, {}, 1e-3) for name in ("adapter", "prefix", "lora",
                                                                         "compacter")]
    hosts = [host(name) for name in ("raw-base", "tuned-base", "raw-large")]
    one, two, large = hosts
    defaults = {
        "methods": methods, "pairs": [(one, two), (two, one), (one, large), (large, one)],
        "relations": {"same": data("films"), "different": data("meals")}, "data": data("films"),
        "inits": [InitSpec(name, name) for name in ("ported", "sampled", "scratch")],
        "ports": [PortSpec("pad", "pad", "stretch")], "seeds": [0, 1, 2, 3, 4], "budgets": [50, 100, 200],
        "origin_updates": 200, "task": TaskSpec("{text}", ("negative", "positive"), 64),
        "train": TrainSpec(16, 20, 0.0, (0.9, 0.999), 1e-8, 1.0, 0.2, 4, 1e-3, 200),
        "eval": EvalSpec("test", 0, 64), "precision": "fp32", "head": "shared",
    }
    axes = {**defaults, **changes}
    for name, origin in axes["relations"].items():
        axes["relations"] = {**axes["relations"], name: {axes["data"].name: origin}}
    return Grid(**{**axes, "data": [axes["data"]]})


def record(run_id, marks, seconds=2.0):
    return {"run_id": run_id, "run_info": {"created_at": "2026-01-01T00:00:00+00:00", "total_time": seconds},
            "train_info": {"metrics": [{"updates": mark} for mark in marks]}}


def ledger(tmp_path, seeds=8, **how):
    planned = plan(grid(seeds=list(range(seeds)), methods=grid().methods[:1], pairs=grid().pairs[:1],
                        budgets=[200], relations={"same": grid().data[0]}))
    return Ledger(planned, Store(tmp_path), 8, 1, **how)


def origin_job(book):
    return next(job for job in book.jobs() if job.runs[0].method and job.runs[0].host.name == "raw-base")


def finish(store, job):
    for run in job.runs:
        record = {"train_info": {"metrics": [{"updates": mark} for mark in job.marks[run.run_id]]}}
        store.commit(run.run_id, Result(record))
