"""What runs cost, which of them can train together, and how a group of them is cut. No torch here."""

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from portability.core.specs import RunSpec, digest
from portability.planning.plan import Plan

T = TypeVar("T")


def updates_of(planned: Plan) -> tuple[int, int]:
    """Module-updates of a plan, and of the same cells if each one and its origin were trained for
    themselves."""
    updates = {run_id: run.train.updates for run_id, run in planned.runs.items()}
    alone = sum(cell.mark + updates.get(str(planned.runs[cell.run_id].origin), 0)
                for cell in planned.cells if cell.budget > 0)
    return sum(updates.values()), alone


def stack_key(run: RunSpec) -> str:
    """Runs with the same answer may train together: same host, method, data, task, protocol, precision and
    updates."""
    identity = run.identity()
    shared = {k: v for k, v in identity.items() if k not in ("seed", "init", "origin", "port", "head")}
    return digest([shared, run.method is None])


def stacks(runs: Mapping[str, RunSpec], size: int) -> list[list[str]]:
    """Group runs that may train together, at most `size` in a stack.

    A group is cut evenly, and the longest stacks come first, so that the last worker to finish is not left
    with one.
    """
    groups: dict[str, list[str]] = {}
    for run_id, run in runs.items():
        groups.setdefault(stack_key(run), []).append(run_id)
    parts = [part for ids in groups.values() for part in split_evenly(ids, size)]
    return sorted(parts, key=lambda ids: -cost(runs[ids[0]]) * len(ids))


def split_evenly(ids: list[T], size: int) -> Iterator[list[T]]:
    """Cut a list into the fewest parts of at most `size`, no two of which differ by more than one."""
    count = -(-len(ids) // size)
    edges = [len(ids) * i // count for i in range(count + 1)]
    return (ids[a:b] for a, b in zip(edges, edges[1:], strict=False))


def cost(run: RunSpec) -> float:
    """Relative cost of a run: updates times the host's parameters in its layers (an order, not a time)."""
    return (run.train.updates * run.train.batch_size + 1) * _weight(run)


def _weight(run: RunSpec) -> int:
    """Parameters of the host's layers, about."""
    shape = run.host.shape
    per_layer = 4 * shape.hidden * shape.heads * shape.head_dim + 3 * shape.hidden * shape.ffn
    return sum(shape.layers.values()) * per_layer


def cost_units(run: RunSpec, updates: int, marks: float) -> float:
    """Units of work in so many updates and evaluations, behind those of a port's own updates: examples times
    the parameters they pass; an evaluated example is a third of a trained one in each of its task's passes,
    because it has no backward pass."""
    return _weight(run) * (updates * run.train.batch_size + marks * run.data.counts["eval"] * run.task.passes
                           / 3 + sum(size * batch for size, batch in port_updates(run)))


def port_updates(run: RunSpec) -> list[tuple[int, int]]:
    """Updates that the port of a run makes of its own, and the examples of each, as the options of it and of
    the port that it goes on from say."""
    found: list[tuple[int, int]] = []
    ported = run.port is not None and run.method is not None and "port" in run.init.traits.needs
    options: Any = run.port.options if ported and run.port else None
    while isinstance(options, Mapping):
        size, batch = options.get("updates"), options.get("batch_size", run.train.batch_size)
        if type(size) is int and type(batch) is int:  # what is no number the strategy refuses
            found.append((size, batch))
        options = options.get("of_options")
    return found
