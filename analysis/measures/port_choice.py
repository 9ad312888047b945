"""How far each way to port is behind the best one, where the best is chosen on other seeds than it is scored
on."""

from collections.abc import Iterator
from itertools import combinations

import numpy as np
import pandas as pd

from portability.analysis.context import StudyContext
from portability.analysis.measures.summaries import joined, labelled
from portability.analysis.stats.blocks import POOLED
from portability.analysis.stats.intervals import jackknife

FEWEST = 3  # seeds: one to choose on with two left (our choice)


def has_ports(context: StudyContext) -> bool:
    """Whether the arm was ported in several ways, with seeds enough to choose on some of them."""
    own = context.arms[context.arms["init"] == context.arm]
    return bool(context.metric.better and own["port"].nunique() > 1 and own["seed"].nunique() >= FEWEST)


def port_choice(context: StudyContext) -> pd.DataFrame:
    """What each port loses against the best port, by kind of pairs of hosts, direction and budget.

    For every method, direction, relation and data set by itself the port is chosen whose mean over half of
    the seeds (rounded down) is best, and scored on the other seeds; this is done for every half, and averaged
    (cross-validation, so that the best port is not the luckiest one). Ports that lack a seed there are left
    out.

    Returns:
        By kind (`pairs`, POOLED over all and each), direction (POOLED over those of the kind, and each),
        budget and port: `mean`, the best minus this port in `metric.difference` with a 95 % interval of new
        seeds (intervals.jackknife); `chosen`, the share of halves that chose it; `units` behind it, `seeds`.

    Source: our choice (D-139).
    """
    own = context.arms[context.arms["init"] == context.arm]
    own = own.assign(pairs=[context.kinds.get(two, "") for two in zip(own["origin"], own["receiving"],
                                                                      strict=True)])
    rows = [row for budget, part in own.groupby("budget", sort=True) for row in _rows(part, budget, context)]
    columns = ["pairs", "origin", "receiving", "budget", "port", "mean", "low", "high", "chosen", "units",
               "seeds"]
    frame = pd.DataFrame(rows, columns=columns).assign(arm=context.arm)
    return joined([labelled(frame, "behind the best port", context.metric.difference)])


def _rows(cells: pd.DataFrame, budget: object, context: StudyContext) -> Iterator[dict[str, object]]:
    every = {(POOLED, POOLED, POOLED): cells}
    every |= {(kind, POOLED, POOLED): part for kind, part in cells.groupby("pairs", sort=False)}
    every |= {(kind, *two): part
              for (kind, *two), part in cells.groupby(["pairs", "origin", "receiving"], sort=False)}
    units = ["method", "origin", "receiving", "relation", "data"]
    for names, part in every.items():
        tables = [table for _, unit in part.groupby(units, sort=False)
                  if (table := _table(unit, context.metric.sign * context.metric.scale)) is not None]
        ports = [port for port in part["port"].unique() if tables and all(port in table for table in tables)]
        if len(ports) > 1 and len({tuple(table.index) for table in tables}) == 1:  # blocks are seeds
            for row in _losses([table[ports] for table in tables]):
                yield {**dict(zip(("pairs", "origin", "receiving"), names, strict=True)), "budget": budget,
                       **row}


def _losses(tables: list[pd.DataFrame]) -> Iterator[dict[str, object]]:
    """A row for each port, over tables of the same seeds and ports."""
    values = [table.to_numpy(float) for table in tables]
    seeds, chosen = len(values[0]), np.mean([_halves(table)[1] for table in values], axis=0)
    for place, port in enumerate(tables[0]):
        def lost(kept: np.ndarray, place: int = place) -> float:
            return float(np.mean([_halves(table[kept])[0][place] for table in values]))

        yield {"port": port, **dict(zip(("mean", "low", "high"), jackknife(lost, seeds), strict=True)),
               "chosen": chosen[place], "units": len(tables), "seeds": seeds}


def _table(cells: pd.DataFrame, scale: float) -> pd.DataFrame | None:
    """Seeds down, ports across, more is better; ports with all seeds alone, None where there are not two."""
    table = scale * cells.pivot_table(index="seed", columns="port", values="value")
    table = table.dropna(axis=1)
    return table if table.shape[1] > 1 and len(table) >= FEWEST else None


def _halves(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of values (S, P), the best port of one half of the seeds minus each port (P,) on the other half, mean
    over all halves; and the share of halves that chose each (P,).

    Example:
        >>> _halves(np.array([[1.0, 2.0], [1.0, 2.0], [1.0, 2.0]]))
        (array([1., 0.]), array([0., 1.]))
    """
    seeds, ports = table.shape
    behind, chosen = np.zeros(ports), np.zeros(ports)
    halves = list(combinations(range(seeds), max(1, seeds // 2)))
    for half in halves:
        rest = np.delete(table, half, axis=0).mean(axis=0)
        best = int(table[list(half)].mean(axis=0).argmax())
        behind += rest[best] - rest
        chosen[best] += 1
    return behind / len(halves), chosen / len(halves)
