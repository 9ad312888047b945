"""Simulated grids with known gains, and how often the intervals hold them: `python tests/analysis/calibrate.py`.

Run as a script it measures every setting of SETTINGS on 1,000 grids at 3, 5 and 10 seeds (a few minutes).
"""

import itertools
import sys
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from analysis.inference import compare
from analysis.permutation import holm
from analysis.robust import bootstrap, iqm

GAIN = 4.0  # points
LEVEL = 0.7  # accuracy of the baselines


@dataclass(frozen=True)
class World:
    """How grids are drawn. Spreads in points; runs differ by `runs` (times `uneven` on all hosts but the first).

    `examples` test examples, 0 for accuracies without test-set noise. `swing` is how far a test example's own gain
    lies from the mean gain, `origin` what an origin's run adds to all its ports of one seed.
    """

    seeds: int = 5
    origins: int = 4
    hosts: int = 1
    runs: float = 4.0
    uneven: float = 1.0
    between: float = 3.0  # spread of the hosts' own gains around GAIN, which are fixed
    examples: int = 0
    swing: float = 0.0
    origin: float = 0.0
    shared: bool = True  # one baseline for all origins
    gain: float = GAIN


SETTINGS = {
    "one direction": World(origins=1),
    "baseline shared by 4 origins": World(),
    "same, binomial test set of 400": World(examples=400),
    "same, examples differ in gain": World(examples=400, swing=25.0, runs=1.0),
    "3 hosts x 4 origins": World(hosts=3),
    "same, one host has 5 x the spread": World(hosts=3, runs=5.0, uneven=0.2),
    "8 hosts, a baseline each": World(hosts=8, origins=1),
    "8 hosts, each own, binomial": World(hosts=8, origins=1, examples=400),
    "origins' runs shared by 3 hosts": World(hosts=3, origin=4.0),
}


def draw(world: World, grids: int, random: np.random.Generator) -> tuple[pd.DataFrame, dict[tuple[str, int], np.ndarray]]:
    """`grids` independent grids as one frame of cells, each grid a budget of its own, and which examples are right."""
    shape = (grids, world.hosts, world.origins, world.seeds)
    spread = world.runs / 100 * np.where(np.arange(world.hosts) == 0, 1.0, world.uneven)[:, None, None]
    own = world.between / 100 * np.linspace(-1, 1, world.hosts)[:, None, None] if world.hosts > 1 else 0.0
    base = LEVEL + spread * random.normal(size=shape)
    if world.shared:
        base[:] = base[:, :, :1]
    arm = LEVEL + world.gain / 100 + own + spread * random.normal(size=shape)
    arm = arm + world.origin / 100 * random.normal(size=(grids, 1, world.origins, world.seeds))
    rows, answers = [], {}
    for grid, host, origin, seed in itertools.product(*map(range, shape)):
        here = (grid, host, origin, seed)
        baseline = f"b{host}.{0 if world.shared else origin}.{seed}"
        for init, run, value in (("ported", f"a{host}.{origin}.{seed}", arm[here]), ("scratch", baseline, base[here])):
            rows.append(("lora", f"o{origin}", f"h{host}", "same", "d", "d", init, "pad", seed, grid, run, grid, value, "done"))
    columns = ["method", "origin", "receiving", "relation", "origin_data", "data", "init", "port", "seed", "budget",
               "run_id", "mark", "value", "status"]
    cells = pd.DataFrame(rows, columns=columns)
    if world.examples:
        answers = _answers(cells, world, random)
        cells["value"] = [answers[key].mean() for key in zip(cells["run_id"], cells["mark"], strict=True)]
    return cells, answers


def _answers(cells: pd.DataFrame, world: World, random: np.random.Generator) -> dict[tuple[str, int], np.ndarray]:
    """Right or wrong on every example: a new test set for every grid."""
    found = {}
    for grid, own in cells.groupby("budget"):
        hard = random.uniform(-0.1, 0.1, world.examples)
        swing = world.swing / 100 * random.choice([-1.0, 1.0], world.examples)
        for run, init, value in own[["run_id", "init", "value"]].drop_duplicates("run_id").itertuples(index=False):
            chance = value + hard + (swing / 2 if init == "ported" else -swing / 2)
            found[run, grid] = random.random(world.examples) < chance
    return found


def coverage(world: World, grids: int, seed: int = 0, blocks: str = "run") -> tuple[float, float]:
    """How often the interval of the pooled comparison holds the gain, and its mean width in points."""
    cells, answers = draw(world, grids, np.random.default_rng(seed))
    found = compare(cells, ["budget"], answers or None, blocks=blocks)
    held = (found["low"] <= world.gain) & (world.gain <= found["high"])
    return float(held.mean()), float((found["high"] - found["low"]).mean())


def family_errors(world: World, grids: int, family: int, seed: int = 0) -> float:
    """Share of null families (`family` comparisons each) with any p below 5 % after Holm."""
    cells, answers = draw(replace(world, gain=0.0, between=0.0), grids * family, np.random.default_rng(seed))
    p = compare(cells, ["budget"], answers or None)["p"].to_numpy().reshape(grids, family)
    return float(np.mean([holm(row).min() <= 0.05 for row in p]))


def bootstrap_coverage(seeds: int, tasks: int, grids: int, fewer: int) -> float:
    """How often the bootstrap interval holds the interquartile mean of normal scores, all tasks alike."""
    random = np.random.default_rng(0)
    held = []
    for _ in range(grids):
        found = bootstrap(iqm, random.normal(size=(seeds, tasks)), fewer=fewer)
        held.append(found.low <= 0.0 <= found.high)
    return float(np.mean(held))


def main(grids: int = 1000) -> None:
    """Write the coverage of every setting, the error rate of null families, and the bootstrap's coverage."""
    _coverages(grids)
    for seeds in (3, 5, 10):
        rate = family_errors(replace(SETTINGS["3 hosts x 4 origins"], seeds=seeds), grids // 4, 12)
        sys.stdout.write(f"null families of 12, {seeds} seeds: {rate:.1%} with a p below 5 % after Holm\n")
    for seeds, fewer in itertools.product((3, 5, 10), (0, 1)):
        found = [bootstrap_coverage(seeds, tasks, grids, fewer) for tasks in (1, 8)]
        sys.stdout.write(f"bootstrap of the IQM, {seeds} seeds, n - {fewer} drawn: 1 task {found[0]:.1%}, 8 {found[1]:.1%}\n")


def _coverages(grids: int) -> None:
    for name, world in SETTINGS.items():
        for seeds in (3, 5, 10):
            held, width = coverage(replace(world, seeds=seeds), grids)
            line = f"{name:36} {seeds:2} seeds  {held:6.1%}  width {width:5.2f}"
            if world.origin:
                line += "  by seed {:6.1%}  width {:5.2f}".format(*coverage(replace(world, seeds=seeds), grids, blocks="seed"))
            sys.stdout.write(line + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
