"""What a port loses against the best one, by brute force over halves of the seeds."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from portability.analysis.context import StudyContext, gather
from portability.analysis.measures.port_choice import has_ports, port_choice
from portability.analysis.stats.blocks import POOLED
from portability.analysis.tables.registry import build_table
from portability.store import Store
from support.synthetic import Axes, build
from support.written import entry

pytestmark = pytest.mark.unit
SEEDS, PORTS = (0, 1, 2, 3, 4), ("pad", "embed", "corr")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> StudyContext:
    """A study of three ports in one store, with two directions."""
    root = tmp_path_factory.mktemp("ports") / "toy"
    for port in PORTS:
        build(root, Axes(methods=("lora",), pairs=(("base", "large"), ("large", "base")), relations=("same",),
                         seeds=SEEDS, port=port))
    return gather(Store(root))


def values(found: StudyContext, origin: str, budget: int) -> np.ndarray:
    """Percent (seeds, ports)."""
    cells = found.arms[(found.arms["init"] == "ported") & (found.arms["origin"] == origin)
                       & (found.arms["budget"] == budget)]
    return 100 * cells.pivot(index="seed", columns="port", values="value")[list(PORTS)].to_numpy(float)


def behind(table: np.ndarray, port: int) -> float:
    """Brute force: every half, the best of it, and both on the rest."""
    lost = []
    for half in combinations(range(len(table)), len(table) // 2):
        rest = [seed for seed in range(len(table)) if seed not in half]
        best = max(range(table.shape[1]), key=lambda one: np.mean([table[seed, one] for seed in half]))
        lost.append(np.mean([table[seed, best] - table[seed, port] for seed in rest]))
    return float(np.mean(lost))


def test_losses_are_those_of_every_half_by_hand(found):
    table = port_choice(found)
    own = values(found, "base", 100)
    for place, port in enumerate(PORTS):
        row = entry(table, origin="base", budget=100, port=port)
        assert row["mean"] == pytest.approx(behind(own, place)) and row["low"] <= row["mean"] <= row["high"]
        assert (row["units"], row["seeds"]) == (1, 5)
    assert table[(table["origin"] == "base") & (table["budget"] == 100)]["chosen"].sum() == pytest.approx(1)
    both = entry(table, pairs=POOLED, budget=100, port="embed")
    assert both["units"] == 2 and both["mean"] == pytest.approx(
        np.mean([behind(values(found, origin, 100), 1) for origin in ("base", "large")]))


def test_one_port_has_no_such_table_and_the_table_is_shown(found):
    assert has_ports(found) and "behind the best" in build_table("port_choice", found).shown
    cells = found.study.cells
    assert not has_ports(replace(found, study=replace(found.study, cells=cells[cells["port"] == "pad"])))
