"""What state every run of a plan is in, read from the store's files while commands work on it, here or
elsewhere."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from portability.core.specs import RunSpec
from portability.core.stages import PREPARING, SCORING, Stage
from portability.core.wording import counted, duration
from portability.execution.leases import Leases
from portability.planning.cost import cost_units
from portability.planning.plan import Plan
from portability.store import Store

STATES = ("done", "running", "stale", "failed", "blocked", "planned")
NAMED = 10  # runs of one state that are named; the others are counted
RECENT = timedelta(minutes=30)  # what the rate is measured over


@dataclass(frozen=True)
class State:
    """A run's state, and what there is to say of it.

    `planned`: nothing yet. `running`: somebody has it in hand (what it is at, where, since, seconds since the
    last heartbeat). `stale`: it was in hand, and that process is gone or silent; the next command takes it
    over. `failed` (error, attempt, file) and `blocked` (origin): its latest failure. `done`: evaluated at all
    its marks.
    """

    name: str
    says: str = ""
    done: float = 0.0  # of one that is running: units of work, as of the last heartbeat


def states(planned: Plan, store: Store) -> dict[str, State]:
    """The state of each run of the plan."""
    marks, claims = store.marks(), Leases(store.root)
    held, stages, failures = claims.all(), claims.stages(), store.failures(planned.marks)
    found = {}
    for run_id, run in planned.runs.items():
        claim, failure = held.get(run_id), failures.get(run_id, {})
        lives = claim is not None and claims.lives(claim)
        if lives or (claim is not None and failure.get("at", "") < claim.since):
            failure = {}  # it was tried again since then
        if planned.marks[run_id] <= marks.get(run_id, frozenset()):
            found[run_id] = State("done")
        elif failure.get("kind") == "Blocked" and failure.get("origin"):
            found[run_id] = State("blocked", f"by its origin run {failure['origin']}")
        elif failure:
            file = store.root / "failures" / f"{run_id}-{failure['attempt']}.json"
            found[run_id] = State("failed", f"at attempt {failure['attempt']}: {failure['error']} ({file})")
        elif claim is not None:
            says = (f"by process {claim.pid} on {claim.host} since {claim.since}, heartbeat "
                    f"{claims.silence(claim):.0f} s ago")
            stage = stages.get(claim.owner, Stage([run_id]))
            found[run_id] = _running(run, stage, says) if lives else State("stale", says)
        else:
            found[run_id] = State("planned")
    return found


def _running(run: RunSpec, stage: Stage, says: str) -> State:
    """The state of a run in hand: what it is at, and by whom."""
    if run.run_id not in stage.runs:
        return State("running", f"waiting for others of its stack, {says}")
    if stage.doing == PREPARING:
        return State("running", f"{stage.doing}, {says}")
    where = f" at update {stage.updates:,} of {run.train.updates:,}" if run.train.updates else ""
    part = f" ({stage.part:.0%} of the test set)" if stage.doing == SCORING else ""
    return State("running", f"{stage.doing}{where}{part}, {says}",
                 cost_units(run, stage.updates, stage.scored + stage.part))


def status_lines(planned: Plan, store: Store) -> list[str]:
    """How far the plan is: cells and runs by state, rate and time left, the slowest runs, and what went wrong
    by name."""
    found = states(planned, store)
    plain = {"done": "done", "failed": "failed", "blocked": "failed"}  # a cell's state in a summary
    cells = Counter(plain.get(found[cell.run_id].name, "missing")
                    for cell in planned.cells if cell.budget > 0)
    runs = Counter(state.name for state in found.values())
    lines = [f"cells: {sum(cells.values())}, " + _counts(cells, ("done", "failed", "missing")),
             f"runs: {len(found)}, " + _counts(runs, STATES), *_pace(planned, store, found)]
    for name in ("running", "stale", "failed"):
        those = [run_id for run_id, state in found.items() if state.name == name]
        lines += [f"  {name} {run_id} {_words(planned.runs[run_id])}: {found[run_id].says}"
                  for run_id in those[:NAMED]]
        lines += [f"  ... and {len(those) - NAMED} more {name}"] if len(those) > NAMED else []
    blockers = Counter(state.says for state in found.values() if state.name == "blocked")
    return lines + [f"  blocked: {counted(count, 'run')} {says}" for says, count in blockers.items()]


def _pace(planned: Plan, store: Store, found: Mapping[str, State]) -> list[str]:
    """Rate of the last half hour and the time left by it, and the slowest runs. The rate weighs runs by their
    work."""
    records = [record for record in store.records() if record["run_id"] in planned.runs]
    slow = sorted(records, key=lambda record: -record["run_info"]["total_time"])[:3]
    said = "; ".join(f"{record['run_id']} {_words(planned.runs[record['run_id']])} "
                     f"{record['run_info']['total_time']:.1f} s" for record in slow)
    lines = [f"slowest: {said}"] if slow else []
    now, recent, begin = datetime.now(UTC), [], []
    for record in records:
        end = datetime.fromisoformat(record["run_info"]["created_at"])
        if end >= now - RECENT:
            recent.append(record["run_id"])
            whole = record["run_info"]["total_time"] * record["train_info"].get("stack", 1)  # of its stack
            begin.append(end - timedelta(seconds=whole))
    left = [run_id for run_id, state in found.items() if state.name in ("planned", "running", "stale")]
    if not recent or not left:
        return lines
    seconds = max(1.0, (now - min(begin)).total_seconds())
    units = {i: cost_units(planned.runs[i], planned.runs[i].train.updates, len(planned.marks[i]))
             for i in (*recent, *left)}
    rate = sum(units[run_id] for run_id in recent) / seconds
    rest = sum(max(0.0, units[run_id] - found[run_id].done) for run_id in left) / rate
    return [f"rate: {len(recent) / seconds * 60:.1f} runs a minute; {duration(rest)} left at this rate",
            *lines]


def _words(run: RunSpec) -> str:
    if run.method is None:
        return f"(bare host {run.host.name})"
    return f"({run.init.name} of {run.method.name} on {run.host.name}, seed {run.seed})"


def _counts(counts: Counter[str], names: Sequence[str]) -> str:
    always = ("done", "failed", "missing")
    return ", ".join(f"{counts[name]} {name}" for name in names if counts[name] or name in always)
