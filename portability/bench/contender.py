"""A child process of the benchmark: ``python -m portability.bench.contender JSON`` plays one part and ends."""

import json
import logging
import sys
import warnings
from collections.abc import Callable

from portability.bench.line import Line
from portability.bench.workload import Workload


def _prepare(work: Workload, line: Line) -> None:
    from portability.bench import machine, shapes

    device = machine.pick_device(work.device)
    line.answer(sizes=shapes.prepare(work), device=device, machine=machine.facts(device))


def _trainer(work: Workload, line: Line) -> None:
    from portability.bench import trainers

    line.imported()
    trainers.play(work, line, tuned=work.kind != "trainer")


def _ours(work: Workload, line: Line) -> None:
    from portability.bench import ours

    line.imported()
    ours.play(work, line)


def _equality(work: Workload, line: Line) -> None:
    from portability.bench import equality

    line.answer(**equality.compare(work))


def _floor(work: Workload, line: Line) -> None:
    from portability.bench import floor

    line.answer(**floor.measure(work))


def _memory(work: Workload, line: Line) -> None:
    from portability.bench import memory

    line.answer(**memory.peak(work))


def _naive(work: Workload, line: Line) -> None:
    from portability.bench import naive

    naive.play(work, line)


def _bookkeeping(work: Workload, line: Line) -> None:
    from portability.bench import scale

    scale.bookkeeping(work, line)


KINDS: dict[str, Callable[[Workload, Line], None]] = {
    "prepare": _prepare, "trainer": _trainer, "trainer-tuned": _trainer, "batchsplit": _trainer, "ours": _ours,
    "equality": _equality, "floor": _floor, "memory": _memory, "naive": _naive, "bookkeeping": _bookkeeping,
}


def main() -> None:
    """Play the part that the first argument asks for."""
    line = Line()
    work = Workload.from_dict(json.loads(sys.argv[1]))
    logging.getLogger("adapters").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)  # of transformers, about adapters' T5 layers
    KINDS[work.kind](work, line)


if __name__ == "__main__":
    main()
