"""A study as a command was asked for it: the grid, its data, and how to carry it out."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, NonNegativeFloat, PositiveFloat

from portability.core.architectures import FAMILIES
from portability.core.contrasts import Contrast
from portability.core.schema import Count
from portability.data.splits import DataSource, StudyData
from portability.hosts.devices import DeviceMap
from portability.planning.grid import Grid, rated
from portability.planning.selection import Part


def _device_map(value: Any) -> Any:
    named = isinstance(value, dict) and value and all(isinstance(one, int | str) for one in value.values())
    if value not in (None, "auto") and not named:
        raise ValueError("must be auto, or a device for every module, as in {lm_head: 0}")
    return value


@dataclass(frozen=True)
class EngineConf:
    """How the work is carried out; nothing here changes a result. `options` are the engine's own (see its
    file).
    """

    kind: str  # a name in execution.engines.ENGINES and a file of conf/engine
    device: Literal["auto", "cpu", "cuda"]
    workers: Count | None
    stack: Count | None
    checkpoint_seconds: NonNegativeFloat
    timeout_minutes: PositiveFloat | None  # of one run; a stack may take as many times that
    options: Mapping[str, Any]
    # of hosts too large for one device (hosts/spread.py)
    device_map: Annotated[DeviceMap | None, BeforeValidator(_device_map)] = None


@dataclass(frozen=True)
class TrackingConf:
    """Where runs are logged besides the store."""

    wandb: str
    project: str


@dataclass(frozen=True)
class Study:
    """Everything a command was asked: the grid, its data, and how to carry it out."""

    name: str
    mode: str
    results: Path
    grid: Grid
    sources: Sequence[DataSource]
    data: StudyData
    overlap: str
    engine: EngineConf
    tracking: TrackingConf
    part: Part
    primary: Sequence[Contrast]  # declared before the runs, no part of any run
    primary_metric: str | None  # by which they are decided; None: analysis.load.read chooses
    kinds: Sequence[tuple[str, str, str]]  # of every pair, what relates origin and receiving host
    similarity: bool  # compare the hosts of each pair (portability/execution/host_comparison.py)
    # of every host made by a recipe, what it stems from, the kinds of its changes, and their updates
    derived: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    warnings: Sequence[str] = ()  # sentences that are said before work


def facts(study: Study, sweep: str | None) -> dict[str, Any]:
    """What a manifest says of a study besides its cells."""
    grid = study.grid
    scorings = {FAMILIES[host.shape.family].scoring for pair in grid.pairs for host in pair}
    return {
        "study": study.name,
        "sweep": sweep,
        "overlap": study.overlap,
        "data": [{"name": name, **counts, "eval": min(grid.eval.limit or math.inf, counts[grid.eval.split])}
                 for name, counts in study.data.counts.items()],
        "eval_split": grid.eval.split,
        "head": grid.head if "head" in scorings else "none",
        "origin_updates": grid.origin_updates,
        "origin_seeds": grid.origin_seeds,
        "rates": {rated(method, rate).name: [method.name, rate]
                  for method in grid.methods for rate in grid.rates},
        "task": json.loads(json.dumps(vars(grid.task))),
        "answers": {name: vars(spec) for name, spec in grid.answers.items()},
        **({"tasks": json.loads(json.dumps({name: vars(spec) for name, spec in grid.tasks.items()}))}
           if grid.tasks else {}),
        "pairs": [list(kind) for kind in study.kinds],
        "primary": [asdict(contrast) for contrast in study.primary],
        **({"primary_metric": study.primary_metric} if study.primary_metric else {}),
        **({"derived": dict(study.derived)} if study.derived else {}),
    }
