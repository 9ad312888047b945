"""Our engine against what a user would do instead, on random weights, as ratios of times taken in turn."""

import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator, Sequence
from statistics import median

from portability.bench import parts
from portability.bench.given import prepare
from portability.core.command_line import carry_out
from portability.core.errors import Failed
from portability.hosts.devices import cores, places
from portability.options import PARTS, parser


def report(options: Namespace, folder: str) -> Iterator[str]:
    """What the benchmark finds, line by line.

    Raises:
        Failed: the losses differ.
        UserError: something was asked for that cannot be measured.
    """
    device = places(options.device, 1)[0].device.partition(":")[0]
    words = prepare(folder, options.shape, options.method, options.batch_size, options.precision, device,
                    options.host)
    wanted, workers = options.only or PARTS, options.workers or (1 if device == "cuda" else cores())
    if {"equality", "rivals", "loop", "study"} & set(wanted):  # times of unequal trainings are not compared
        both = ("fp32", "bf16") if "loop" in wanted else (options.precision,)
        for precision in both:
            yield f"== equality, {precision}: largest difference of losses from those of a member alone"
            yield from equal(words, precision)
    if "graphs" in wanted:
        yield "== graphs: losses of updates that were captured as CUDA graphs, against those of called ones"
        yield captured(words, device)
    if "loop" in wanted:
        yield f"== loop: microseconds per token of a module, {workers} at once"
        yield from table(parts.turns(words, options.members, options.rounds, workers))
    if {"rivals", "study"} & set(wanted):
        yield "== rivals: microseconds per token of a module"
        times = parts.race(words, options.members, options.rounds, device == "cuda", workers)
        yield from table(times)
        if "study" in wanted:
            yield from study(words, times)
    if "floor" in wanted:
        with parts.process() as child:
            flops, rate, times = child.submit(parts.floor, words, options.members, options.rounds).result()
        yield f"== floor: {flops / 1e9:.3f} GFLOP per update, {rate / 1e9:.0f} GFLOP/s in a large product"
        for name, taken in times.items():
            yield f"{name:20} {1e3 * median(taken):8.2f} ms, {flops / rate / median(taken):4.0%} of that rate"
    if "grid" in wanted:
        yield f"== grid: seconds of {' '.join(options.grid)}"
        yield from table(parts.grid([*options.grid, f"engine.device={device}"], options.rounds))


def equal(words: Sequence[str], precision: str) -> Iterator[str]:
    """How far losses differ in a precision.

    Raises:
        Failed: too far.
    """
    with parts.process() as child:
        found = child.submit(parts.equality, [*words, f"precision={precision}"]).result()
    yield from (f"{name:38} {difference:.1e} (at most {bound:.0e})" for name, difference, bound in found)
    if not all(difference <= bound for _, difference, bound in found):
        raise Failed("the losses differ, so the times would not be those of the same training")


def captured(words: Sequence[str], device: str) -> str:
    """How many graphs there were, and what they changed.

    Raises:
        Failed: losses differ, or a GPU captured none.
    """
    with parts.process() as child:
        number, difference, bound = child.submit(parts.graphs, words).result()
    if not difference <= bound or (device == "cuda" and not number):
        raise Failed(f"{number} graphs were captured, and the losses differ by {difference:.1e}, where at "
                        f"most {bound:.0e} is rounding")
    return f"{number} captured, losses differ by {difference:.1e} (at most {bound:.0e})"


def study(words: Sequence[str], times: parts.Times) -> Iterator[str]:
    """The hours of the whole study by each contender, at its median."""
    with parts.process() as child:
        medians = {name: median(taken) for name, taken in times.items()}
        cells, runs, found = child.submit(parts.hours, words, medians).result()
    yield f"== study: hours of {cells:,} cells ({runs:,} distinct runs) on T5s, estimated from these times"
    yield from (f"{name:18} {hours:10.1f}" for name, hours in found.items())


def table(times: parts.Times) -> Iterator[str]:
    """A line per contender: its median time, and how many times longer others took in the same rounds."""
    others = [name for name in times if not name.startswith(("ours", "+"))]
    titles = ["median [min-max]", *(f"{other} / this" for other in others)]
    yield " " * 18 + "".join(f"{title:>26}" for title in titles)
    for name, taken in times.items():
        columns = [taken, *([a / b for a, b in zip(times[other], taken, strict=True)] for other in others)]
        yield f"{name:18}" + "".join(f"{f'{median(c):.2f} [{min(c):.2f}-{max(c):.2f}]':>26}" for c in columns)


def main(given: Sequence[str] | None = None) -> int:
    """Print the report; gives back the exit code."""
    return carry_out(parser("bench"), work, given)


def work(options: Namespace) -> None:
    """Print the report.

    Raises:
        Failed, UserError: as `report`.
    """
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        for line in report(options, folder):
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
