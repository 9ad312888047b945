"""One command that compares our engine with what a user would do instead, and writes a table and JSON."""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from portability.bench import grid, machine, memory, rivals, scale, shapes, tables, workload
from portability.bench.children import ONE_THREAD, ChildFailed, once
from portability.bench.workload import Workload
from portability.hosts.devices import cores

MEMORY_STACKS = (1, 4, 16)
Report = dict[str, Any]


def say(text: str) -> None:
    """A line for the reader, at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m portability.bench", description=__doc__,
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--shape", choices=sorted(shapes.SHAPES), default="t5-128x4", help="host with random weights")
    add("--method", choices=workload.methods(), default="lora", help="a file in conf/method")
    add("--members", type=_numbers, default=(1, 4, 16, 32), help="sizes of our stacks, for example 1,4,16")
    add("--batch-size", type=int, default=workload.default_batch(), help="examples of one module's update")
    add("--rounds", type=int, default=5, help="measured rounds; a warm-up comes first and is dropped")
    add("--segment", type=int, default=10, help="updates of each contender in a round; 5 x 10 is "
        "one window of Trainer's sorting, from its longest batch to its shortest")
    add("--batchsplit", type=int, default=4, help="modules of the BatchSplit rival")
    add("--side-by-side", type=int, default=0, help="processes of the xN rival; 0: the cores, on a GPU 4")
    add("--processes", type=int, default=0, help="processes of ours and of BatchSplit; 0: the cores, on a GPU 1")
    add("--threads", type=int, default=0, help="threads of the two one-process Trainers; 0: torch's default, all cores")
    add("--precision", choices=("fp32", "bf16"), default="fp32", help="bf16: autocast, in all but the default Trainer")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: cuda where there is one")
    add("--train-batches", type=int, default=200, help="batches in the training set")
    add("--test-examples", type=int, default=320, help="sentences scored by an evaluation")
    add("--grid", nargs="+", default=list(grid.SMALL), metavar="WORD", help="the grid part's study, in the words of "
        "portability.run")
    add("--grid-seeds", type=int, default=1, help="seeds of it that the naive loop goes through, scaled to all")
    add("--only", choices=sorted(PARTS), action="append", help="one part (may be repeated); all of them by default")
    add("--out", type=Path, default=Path("bench.json"), help="where the JSON goes")
    return parser.parse_args(given)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


# ---- parts: each gives its findings, and says them


def _rivals(work: Workload, options: argparse.Namespace, sizes: Report) -> Report:
    gpu = work.device == "cuda"
    race = rivals.Race(
        rounds=options.rounds, segment=options.segment, members=options.members, batchsplit=options.batchsplit,
        processes=options.processes or (1 if gpu else cores()), side_by_side=options.side_by_side or (4 if gpu else cores()),
        threads=options.threads,
    )
    mean_tokens = sizes["train_tokens"] * work.batch_size
    rows = rivals.summary(rivals.run(work, race, say), mean_tokens)
    return {"race": asdict(race), "mean_tokens_per_batch": mean_tokens, "rows": rows, "full_grid": rivals.full_grid(rows),
            "foreign_cores": None if gpu else rivals.disturbance(rows)}  # Trainer's loading processes would count as foreign


def _equality(work: Workload, options: argparse.Namespace, sizes: Report) -> Report:
    return once(replace(work, kind="equality"), ONE_THREAD, "equality")


def _floor(work: Workload, options: argparse.Namespace, sizes: Report) -> Report:
    return once(replace(work, kind="floor", stacks=options.members), ONE_THREAD, "floor")


def _memory(work: Workload, options: argparse.Namespace, sizes: Report) -> Report:
    return memory.table(work, [*MEMORY_STACKS, *(size for size in options.members if size > max(MEMORY_STACKS))])


def _grid(work: Workload, options: argparse.Namespace, sizes: Report) -> Report:
    return grid.measure(work, options.grid, options.grid_seeds)


def _scale(work: Workload, options: argparse.Namespace, sizes: Report) -> Report:
    return scale.measure(work)


Part = tuple[Callable[[Workload, argparse.Namespace, Report], Report], Callable[[Report], str]]
PARTS: dict[str, Part] = {
    "equality": (_equality, tables.equality), "rivals": (_rivals, tables.rivals), "floor": (_floor, tables.floor),
    "memory": (_memory, tables.memory), "grid": (_grid, grid.show), "scale": (_scale, scale.show),
}


def measure(options: argparse.Namespace, folder: Path) -> Report:
    """Make the host and the data in `folder`, go through the parts, and give the report."""
    work = Workload(
        kind="prepare", folder=str(folder), shape=options.shape, method=options.method, batch_size=options.batch_size,
        precision=options.precision, device=options.device, train_batches=options.train_batches,
        test_examples=options.test_examples,
    )
    made = once(work, {}, "prepare")
    work = replace(work, device=made["device"])
    settings = {key: value for key, value in vars(options).items() if key != "out"} | {"device": work.device}
    report: Report = {"machine": made["machine"], "load_before": machine.load(), "settings": settings, "sizes": made["sizes"],
                      "parts": {}}
    say(headline(report))
    for name in _chosen(options.only):
        do, show = PARTS[name]
        say(f"\n== {name}")
        try:
            report["parts"][name] = do(work, options, made["sizes"])
            say(show(report["parts"][name]))
        except ChildFailed as error:
            report["parts"][name] = {"failed": str(error)}
            say(f"failed: {error}")
    return report


def _chosen(only: Sequence[str] | None) -> list[str]:
    """The parts, in order; no race without the check that all run the same race."""
    wanted = set(only or PARTS)
    return [name for name in PARTS if name in wanted or (name == "equality" and "rivals" in wanted)]


def headline(report: Report) -> str:
    """What was measured, where."""
    where, sizes, settings = report["machine"], report["sizes"], report["settings"]
    device = where["gpu"]["name"] if where["gpu"] else where["cpu"]
    return (
        f"{settings['shape']} ({sizes['host_parameters']:,} frozen numbers), {settings['method']}, batch of "
        f"{settings['batch_size']} with {sizes['train_tokens']:.1f} tokens each on average, {settings['precision']}\n"
        f"{device}, {where['cores']} cores, torch {where['versions']['torch']}, load {report['load_before']}"
    )


def passed(report: Report) -> bool:
    """Nothing failed, losses are equal, and all contenders train as many numbers."""
    parts = report["parts"]
    rows = parts.get("rivals", {}).get("rows", [])
    whole = not any("failed" in part for part in parts.values()) and not any(row["failed"] for row in rows)
    equal = all(parts.get(name, {}).get("passed", True) for name in ("equality", "grid"))
    return whole and equal and len({row["trainable"] for row in rows}) <= 1


def main(given: Sequence[str] | None = None) -> int:
    """Run the benchmark; 1 where a check failed."""
    options = arguments(given)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        report = measure(options, Path(folder))
    report["passed"] = passed(report)
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    say(f"\n{'passed' if report['passed'] else 'FAILED'}; raw numbers in {options.out}")
    return 0 if report["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
