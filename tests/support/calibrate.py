"""How often intervals hold the truth, and how often a family of primary contrasts errs: `python
tests/support/calibrate.py`.

Grids are drawn with a new test set each: 4 methods x 4 directions x 2 relations x 3 inits; a scratch run is
shared by the directions into a host and by the relations, and is the origin of directions out of it. Nothing
is better than anything, so the truth of every contrast is 0. As a script it draws 4,000 grids of every
setting at 5 and 10 seeds: ten minutes on one core.
"""

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

if __name__ == "__main__":
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from scipy import special

from portability.analysis.stats.exchange import exchange, rotations
from portability.analysis.stats.intervals import ALPHA, spread

# hosts; the first two share a lineage, the others differ in size
DIRECTIONS = ((0, 1), (1, 0), (0, 2), (2, 0))
METHODS, HOSTS = 4, 3
# method, direction, relation (0: the same data)
CELLS = list(product(range(METHODS), range(len(DIRECTIONS)), range(2)))
SCRATCH, ARMS = METHODS * HOSTS, len(CELLS)  # runs of scratch, of ported and of sampled each
RUNS = SCRATCH + 2 * ARMS
CHUNK = 20  # grids drawn together: 100 MB at 10 seeds


@dataclass(frozen=True)
class World:
    """How grids are drawn. Spreads in points, of the difference of two inits where they are of a seed or an
    example.

    `runs`: of runs by themselves; `seed`: what a seed does to an init everywhere; `direction`, `method`: what
    it does to it there only; `origin`: what an origin's run gives to all that is ported, or sampled, from it
    (the same run is the baseline of another direction); `items`: how far a test example's own gain lies from
    the mean gain, the same for all runs; `bimodal`: runs take off or stay at chance, and all of this moves
    how often.
    """

    seeds: int = 5
    runs: float = 4.0
    seed: float = 0.0
    direction: float = 0.0
    method: float = 0.0
    origin: float = 0.0
    items: float = 0.0
    bimodal: bool = False
    examples: int = 400


ALL = World(seed=2.5, direction=2.5, method=2.5, origin=4.0, items=8.0)
SETTINGS = {
    "runs alone": World(), "seed effects, 2.5": World(seed=2.5), "seed effects, 4": World(seed=4.0),
    "seed x direction, 4": World(direction=4.0), "seed x method, 4": World(method=4.0),
    "origins, 4": World(origin=4.0),
    "test items, 8": World(items=8.0), "test items, 25": World(items=25.0), "all together": ALL,
    "all, bimodal": replace(ALL, bimodal=True),
}


def plain(baseline: str, held: np.ndarray) -> np.ndarray:
    """(RUNS,) weights of ported minus a baseline over the cells that are held, (CELLS,) of bool."""
    weights = np.zeros(RUNS, np.float32)
    for i in np.flatnonzero(held):
        method, direction, _ = CELLS[i]
        base = method * HOSTS + DIRECTIONS[direction][1] if baseline == "scratch" else SCRATCH + ARMS + i
        weights[SCRATCH + i] += 1 / held.sum()
        weights[base] -= 1 / held.sum()
    return weights


LINEAGE, SAME = np.array([cell[1] < 2 for cell in CELLS]), np.array([cell[2] == 0 for cell in CELLS])
EVERY = np.ones(ARMS, bool)
FAMILY = {  # eight contrasts, as a sweep may declare them
    "ported - scratch": plain("scratch", EVERY), "ported - sampled": plain("sampled", EVERY),
    "lineage, scratch": plain("scratch", LINEAGE), "size, scratch": plain("scratch", ~LINEAGE),
    "lineage, sampled": plain("sampled", LINEAGE), "size, sampled": plain("sampled", ~LINEAGE),
    "lineage - size": plain("scratch", LINEAGE) - plain("scratch", ~LINEAGE),
    "same - different": plain("sampled", SAME) - plain("sampled", ~SAME),
}
WEIGHTS = np.stack(list(FAMILY.values()))


def levels(world: World, grids: int, random: np.random.Generator) -> np.ndarray:
    """(grids, seeds, RUNS) the chance of a run to get a middling test example right."""

    def normal(*shape: int) -> np.ndarray:
        return random.standard_normal((grids, world.seeds, *shape), dtype=np.float32)

    half = np.float32(np.sqrt(0.5))
    # other: trained on the other data
    scratch, other = (world.runs * normal(METHODS, HOSTS) for _ in range(2))
    seed, method = world.seed * half * normal(3), world.method * half * normal(3, METHODS)
    direction = world.direction * half * normal(3, len(DIRECTIONS))
    level = np.empty((grids, world.seeds, RUNS), np.float32)
    for k, host in product(range(METHODS), range(HOSTS)):
        level[..., k * HOSTS + host] = scratch[..., k, host] + seed[..., 0] + method[..., 0,
                                                                                     k] + direction[..., 0,
                                                                                                    host]
    own = world.runs * normal(2, ARMS)
    for i, (k, d, relation) in enumerate(CELLS):
        origin = (other if relation else scratch)[..., k, DIRECTIONS[d][0]] * (world.origin / world.runs)
        for arm in range(2):
            of_seed = seed[..., 1 + arm] + method[..., 1 + arm, k] + direction[..., 1 + arm, d]
            level[..., SCRATCH + arm * ARMS + i] = own[..., arm, i] + origin + of_seed
    if not world.bimodal:
        return 0.6 + level / 100
    up = random.random(level.shape, dtype=np.float32) < special.ndtr(0.5 + level / 8)
    return np.where(up, 0.8, 0.5) + level / 400


def draw(world: World, grids: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Grids with a new test set each: (grids, family, seeds, examples) differences and (grids, seeds, RUNS)
    scores, points."""
    hard = random.uniform(-0.15, 0.15, (grids, 1, 1, world.examples)).astype(np.float32)
    chance = levels(world, grids, random)[..., None] + hard
    if world.items:
        own = world.items / 100 * np.sqrt(0.5) * random.standard_normal((grids, 1, 3, world.examples),
                                                                        dtype=np.float32)
        chance += np.repeat(own, (SCRATCH, ARMS, ARMS), axis=2)
    drawn = np.frombuffer(random.bytes(2 * chance.size), np.uint16).reshape(chance.shape)
    right = (drawn < np.clip(65536 * chance, 0, 65535)).astype(np.float32)
    return 100 * np.matmul(WEIGHTS, right).swapaxes(1, 2), 100 * right.mean(axis=-1)


def simulate(world: World, grids: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray, float, np.ndarray]:
    """Of each contrast how often its interval holds 0 and its mean width in points, (family,) each; how often
    any of the family is significant after Holm; how often the exchange of labels alone has p <= 5 % for each
    of the first two contrasts, on the first tenth of the grids."""
    random = np.random.default_rng(seed)
    held, widths, wrong, exchanged = [], [], [], []
    for done in range(0, grids, CHUNK):
        each, scores = draw(world, CHUNK, random)
        means = each.mean(axis=-1)
        found, middle = spread(means, [each]), np.abs(means.mean(axis=-1))
        held.append(middle <= found.half(ALPHA))
        widths.append(2 * found.half(ALPHA))
        # the first step of Holm's procedure
        wrong.append((middle > found.half(ALPHA / len(FAMILY))).any(axis=1))
        if done < grids / 10:
            exchanged += [[p <= ALPHA for p in _exchanges(grid)] for grid in scores]
    shares = [np.concatenate(parts).mean(axis=0) for parts in (held, widths, wrong)]
    return shares[0], shares[1], float(shares[2]), np.mean(exchanged, axis=0)


def _exchanges(scores: np.ndarray) -> Iterator[float]:
    """The p by exchange of ported against scratch and against sampled, of one grid's (seeds, RUNS) scores."""
    ported, sampled = scores[:, SCRATCH : SCRATCH + ARMS], scores[:, SCRATCH + ARMS :]
    shared = np.array([method * HOSTS + DIRECTIONS[direction][1] for method, direction, _ in CELLS])
    weights = np.full(ARMS, 1 / ARMS)
    for differences, runs in ((ported - scores[:, shared], shared), (ported - sampled, np.arange(ARMS))):
        yield exchange([rotations(own, runs, weights) for own in differences]).p


def main(grids: int = 4000, *seeds: int) -> None:
    """Write the table of all settings, in %: intervals that hold the truth, families with an error, exchanges
    with p <= 5 %."""
    sys.stdout.write("setting, seeds: holds, against scratch / sampled [least, most of 8] | width | family "
                     "errs | exchange\n")
    for (name, world), count in product(SETTINGS.items(), seeds or (5, 10)):
        held, widths, wrong, exchanged = simulate(replace(world, seeds=count), grids)
        first, second, least, most = (f"{100 * share:.1f}" for share in (held[0], held[1], held.min(),
                                                                         held.max()))
        line = (f"{name:20} {count:3}: {first} / {second} [{least}, {most}] | {widths[0]:5.2f} | "
                f"{100 * wrong:.1f} | ")
        sys.stdout.write(line + " / ".join(f"{100 * share:.1f}" for share in exchanged) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
