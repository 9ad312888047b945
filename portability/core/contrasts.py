"""Primary contrasts: the few comparisons that a sweep declares before its runs. All else that a study shows
is exploratory.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, product
from typing import Any

from portability.core.errors import UserError, validate_choice
from portability.core.schema import build
from portability.core.specs import BARE, HostSpec

MOST = 8  # contrasts of a study: Holm's correction makes every further one dearer for all (our choice)
PAIRS = "pairs"  # narrows to pairs of hosts of one kind (`pair_kind`)
LINEAGE, SIZE, APART, ITSELF = "lineage", "size", "apart", "self"
Narrowing = Mapping[str, list[str]]  # coordinate to the names that it is narrowed to
Place = Mapping[str, str]  # coordinate, and PAIRS, to the name that a cell has there


@dataclass(frozen=True)
class Contrast:
    """Arm minus baseline after `budget` updates, over the cells of `of`; less the same over the cells of
    `less`, where given.

    `of` and `less` map a coordinate of a cell (method, origin, receiving, relation, data, port) or PAIRS to a
    name or a list of names; what they leave out is not narrowed.
    """

    name: str
    arm: str
    baseline: str
    budget: int
    of: dict = field(default_factory=dict)
    less: dict | None = None

    @property
    def sides(self) -> list[dict]:
        """What each side narrows to: one, or two whose difference is taken."""
        return [self.of] if self.less is None else [self.of, self.less]


def selects(narrowed: Mapping[str, list[str]], place: Place) -> bool:
    """Whether a narrowing holds a place.

    Example:
        >>> place = {"method": "lora", "pairs": "size"}
        >>> selects({"method": ["lora"]}, place), selects({"pairs": ["lineage"]}, place)
        (True, False)
    """
    return all(place[key] in names for key, names in narrowed.items())


def pair_kind(one: HostSpec, other: HostSpec, lineages: Sequence[Sequence[str]]) -> str:
    """What relates two hosts: "self", "lineage" (weights of one lineage), "size" (other shapes), or "apart"
    (only the shape).

    Args:
        lineages: names of hosts whose weights stem from each other's, as the host set says.
    """
    if one.name == other.name:
        return ITSELF
    if any({one.name, other.name} <= set(names) for names in lineages):
        return LINEAGE
    return SIZE if one.shape != other.shape else APART


def declared(
    values: Sequence[Any], budgets: Mapping[str, Sequence[int]], places: Sequence[Place],
    hosts: Mapping[str, str | None],
) -> list[Contrast]:
    """The contrasts of `primary` in the configuration, every name in them held against the grid.

    Args:
        budgets: by init, the bare host among them, the budgets that its cells have, zero-shot included.
        places: of every cell, its coordinates and PAIRS.
        hosts: role to host, for origins and receiving hosts that are named by their role.

    Raises:
        UserError: too many, two of one name, or a name or number that the grid lacks.
    """
    if len(values) > MOST:
        raise UserError(f"primary declares {len(values)} contrasts, and at most {MOST} can be; name fewer")
    found: dict[str, Contrast] = {}
    for i, value in enumerate(values):
        contrast = build(Contrast, value, f"primary[{i}]")
        name, where = contrast.name, f"primary '{contrast.name}'"
        if not name or name in found:
            raise UserError(f"primary[{i}].name must be a name that no other contrast has, got {name!r}")
        validate_choice(contrast.arm, budgets.keys() - {BARE}, f"arm of {where}")
        validate_choice(contrast.baseline, budgets.keys() - {contrast.arm}, f"baseline of {where}")
        for init in (contrast.arm, contrast.baseline):
            if contrast.budget not in budgets[init]:
                raise UserError(f"{where} asks for {init} after {contrast.budget} updates, and the grid has "
                                f"it after {', '.join(map(str, budgets[init]))}; name one of these")
        of, *less = [_narrowed(side, where, places, hosts) for side in contrast.sides]
        if less and any(selects(of, place) and selects(less[0], place) for place in places):
            raise UserError(f"{where} takes the same cells on both sides; narrow `of` or `less` further")
        found[name] = replace(contrast, of=of, less=less[0] if less else None)
    return [*found.values()]


def cut_by(
    contrast: Contrast, places: Sequence[Place], seeds: Sequence[int], exclude: Sequence[Narrowing]
) -> list[Narrowing]:
    """What is left out of a grid so that a contrast has no whole seed; nothing where it has one.

    A seed is whole that has every cell of the arm that any seed has, each with its baseline.

    Args:
        places: as of `declared`.
        exclude: places whose cells are left out, by coordinates, init, seed and budget.
    """
    def cuts(init: str, place: Place, seed: int) -> list[Narrowing]:
        at = {**place, "init": init, "budget": str(contrast.budget), "seed": str(seed)}
        return [out for out in exclude if init != BARE and selects(out, at)]

    def ports(init: str) -> set[str]:
        return {place["port"] for place in places if not all(cuts(init, place, seed) for seed in seeds)}

    def baseline_cuts(place: Place, seed: int) -> list[Narrowing]:
        found = [cuts(contrast.baseline, {**place, "port": port}, seed) for port in names or [place["port"]]]
        return min(found, key=len)

    names = sorted({place["port"] for place in places})  # where none is shared, pairs are matched without
    names = names if ports(contrast.arm).isdisjoint(ports(contrast.baseline)) else []
    found: dict[int, list[Narrowing]] = {seed: [] for seed in seeds}
    for side in contrast.sides if exclude else ():
        own = [place for place in places if selects(side, place)]
        there = [place for place in own if not all(cuts(contrast.arm, place, seed) for seed in seeds)]
        for seed, place in product(seeds, there or own):
            found[seed] += [*cuts(contrast.arm, place, seed), *baseline_cuts(place, seed)]
    every = [*chain.from_iterable(found.values())]
    return [out for out in exclude if out in every] if all(found.values()) else []


def _narrowed(
    value: Mapping[str, Any], where: str, places: Sequence[Place], hosts: Mapping[str, str | None]
) -> dict[str, list[str]]:
    """One side: each coordinate to a list of names that cells of the grid have together."""
    found = {}
    for key, names in value.items():
        validate_choice(str(key), places[0], f"coordinate in {where}")
        found[key] = [str(name) for name in (names if isinstance(names, list) else [names])]
        if key in ("origin", "receiving"):
            found[key] = [hosts.get(name) or name for name in found[key]]
        for name in found[key]:
            validate_choice(name, {place[key] for place in places}, f"{key} of {where}")
    if not any(selects(found, place) for place in places):
        words = ", ".join(f"{key} {' or '.join(names)}" for key, names in found.items())
        raise UserError(f"{where} has no cell: nothing in the grid is {words}")
    return found


def all_alike(manifests: Sequence[Mapping[str, Any]]) -> list[Contrast] | None:
    """The contrasts that every manifest of a study declares; None where they, or the metrics that decide,
    differ (a study then has no primary contrast).
    """
    found = [(facts.get("primary") or [], facts.get("primary_metric")) for facts in manifests]
    return [Contrast(**value) for value in found[0][0]] if all(one == found[0] for one in found) else None


def declared_metric(manifests: Sequence[Mapping[str, Any]]) -> str | None:
    """The metric that decides, as every manifest of a study declares it; None where none does, or they
    differ.

    Example:
        >>> declared_metric([{"primary_metric": "auc"}]), declared_metric([{"primary": []}])
        ('auc', None)
    """
    names = {facts.get("primary_metric") for facts in manifests}
    return names.pop() if len(names) == 1 else None


def kinds(manifests: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], str]:
    """(origin, receiving) to what relates them, as the manifests say; pairs of older ones are not in it."""
    rows = chain.from_iterable(facts.get("pairs") or [] for facts in manifests)
    return {(origin, receiving): kind for origin, receiving, kind in rows}
