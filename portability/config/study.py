"""The one place where YAML becomes values; with commandline.py the only code that knows Hydra."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from portability.core.architectures import FAMILIES
from portability.core.contrasts import PAIRS, Contrast, declared, pair_kind
from portability.core.errors import UserError, choose
from portability.core.measures import metric_names, name_of
from portability.core.specs import (
    BARE,
    FROM_EXTRACTION,
    KINDS,
    MATCHED,
    METRICS,
    PISSA,
    AnswerSpec,
    EvalSpec,
    HostSpec,
    InitSpec,
    MethodSpec,
    PortSpec,
    TaskSpec,
    TrainSpec,
)
from portability.core.typed import build, distinct, mapping, typed, whole
from portability.data.sources import answer_spec
from portability.data.splits import DataSource, StudyData, data_spec, study_data
from portability.hosts.devices import DEVICES
from portability.hosts.sources import HostSource, describe
from portability.planning.plan import Grid, check_relations, origins, rated
from portability.planning.selection import part_of
from portability.planning.study import EngineConf, Study, TrackingConf

MODES = ("run", "plan", "status")
ENGINES = ("local", "ray", "slurm")  # modules of portability.execution.engines, files of conf/engine
PRECISIONS = ("fp32", "bf16")
KEYS = ("method", "known_methods", "engine", "study", "mode", "only", "shard", "retry", "similarity", "yes", "results",
        "host_root", "data_root", "origin", "receiving", "grid", "task", "train", "eval", "precision", "head", "tracking",
        "host_set", "host", "data", "init", "port", "primary")  # all of a configuration: conf/config.yaml and its groups
LONGEST_TAIL = 0.5  # our choice: at most the second half of a mark's updates
SIZES = {"r", "bottleneck", "prefix_length", "phm_dim"}  # settings of methods that are sizes, whatever the library
UPDATES = " of updates from 1 on (0 comes on top)"


@dataclass(frozen=True)
class HostSetConf:
    """Who plays the roles: a file of conf/host_set."""

    name: str
    roles: dict  # role -> host, or None
    sets: dict  # role -> data set, or None
    study_data: list
    budgets: list
    lineages: list = field(default_factory=list)  # lists of roles or hosts whose weights stem from each other's


@dataclass(frozen=True)
class GridConf:
    """The axes as conf/config.yaml states them."""

    pairs: list | None
    data: str | list | None
    relations: dict
    study_data: list | None
    overlap: str
    inits: list
    ports: list
    seeds: list
    budgets: list
    origin_updates: int | None
    rates: list
    origin_seeds: str


@dataclass(frozen=True)
class TrainConf:
    """TrainSpec without the updates, which follow from the budgets."""

    batch_size: int
    warmup: int
    weight_decay: float
    betas: list
    eps: float
    clip: float
    tail: float
    bucket_batches: int
    head_learning_rate: float


def to_study(cfg: DictConfig) -> Study:
    """Check the composed configuration and describe hosts and data (no torch, nothing is loaded).

    Raises:
        UserError: anything in the configuration that a user can put right.
    """
    try:
        raw = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError(f"configuration: {str(error).splitlines()[0]}") from error
    assert isinstance(raw, dict)
    for key in raw:
        choose(str(key), KEYS, "key")
    if missing := [key for key in KEYS if key not in raw and key != "method"]:
        raise UserError(f"{missing[0]} is missing")
    _check_finite({key: value for key, value in raw.items() if key != "study"}, "")  # "nan" is a name there
    hosts = build(HostSetConf, raw["host_set"], "host_set")
    conf = build(GridConf, raw["grid"], "grid")
    if conf.data is None or None in conf.relations.values():
        raise UserError(f"host set '{hosts.name}' names no data set for one of this sweep's relations; name one "
                        "(host_set.sets.ROLE=SET) or leave the relation out (grid.relations)")
    names = conf.study_data if conf.study_data is not None else dict.fromkeys([*hosts.study_data, *_sets(conf)[2]])
    sources = [build(DataSource, {"name": name} | _known(raw, "data", name), f"data.{name}")
               for name in distinct(list(names), "grid.study_data")]
    choose(conf.overlap, ("drop", "keep"), "grid.overlap")
    data = study_data(sources, conf.overlap)
    grid = _grid(raw, conf, data)
    kinds = _kinds(grid, hosts)
    return Study(
        name=_study_name(str(raw["study"])), mode=choose(str(raw["mode"]), MODES, "mode"),
        results=Path(typed(raw["results"], str, "results")).expanduser(),
        grid=grid, sources=sources, data=data, overlap=conf.overlap, similarity=typed(raw["similarity"], bool, "similarity"),
        engine=_engine(raw["engine"]), tracking=build(TrackingConf, raw["tracking"], "tracking"), part=part_of(raw),
        primary=_primary(raw["primary"], grid, kinds, hosts), kinds=kinds,
    )


def _kinds(grid: Grid, hosts: HostSetConf) -> list[tuple[str, str, str]]:
    lineages = [[hosts.roles.get(name) or name for name in distinct(names, "host_set.lineages")] for names in hosts.lineages]
    return [(one.name, other.name, pair_kind(one, other, lineages)) for one, other in grid.pairs]


def _primary(value: Any, grid: Grid, kinds: Sequence[tuple[str, str, str]], hosts: HostSetConf) -> list[Contrast]:
    methods = [rated(method, rate) for method, rate in product(grid.methods, grid.rates)]
    axes = product(methods, kinds, grid.relations, grid.data, grid.ports)
    places = [{"method": method.name, "origin": origin, "receiving": receiving, "relation": relation, "data": data.name,
               "port": port.name, PAIRS: kind} for method, (origin, receiving, kind), relation, data, port in axes]
    budgets = {init.name: [*([] if init.kind == MATCHED else [0]), *grid.budgets] for init in grid.inits} | {BARE: [0]}
    try:
        found = declared(value, [init.name for init in grid.inits], budgets, places, hosts.roles)
        for contrast in found if len(grid.rates) > 1 else []:
            if any("method" not in side for side in contrast.sides):
                raise UserError(f"primary '{contrast.name}' would pool the rates of grid.rates; name its methods: "
                                f"{', '.join(method.name for method in methods)}")
        return found
    except UserError as error:
        raise UserError(f"{error} (where a sweep's grid is narrowed, primary=[] declares no contrast)") from error


def _study_name(name: str) -> str:
    """Refuse names that are not those of a folder right below the results, where alone studies are looked for."""
    if name in ("", "..") or Path(name).name != name or not name.isprintable():
        raise UserError(f"study must be the name of one folder, without slashes (results says where), got {name!r}")
    return name


def _check_finite(value: Any, where: str) -> None:
    """Refuse numbers that are none, wherever they stand: nothing can be trained, or named, by them."""
    if isinstance(value, dict | list):
        for key, below in value.items() if isinstance(value, dict) else enumerate(value):
            _check_finite(below, f"{where}.{key}" if where else str(key))
    elif isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{where} must be a finite number, got {value}")


def _engine(value: Any) -> EngineConf:
    engine = build(EngineConf, value, "engine")
    choose(engine.device, DEVICES, "engine.device")
    choose(engine.kind, ENGINES, "engine.kind")
    for key, number, least in (("workers", engine.workers, 1), ("stack", engine.stack, 1),
                               ("checkpoint_seconds", engine.checkpoint_seconds, 0)):
        if number is not None and number < least:
            raise UserError(f"engine.{key} must be at least {least}, got {number}")
    if engine.timeout_minutes is not None and engine.timeout_minutes <= 0:
        raise UserError(f"engine.timeout_minutes must be above 0, got {engine.timeout_minutes}")
    return engine


def _known(raw: Mapping[str, Any], group: str, name: str) -> dict[str, Any]:
    catalogue = raw.get(group) or {}
    choose(name, catalogue, group)
    return mapping(catalogue[name] or {}, f"{group}.{name}")


def _grid(raw: Mapping[str, Any], conf: GridConf, data: StudyData) -> Grid:
    evaluation = _evaluation(raw["eval"])
    received, relations, used = _sets(conf)
    for name in used:
        choose(name, data.sources, "data set of grid.study_data")
    train = build(TrainConf, raw["train"], "train")
    budgets = sorted(whole(conf.budgets, "grid.budgets", 1, UPDATES))
    _check_train(train)
    if conf.origin_updates is not None:
        whole([conf.origin_updates], "grid.origin_updates", 1, UPDATES)
    pairs = [[_host(raw, name) for name in _pair(pair)] for pair in conf.pairs or [[raw["origin"], raw["receiving"]]]]
    hosts = {name: describe(build(HostSource, {"name": name} | _known(raw, "host", name), f"host.{name}"))
             for name in dict.fromkeys(name for pair in pairs for name in pair)}
    specs = {name: data_spec(data, name, evaluation) for name in used}
    task = TaskSpec(**_task(raw["task"]))
    answers = {name: spec for name in used if (spec := answer_spec(data.sources[name], task.max_length)) is not None}
    _check_tasks(hosts.values(), answers)
    _check_metrics(evaluation, received, answers)
    methods, inits = _methods(raw), [_init(raw, name) for name in distinct(conf.inits, "grid.inits")]
    _check_extractions(methods, inits)
    if any(init.kind in FROM_EXTRACTION for init in inits):
        check_relations(relations, received)
    return Grid(
        methods=methods,
        pairs=[(hosts[origin], hosts[receiving]) for origin, receiving in pairs],
        relations={name: {own: specs[source] for own, source in sources.items()} for name, sources in relations.items()},
        data=[specs[name] for name in received],
        inits=inits,
        ports=[build(PortSpec, {"name": name} | _known(raw, "port", name), f"port.{name}")
               for name in distinct(conf.ports, "grid.ports")],
        seeds=whole(conf.seeds, "grid.seeds", None),
        budgets=budgets,
        origin_updates=max(budgets) if conf.origin_updates is None else conf.origin_updates,
        task=task,
        answers=answers,
        train=TrainSpec(updates=max(budgets), **vars(train) | {"betas": tuple(train.betas)}),
        eval=evaluation,
        precision=choose(str(raw["precision"]), PRECISIONS, "precision"),
        head=choose(str(raw["head"]), ("shared", "fresh"), "head"),
        rates=_rates(conf.rates),
        origin_seeds=choose(conf.origin_seeds, ("same", "other"), "grid.origin_seeds"),
    )


def _rates(values: Sequence[Any]) -> list[float]:
    for value in distinct(values, "grid.rates"):
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
            raise UserError(f"grid.rates must be factors above 0 on the methods' learning rates, got {value!r}")
    return [float(value) for value in values]
def _sets(conf: GridConf) -> tuple[list[str], dict[str, dict[str, str]], list[str]]:
    """The receiving sets, the origins' sets by relation and receiving set, and all of them, each once."""
    received = [str(name) for name in distinct(conf.data if isinstance(conf.data, list) else [conf.data], "grid.data")]
    relations = {name: origins(name, str(value), received) for name, value in conf.relations.items()}
    return received, relations, list(dict.fromkeys([*received, *(one for own in relations.values() for one in own.values())]))


def _check_tasks(hosts: Iterable[HostSpec], answers: Mapping[str, AnswerSpec]) -> None:
    """Refuse encoders where answers are to be written or rated."""
    encoders = [host.name for host in hosts if FAMILIES[host.shape.family].scoring == "head"]
    if encoders and answers:
        raise UserError(f"host '{encoders[0]}' is an encoder and can neither write an answer nor rate choices token by token, "
                        f"as data set '{next(iter(answers))}' asks for; choose a gpt2, llama or t5 host")


def _evaluation(value: Mapping[str, Any]) -> EvalSpec:
    asked = typed(value.get("metrics", list(METRICS)), list, "eval.metrics")
    evaluation = build(EvalSpec, {**value, "metrics": metric_names(asked)}, "eval")
    _at_least(1, evaluation.batch_size, "eval.batch_size")
    return evaluation


def _check_metrics(evaluation: EvalSpec, received: Sequence[str], answers: Mapping[str, AnswerSpec]) -> None:
    """Refuse metrics of labels where no set has labels."""
    if evaluation.metrics != METRICS and all(name in answers for name in received):
        raise UserError(f"eval.metrics ({', '.join(map(name_of, evaluation.metrics))}) are of texts with labels, and no set of "
                        f"grid.data has them: answers to prompts are measured as data.{received[0]}.answers.scoring says; "
                        "leave eval.metrics out")


def _host(raw: Mapping[str, Any], name: str) -> str:
    """A host by its own name, or by its role in the host set."""
    roles = raw["host_set"]["roles"]
    if name in roles and roles[name] is None:
        held = [role for role, host in roles.items() if host is not None]
        raise UserError(f"host set '{raw['host_set']['name']}' has no {name}: narrow grid.pairs to its roles "
                        f"({', '.join(held)}), or fill it with host_set.roles.{name}=HOST")
    return str(roles.get(name, name))


def _methods(raw: Mapping[str, Any]) -> list[MethodSpec]:
    """The chosen methods. A sweep may set a rate for a method that the command line left out: that entry is passed over."""
    if not raw.get("method"):
        raise UserError(f"no method is chosen; choose of: {', '.join(raw['known_methods'])}")
    for name in raw["method"]:
        choose(name, raw["known_methods"], "method")
    entries = {name: mapping(value, f"method.{name}") for name, value in raw["method"].items()}
    chosen = {name: value for name, value in entries.items() if "library" in value}
    methods = [build(MethodSpec, {"name": name, **value}, f"method.{name}") for name, value in chosen.items()]
    for method in methods:
        _at_least(0, method.learning_rate, f"method.{method.name}.learning_rate")
        for key in SIZES & method.settings.keys():
            whole([method.settings[key]], f"method.{method.name}.settings.{key}", 1, " from 1 on")
    return methods


def _init(raw: Mapping[str, Any], name: str) -> InitSpec:
    spec = build(InitSpec, {"name": name} | _known(raw, "init", name), f"init.{name}")
    choose(spec.kind, [kind for kind in KINDS if kind != "bare"], f"kind of init '{name}'")
    return spec


def _check_extractions(methods: Sequence[MethodSpec], inits: Sequence[InitSpec]) -> None:
    """Refuse what an extraction could not be made with."""
    extracted = [init for init in inits if init.kind in (*FROM_EXTRACTION, PISSA)]
    if extracted:
        from portability.inits.seed_examples import extraction_options, seed_count  # with torch, which other plans do without

        for init in extracted:
            seed_count(init)
            for method in methods:
                extraction_options(method, init)


def _task(value: Any) -> dict[str, Any]:
    value = mapping(value, "task")
    task = build(TaskSpec, {**value, "label_words": tuple(value.get("label_words", ()))}, "task")
    if task.template.count("{text}") != 1:
        raise UserError(f"task.template must hold {{text}} exactly once, got {task.template!r}")
    if len(task.label_words) != 2:
        raise UserError(f"task.label_words must be two words (negative, positive), got {list(task.label_words)}")
    return vars(task)


def _pair(pair: Any) -> tuple[str, str]:
    if not isinstance(pair, list) or len(pair) != 2:
        raise UserError(f"grid.pairs must hold [origin, receiving] pairs, got {pair!r}")
    return str(pair[0]), str(pair[1])


def _at_least(low: float, value: float, where: str) -> None:
    if value < low:
        raise UserError(f"{where} must be at least {low}, got {value}")


def _check_train(train: TrainConf) -> None:
    limits = {"batch_size": 1, "warmup": 0, "weight_decay": 0, "eps": 0, "clip": 0, "tail": 0, "bucket_batches": 1,
              "head_learning_rate": 0}
    for key, low in limits.items():
        _at_least(low, getattr(train, key), f"train.{key}")
    if train.tail > LONGEST_TAIL:
        raise UserError(f"train.tail must be at most {LONGEST_TAIL}, got {train.tail}: a mark must not average its first "
                        "updates")
