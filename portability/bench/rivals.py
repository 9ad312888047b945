"""The race: short segments of real trainings in turn, so that what disturbs the machine disturbs all alike."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from portability.bench import machine
from portability.bench.children import ALL_CORES, AS_IT_COMES, ONE_THREAD, Child, ChildFailed
from portability.bench.workload import Workload

WINDOW = 50  # batches over which transformers sorts by length, from long to short
CAPTURED = 200  # updates after which nearly all lengths were met twice
Say = Callable[[str], None]


@dataclass(frozen=True)
class Race:
    """How long, against whom, and how many side by side.

    Attributes:
        rounds: measured segments of each contender; a warm-up comes first and is dropped.
        segment: optimiser updates in a segment.
        members: sizes of our stacks.
        batchsplit: modules of the BatchSplit rival.
        processes: one-thread processes on a CPU: its cores; on a GPU 1.
        side_by_side: processes of the "xN" rival.
        threads: of the rivals that may use all cores; 0 leaves it to torch.
    """

    rounds: int
    segment: int
    members: tuple[int, ...]
    batchsplit: int
    processes: int
    side_by_side: int
    threads: int = 0

    @property
    def updates(self) -> int:
        """Updates of the longest training."""
        return max(CAPTURED, self.segment) + self.rounds * self.segment


@dataclass(frozen=True)
class Contender:
    """Who: a kind of child, how many of them at once, with how many modules each."""

    name: str
    kind: str
    processes: int
    modules: int
    environment: Mapping[str, str]

    def warm_up(self, segment: int, device: str) -> int:
        """Updates of the dropped round: Trainer has met most lengths after one window, and what the first meeting of a
        shape costs (a kernel is made for it, on a CPU too) should not be charged to the few updates that are timed. Ours
        on a GPU captures a graph when it meets a length for the second time."""
        if self.kind == "ours":
            return max(CAPTURED, segment) if device == "cuda" else segment
        return max(WINDOW, segment) if self.kind.startswith("trainer") else segment


@dataclass
class Entry:
    """A contender in the race, and what it did: per round the answers of its processes."""

    contender: Contender
    children: list[Child] = field(default_factory=list)
    ready: list[dict[str, Any]] = field(default_factory=list)
    rounds: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[list[dict[str, Any]]] = field(default_factory=list)
    failed: str | None = None


def contenders(race: Race) -> list[Contender]:
    """Everyone, the user's default first."""
    threads = {key: str(race.threads) for key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if race.threads}
    return [
        Contender("trainer", "trainer", 1, 1, {**AS_IT_COMES, **threads}),
        Contender("trainer-tuned", "trainer-tuned", 1, 1, {**ALL_CORES, **threads}),
        Contender(f"trainer-tuned x{race.side_by_side}", "trainer-tuned", race.side_by_side, 1, ONE_THREAD),
        Contender(f"batchsplit K={race.batchsplit}", "batchsplit", race.processes, race.batchsplit, ONE_THREAD),
        *(Contender(f"ours K={k}", "ours", race.processes, k, ONE_THREAD) for k in race.members),
    ]


def run(work: Workload, race: Race, say: Say) -> list[Entry]:
    """Race all contenders; one that breaks is out, says why, and does not stop the others."""
    entries = [Entry(contender) for contender in contenders(race)]
    work = replace(work, updates=race.updates)
    try:
        for entry in entries:
            _attempt(entry, lambda e: _start(e, work))
            say(f"{entry.contender.name}: {entry.failed or 'ready'}")
        for number in range(race.rounds + 1):
            turn = number % len(entries)
            for entry in entries[turn:] + entries[:turn]:
                updates = race.segment if number else entry.contender.warm_up(race.segment, work.device)
                _attempt(entry, lambda e, updates=updates: e.rounds.append(_segment(e, updates)))
            say(f"round {number} of {race.rounds} done" + (" (warm-up, dropped)" if number == 0 else ""))
        for entry in [*entries, *reversed(entries)]:
            if entry.contender.kind != "batchsplit":  # it splits a batch, so one evaluation would score each text once
                _attempt(entry, lambda e: e.evaluations.append(_ask(e, "eval")))
    finally:
        for entry in entries:
            for child in entry.children:
                child.end()
    return entries


def _attempt(entry: Entry, act: Callable[[Entry], None]) -> None:
    if entry.failed is None:
        try:
            act(entry)
        except ChildFailed as error:
            entry.failed = f"failed: {error}"


def _start(entry: Entry, work: Workload) -> None:
    who = entry.contender
    for index in range(who.processes):
        name = f"{who.name.replace(' ', '-')}-{index}"
        own = replace(work, kind=who.kind, modules=who.modules, first_seed=index * who.modules)
        entry.children.append(Child.start(own, who.environment, name))
        entry.ready.append(entry.children[-1].receive())


def _segment(entry: Entry, updates: int) -> dict[str, Any]:
    """One segment of all its processes, released together, and the processor time that others took meanwhile."""
    load, before = machine.load(), machine.busy_seconds()
    answers = _ask(entry, f"train {updates}")
    busy = machine.busy_seconds()
    foreign = None if busy is None or before is None else busy - before - sum(answer["cpu_s"] for answer in answers)
    return {"answers": answers, "load": load, "foreign_cpu_s": foreign}


def _ask(entry: Entry, command: str) -> list[dict[str, Any]]:
    for child in entry.children:
        child.send(command)
    return [child.receive() for child in entry.children]


# ---- from raw answers to numbers


def summary(entries: Sequence[Entry], mean_tokens: float) -> list[dict[str, Any]]:
    """Per contender: raw rounds, milliseconds per module and update, and ratios paired by round.

    Args:
        mean_tokens: real tokens of a mean batch; a segment's time is scaled to it, because sorted batches come in
            stretches of long and of short ones.
    """
    times = {entry.contender.name: [_milliseconds(one, mean_tokens) for one in entry.rounds[1:]] for entry in entries}
    others = {key: times[entries[place].contender.name] for place, key in enumerate(("trainer", "tuned", "beside"))}
    return [_row(entry, times, mean_tokens) | _over(times[entry.contender.name], others) for entry in entries]


def _row(entry: Entry, times: Mapping[str, list[float]], mean_tokens: float) -> dict[str, Any]:
    who, own = entry.contender, times[entry.contender.name]
    answers = [answer for one in entry.rounds[1:] for answer in one["answers"]]
    return {
        "name": who.name, "processes": who.processes, "modules": who.modules, "failed": entry.failed,
        **{key: entry.ready[0].get(key) if entry.ready else None for key in ("library", "precision", "trainable", "threads")},
        "start_s": max((one["import_s"] + one["setup_s"] for one in entry.ready), default=None),
        "ms": spread(own), "ms_rounds": own, "ms_pooled": _pooled(entry.rounds[1:], mean_tokens),
        "cpu_ms": _processor(answers, mean_tokens),
        "padding": _share(answers), "eval_ms_per_1000": spread([_evaluation(one) for one in entry.evaluations]),
        "raw": {"ready": entry.ready, "rounds": entry.rounds, "evaluations": entry.evaluations},
    }


def _over(own: Sequence[float], others: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """How many times longer the default Trainer, the tuned one, and the tuned ones side by side took in the same round."""
    return {f"{key}_over_this": spread(_ratios(times, own)) for key, times in others.items()}


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """Median, least and largest.

    Example:
        >>> spread([3.0, 1.0, 2.0])
        {'median': 2.0, 'min': 1.0, 'max': 3.0}
    """
    return {"median": statistics.median(values), "min": min(values), "max": max(values)} if values else None


def _milliseconds(one: Mapping[str, Any], mean_tokens: float) -> float:
    """Per module and update over a mean batch: the slowest process's wall time over all real tokens."""
    answers = one["answers"]
    return 1e3 * max(answer["seconds"] for answer in answers) * mean_tokens / sum(answer["tokens"] for answer in answers)


def _pooled(rounds: Sequence[Mapping[str, Any]], mean_tokens: float) -> float | None:
    """The same over all rounds together: stretches of long and of short batches even out, disturbances do not."""
    tokens = sum(answer["tokens"] for one in rounds for answer in one["answers"])
    seconds = sum(max(answer["seconds"] for answer in one["answers"]) for one in rounds)
    return 1e3 * seconds * mean_tokens / tokens if tokens else None


def _processor(answers: Sequence[Mapping[str, Any]], mean_tokens: float) -> float | None:
    """Processor milliseconds per module and update, over a mean batch."""
    tokens = sum(answer["tokens"] for answer in answers)
    return 1e3 * sum(answer["cpu_s"] for answer in answers) * mean_tokens / tokens if tokens else None


def _ratios(others: Sequence[float], own: Sequence[float]) -> list[float]:
    return [other / mine for other, mine in zip(others, own, strict=False)]


def _share(answers: Sequence[Mapping[str, Any]]) -> float | None:
    """Padded over real tokens."""
    real = sum(answer["tokens"] for answer in answers)
    return sum(answer["padded_tokens"] for answer in answers) / real if real else None


def _evaluation(answers: Sequence[Mapping[str, Any]]) -> float:
    """Milliseconds for 1,000 examples and one module."""
    scored = sum(answer["examples"] * answer["modules"] for answer in answers)
    return 1e6 * max(answer["seconds"] for answer in answers) / scored


def disturbance(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Cores that processes outside the race kept busy during it, on average; None where the system does not tell."""
    rounds = [one for row in rows for one in row["raw"]["rounds"]]
    wall = sum(max(answer["seconds"] for answer in one["answers"]) for one in rounds)
    if not rounds or any(one["foreign_cpu_s"] is None for one in rounds):
        return None
    return sum(one["foreign_cpu_s"] for one in rounds) / wall


def full_grid(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Estimated hours of training of the full sweep (1,440 cells, budgets of the T5 study), if every host had this shape:
    each cell and its origin by a default Trainer, and the plan's distinct runs by our fastest stack. No evaluation."""
    measured = {row["name"]: row["ms_pooled"] for row in rows if row["ms_pooled"]}
    ours = {name: ms for name, ms in measured.items() if name.startswith("ours")}
    if "trainer" not in measured or not ours:
        return None
    from portability.planning.plan import plan, updates_of
    from portability.run import compose

    shared, alone = updates_of(plan(compose(["+sweep=full", "grid.budgets=[100,500,2000]", "primary=[]"]).grid))
    best = min(ours, key=lambda name: ours[name])
    return {"updates_alone": alone, "updates_shared": shared, "best": best,
            "naive_hours": alone * measured["trainer"] / 3.6e6, "our_hours": shared * ours[best] / 3.6e6}
