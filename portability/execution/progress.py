"""Where a study is, in the terminal: bars by kind of run, rate, time left, memory and failures; plain lines
where nobody looks at a terminal."""

import contextlib
import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import psutil
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from portability.core.specs import RunSpec
from portability.core.stages import Stage
from portability.core.wording import duration
from portability.planning.cost import cost_units

if TYPE_CHECKING:
    from portability.execution.scheduler import Ledger

LINE_SECONDS = 15.0  # between two plain lines (our choice)
DRAW_SECONDS = 0.5  # between two states of the bars
MEMORY_SECONDS = 5.0  # between two looks at the memory, which take a millisecond a process
SPEED_SECONDS = 120.0  # over which the time left is estimated (our choice)


@dataclass
class Kind:
    """Runs of one kind: how many there are, are done and have failed, their units of work, and what is made
    of those; `doing` counts what they are at now."""

    name: str
    runs: int = 0
    done: int = 0
    failed: int = 0
    whole: float = 0.0
    made: float = 0.0
    doing: Counter[str] = field(default_factory=Counter)


class Meter:
    """What is made of all the work of the runs that are to do, evaluations among it.

    Attributes:
        updates: that were made.
        show: called after every change.
    """

    def __init__(self, book: "Ledger"):
        self.book = book
        self.runs = {run_id: run for run_id, run in book.todo.items() if run_id not in book.failed}
        self.whole = {run_id: cost_units(run, run.train.updates, len(book.planned.marks[run_id]))
                      for run_id, run in self.runs.items()}
        self.at = dict.fromkeys(self.runs, (0, 0.0))  # updates that were made, and units of work
        self.doing: dict[str, str] = {}
        self.settled: set[str] = set()
        origins = {run.origin for run in book.planned.runs.values()}
        self.kind = {run_id: kind_of(run, run_id in origins) for run_id, run in self.runs.items()}
        self.show: Callable[[], None] = lambda: None

    def hear(self, stage: Stage) -> None:
        """Runs are at a stage: before what was heard last, where they begin anew after a worker's death."""
        for run_id in self.runs.keys() & set(stage.runs) - self.settled:
            done = cost_units(self.runs[run_id], stage.updates, stage.scored + stage.part)
            # one that was evaluated at other marks before is evaluated at those too
            self.at[run_id] = stage.updates, min(done, self.whole[run_id])
            self.doing[run_id] = stage.doing
        self.show()

    def settle(self) -> None:
        """Nothing more is to come of the runs that are done or failed."""
        over = (self.book.done | self.book.failed.keys()) & self.runs.keys() - self.settled
        for run_id in over:
            made = self.at[run_id][0] if run_id in self.book.failed else self.runs[run_id].train.updates
            self.at[run_id] = made, self.whole[run_id]
            self.doing.pop(run_id, None)
        self.settled |= over
        self.show()

    @property
    def part(self) -> float:
        """Of all work, in [0, 1], what is made."""
        return sum(done for _, done in self.at.values()) / sum(self.whole.values())

    @property
    def updates(self) -> int:
        """See the class."""
        return sum(made for made, _ in self.at.values())

    def kinds(self) -> list[Kind]:
        """Runs by kind, in the order in which the plan has them."""
        found: dict[str, Kind] = {}
        for run_id, name in self.kind.items():
            kind = found.setdefault(name, Kind(name))
            kind.runs += 1
            kind.done += run_id in self.book.done
            kind.failed += run_id in self.book.failed
            kind.whole += self.whole[run_id]
            kind.made += self.at[run_id][1]
            kind.doing.update([self.doing[run_id]] if run_id in self.doing else [])
        return list(found.values())


def kind_of(run: RunSpec, is_origin: bool) -> str:
    """What a run is in its study: a bare host, an origin of others, or an arm by the name of its init."""
    if run.method is None:
        return "bare host"
    return "origin" if is_origin else run.init.name


class Clock:
    """Rate, time left and memory of what a meter measures."""

    def __init__(self, meter: Meter):
        self.meter, self.began = meter, time.monotonic()
        self.bars = Progress(disable=True, speed_estimate_period=SPEED_SECONDS)
        self.all = self.bars.add_task("", total=1.0)
        self.memory, self.looked = 0.0, -MEMORY_SECONDS

    def words(self) -> list[str]:
        """What there is to say of the whole: runs, rate, times, memory, failures."""
        self.bars.update(self.all, completed=self.meter.part)
        if time.monotonic() - self.looked >= MEMORY_SECONDS:
            self.memory, self.looked = memory_gb(), time.monotonic()
        spent, left = time.monotonic() - self.began, self.bars.tasks[0].time_remaining
        done = len(self.meter.book.done & self.meter.runs.keys())
        rate = [f"{60 * done / spent:.1f} runs a minute"] if done and spent > 1 else []
        return [f"{done:,} of {len(self.meter.runs):,} runs", *rate, f"{duration(spent)} so far",
                *([f"{duration(left)} left"] if left else []), f"{self.memory:.1f} GB of memory",
                f"{len(self.meter.book.failed):,} failed"]


def memory_gb() -> float:
    """Memory of this command and the processes below it, in 10^9 bytes; pages that they share count each
    time."""
    found, here = 0, psutil.Process()
    for process in [here, *here.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            found += process.memory_info().rss
    return found / 1e9


@contextlib.contextmanager
def shown(meter: Meter, name: str) -> Iterator[None]:
    """Show on standard error where a study is while the block goes on: bars in a terminal, else lines."""
    console = Console(stderr=True)
    # FORCE_COLOR and TTY_COMPATIBLE make a file a terminal for rich
    seen = sys.stderr.isatty() and console.is_terminal and not console.is_dumb_terminal
    with _bars(meter, name, console) if seen else _lines(meter, name):
        yield


@contextlib.contextmanager
def _lines(meter: Meter, name: str) -> Iterator[None]:
    clock = Clock(meter)

    def say() -> None:
        kinds = ", ".join(_kind_words(kind) for kind in meter.kinds())
        sys.stderr.write(f"{name}: {meter.part:.1%}; {'; '.join(clock.words())}; {kinds}\n")

    meter.show = _at_most_every(LINE_SECONDS, say)
    try:
        yield
    finally:
        meter.show = lambda: None
        say()


def _at_most_every(seconds: float, call: Callable[[], None]) -> Callable[[], None]:
    last = time.monotonic()

    def calls() -> None:
        nonlocal last
        if time.monotonic() - last >= seconds:
            last = time.monotonic()
            call()

    return calls


def _kind_words(kind: Kind) -> str:
    now = ", ".join(f"{count} {doing}" for doing, count in sorted(kind.doing.items()))
    return f"{kind.name} {kind.done}/{kind.runs}" + (f" ({now})" if now else "")


class Bars(Progress):
    """A bar for the whole and one for each kind of run, and below them what the clock says."""

    def __init__(self, clock: Clock, console: Console):
        self.clock = clock
        super().__init__(
            TextColumn("{task.description}"), BarColumn(24), TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[runs]}", justify="right"), TextColumn("{task.fields[now]}"),
            console=console, refresh_per_second=2)

    def get_renderables(self) -> Iterable[RenderableType]:
        """See rich.progress.Progress."""
        yield self.make_tasks_table(self.tasks)
        yield Text(" · ".join(self.clock.words()), style="dim")


@contextlib.contextmanager
def _bars(meter: Meter, name: str, console: Console) -> Iterator[None]:
    bars = Bars(Clock(meter), console)
    whole = bars.add_task(f"[bold]{name}", total=1.0, runs="", now="")
    tasks = {kind.name: bars.add_task(f"  {kind.name}", total=kind.whole, runs="", now="")
             for kind in meter.kinds()}

    def draw() -> None:
        bars.update(whole, completed=meter.part)
        for kind in meter.kinds():
            now = [f"{count} {doing}" for doing, count in sorted(kind.doing.items())]
            now += [f"[red]{kind.failed} failed[/]"] if kind.failed else []
            bars.update(tasks[kind.name], completed=kind.made, runs=f"{kind.done}/{kind.runs}",
                        now=", ".join(now))

    meter.show = _at_most_every(DRAW_SECONDS, draw)
    with bars, _logs_above():
        try:
            yield
        finally:
            draw()
            meter.show = lambda: None


@contextlib.contextmanager
def _logs_above() -> Iterator[None]:
    """What is logged goes above the bars: rich has put its own stream in the place of standard error."""
    handlers = [one for one in logging.root.handlers
                if isinstance(one, logging.StreamHandler) and one.stream is sys.__stderr__]
    for handler in handlers:
        handler.setStream(sys.stderr)
    try:
        yield
    finally:
        for handler in handlers:
            handler.setStream(sys.__stderr__)
