"""The configuration as values: conf/config.yaml and its groups, with the type and range of every key."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, PositiveFloat

from portability.core.errors import validate_choice
from portability.core.schema import Axis, Count, Name
from portability.core.specs import Cell, EvalSpec, LabelWords, Protocol, Template
from portability.planning.study import EngineConf, TrackingConf

Catalogue = dict[str, dict[str, Any] | None]  # name to what a file of the group says
COLUMNS = [column.name for column in fields(Cell)]
PLACE = [name for name in COLUMNS if name not in ("run_id", "mark", "native_id", "bare_id", "origin_data")]


def _folder_name(name: str) -> str:
    if name in ("", "..") or Path(name).name != name or not name.isprintable():
        raise ValueError("must be the name of one folder, without slashes (results says where)")
    return name


def _only(value: Any) -> dict[str, list[Any]]:
    if not isinstance(value, Mapping | None):
        raise ValueError("must map columns of a cell to values, as in 'only={method: lora, seed: [0, 1]}'")
    wanted = (value or {}).items()
    return {validate_choice(str(key), COLUMNS, "column in only"): _listed(names) for key, names in wanted}


def _exclude(value: Any) -> dict[str, list[str]]:
    if not isinstance(value, Mapping) or not value:
        raise ValueError("must map columns of a cell to values, as in "
                         "'grid.exclude=[{port: random, budget: [50, 200]}]'")
    return {validate_choice(str(key), PLACE, "column in grid.exclude"): [str(one) for one in _listed(names)]
            for key, names in value.items()}


def _shard(value: Any) -> tuple[int, int]:
    given = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", str(value or "1/1"))
    if given is None or int(given[1]) > int(given[2]):
        raise ValueError("must be i/n with i from 1 to n, as in shard=2/3")
    return int(given[1]), int(given[2])


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


@dataclass(frozen=True)
class Tried:
    """Hosts and methods for which learning rates and budgets were chosen on validation data."""

    hosts: list[Name] = field(default_factory=list)
    methods: list[Name] = field(default_factory=list)


@dataclass(frozen=True)
class HostSetConf:
    """Who plays the roles: a file of conf/host_set."""

    name: Name
    roles: dict[str, Name | None]  # to a host
    sets: dict[str, Name | None]  # role to data set
    study_data: list[Name]
    budgets: list[int]
    lineages: list[Axis[Name]] = field(default_factory=list)  # hosts whose weights stem from each other's
    tried: Tried = field(default_factory=Tried)


@dataclass(frozen=True)
class OriginConf:
    """Where the grid names no pairs, the origin host; and an adapter's folder that stands for its module."""

    host: Name | None
    module: str | None


@dataclass(frozen=True)
class TaskConf:
    """How texts are asked about, as of `TaskSpec`; what is None follows from the hosts (defaults.question).

    Attributes:
        by_family: kind of host (`architectures.Family.kind`) -> the template for texts, and for pairs.
    """

    template: Template | None
    label_words: LabelWords | None
    max_length: int
    by_family: dict[Literal["encoder", "seq2seq", "decoder"], tuple[Template, Template]]


@dataclass(frozen=True)
class GridConf:
    """The axes."""

    pairs: list[tuple[Name, Name]] | None
    data: Annotated[Axis[Name | None], BeforeValidator(_listed)]
    relations: dict[str, Name | None]
    study_data: Axis[Name] | None
    overlap: Literal["drop", "keep"]
    inits: Axis[Name]
    ports: Axis[Name]
    seeds: Axis[int]
    budgets: Axis[Count]
    origin_updates: Count | None
    rates: Axis[PositiveFloat]
    origin_seeds: Literal["same", "other"]
    train_examples: Count | None = None
    exclude: list[Annotated[dict[str, list], BeforeValidator(_exclude)]] = field(default_factory=list)


@dataclass(frozen=True)
class Config:
    """All keys; entries of the catalogues (method, host, data, init, port) are checked when chosen."""

    study: Annotated[Name, AfterValidator(_folder_name)]
    mode: Literal["run", "plan", "status"]
    only: Annotated[dict[str, list], BeforeValidator(_only)]
    shard: Annotated[tuple[int, int], BeforeValidator(_shard)]
    retry: Literal["died", "failed"]
    yes: bool
    similarity: bool
    results: str
    host_root: str
    data_root: str
    origin: OriginConf
    receiving: Name
    grid: GridConf
    task: TaskConf
    train: Protocol
    eval: EvalSpec
    precision: Literal["fp32", "bf16"]
    head: Literal["shared", "fresh"]
    tracking: TrackingConf
    engine: EngineConf
    host_set: HostSetConf
    primary: list[Any]
    primary_metric: str | None
    known_methods: list[str]
    host: Catalogue
    data: Catalogue
    init: Catalogue
    port: Catalogue
    method: dict[str, dict[str, Any]] = field(default_factory=dict)


KEYS = tuple(key.name for key in fields(Config))
