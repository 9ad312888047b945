"""From the composed configuration to a study: hosts and data are described, nothing is loaded (no torch)."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from itertools import chain, product
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from portability.config.defaults import other_epochs, question, untried
from portability.config.folders import OWN_BASE, base_of, check_external, external
from portability.config.refusals import own_words
from portability.config.schema import Config
from portability.core import specs
from portability.core.architectures import FAMILIES
from portability.core.contrasts import PAIRS, Contrast, cut_by, declared, pair_kind
from portability.core.errors import UserError, validate_choice
from portability.core.init_kinds import INIT_KINDS
from portability.core.measures import DECIDING, metric_names, name_of
from portability.core.schema import build
from portability.data.sources import answer_spec, labels_named, task_spec
from portability.data.splits import DataSource, StudyData, data_spec, study_data
from portability.execution.engines import ENGINES
from portability.hosts.recipes import NotMade, Recipe, kind_of, made, read_recipe
from portability.hosts.sources import HostSource, check_place, describe
from portability.planning.grid import SELF, Grid, check_relations, origins, rated
from portability.planning.plan import plan
from portability.planning.selection import Part
from portability.planning.study import Study
from portability.tracking.runs import MODES

T = TypeVar("T")
Relations = Mapping[str, Mapping[str, str]]  # relation -> receiving set -> set of the origin's training
Kinds = list[tuple[str, str, str]]  # origin, receiving host, and what relates them
SIZES = ("r", "bottleneck", "prefix_length", "phm_dim")  # settings of methods that are sizes


def checked(cfg: DictConfig) -> Config:
    """The composed configuration by its keys, types and ranges.

    Raises:
        UserError: a value that is missing or wrong.
    """
    try:
        raw = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise own_words(error) from error
    assert isinstance(raw, dict)
    _check_finite({key: value for key, value in raw.items() if key != "study"}, "")  # "nan" is a name there
    return build(Config, raw, "")


def to_study(cfg: DictConfig) -> Study:
    """Check the composed configuration and describe hosts and data.

    Raises:
        UserError: anything in the configuration that a user can put right.
    """
    conf = checked(cfg)
    validate_choice(conf.engine.kind, ENGINES, "engine.kind")
    validate_choice(conf.tracking.wandb, MODES, "tracking.wandb")
    received, relations = _sets(conf)
    used = dict.fromkeys([*received, *(name for own in relations.values() for name in own.values())])
    names = conf.grid.study_data or dict.fromkeys([*conf.host_set.study_data, *used])
    sources = [_source(conf, name) for name in names]
    data = study_data(sources, conf.grid.overlap)
    for name in used:
        validate_choice(name, data.sources, "data set of grid.study_data")
    grid = _grid(conf, data, received, relations, used)
    grid = replace(grid, exclude=_excluded(conf, grid))
    _check(grid, relations)
    if grid.exclude and not plan(grid).cells:
        raise UserError("grid.exclude leaves out every cell of the grid; leave fewer out")
    if conf.train.schedule == "linear" and len(grid.budgets) > 1:
        raise UserError(f"train.schedule=linear falls to 0 after the last update, so the budgets "
                        f"{', '.join(map(str, grid.budgets))} would not nest; leave one (grid.budgets)")
    if conf.origin.module:
        check_external(grid, conf.origin.module)
    derived = {host.name: found for pair in grid.pairs for host in pair
               if host.name in conf.host and (found := _derived(conf, host.name))}
    roles = conf.host_set.roles
    lineages = [[roles.get(name) or name for name in names] for names in conf.host_set.lineages]
    kinds = [(one.name, other.name, pair_kind(one, other, lineages)) for one, other in grid.pairs]
    return Study(
        name=conf.study, mode=conf.mode, results=Path(conf.results).expanduser(), grid=grid, sources=sources,
        data=data, overlap=conf.grid.overlap, similarity=conf.similarity, engine=conf.engine,
        tracking=conf.tracking, part=Part(conf.only, conf.shard, conf.retry, conf.yes),
        primary=_primary(conf.primary, grid, kinds, roles), primary_metric=_primary_metric(conf, grid),
        kinds=kinds, derived=derived,
        warnings=[*untried(conf, grid, derived), *other_epochs(grid, data, used)],
    )


def _check_finite(value: Any, where: str) -> None:
    """Refuse numbers that are none, wherever they stand: nothing can be trained, or named, by them."""
    if isinstance(value, dict | list):
        for key, below in value.items() if isinstance(value, dict) else enumerate(value):
            _check_finite(below, f"{where}.{key}" if where else str(key))
    elif isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{where} must be a finite number, got {value}")


def _sets(conf: Config) -> tuple[list[str], Relations]:
    """Names of the receiving sets, and the relations."""
    received, named = conf.grid.data, conf.grid.relations
    if conf.origin.module and len(named) > 1:
        raise UserError(f"grid.relations ({', '.join(named)}) are sets that origins are trained on, and the "
                        "module of origin.module is trained already; leave one: "
                        f"{' '.join(f'~grid.relations.{name}' for name in list(named)[1:])}")
    if conf.origin.module:
        named = {specs.EXTERNAL: SELF}
    if None in received and not any(conf.host_set.sets.values()):
        raise UserError("the study names no data; say data: {NAME: {train: FILE, test: FILE}} in its file, "
                        "or grid.data=NAME")
    if None in (*received, *named.values()):
        raise UserError(f"host set '{conf.host_set.name}' names no data set for one of this sweep's "
                        "relations; name one (host_set.sets.ROLE=SET) or leave the relation out")
    sets = [str(name) for name in received]
    return sets, {name: origins(name, str(value), sets) for name, value in named.items()}


def _entry(conf: Config, group: str, name: str, cls: type[T]) -> T:
    """An entry of a catalogue, by its name."""
    catalogue = getattr(conf, group)
    validate_choice(name, catalogue, group)
    return build(cls, {"name": name} | (catalogue[name] or {}), f"{group}.{name}")


def _source(conf: Config, name: str) -> DataSource:
    """A data set of the catalogue, of whose training examples it says itself, or else the grid, how many."""
    found = _entry(conf, "data", name, DataSource)
    return replace(found, train_examples=found.train_examples or conf.grid.train_examples)


def _grid(
    conf: Config, data: StudyData, received: list[str], relations: Relations, used: Iterable[str]
) -> Grid:
    grid, evaluation = conf.grid, replace(conf.eval, metrics=metric_names(conf.eval.metrics))
    pairs = _pairs(conf)
    sets = {name: data_spec(data, name, evaluation) for name in used}
    answers = {name: answer_spec(data.sources[name], conf.task.max_length) for name in used}
    task, of_pairs = (question(conf.task, [*chain(*pairs)], of_two) for of_two in (False, True))
    tasks = {name: task_spec(data.sources[name], of_pairs if data.sources[name].pair_column else task)
             for name in used if answers[name] is None}
    task = labels_named(task)
    return Grid(
        methods=_methods(conf),
        pairs=pairs,
        relations={name: {own: sets[origin] for own, origin in named.items()}
                   for name, named in relations.items()},
        data=[sets[name] for name in received],
        inits=[_entry(conf, "init", name, specs.InitSpec) for name in grid.inits],
        ports=[_port(conf, name, data) for name in grid.ports],
        seeds=grid.seeds, rates=grid.rates, budgets=sorted(grid.budgets),
        origin_updates=grid.origin_updates or max(grid.budgets), origin_seeds=grid.origin_seeds,
        task=task, answers={name: spec for name, spec in answers.items() if spec is not None},
        tasks={name: spec for name, spec in tasks.items() if spec != task},
        train=specs.TrainSpec(updates=max(grid.budgets), **vars(conf.train)),
        eval=evaluation, precision=conf.precision, head=conf.head,
        module=external(conf.origin.module) if conf.origin.module else None,
    )


def _excluded(conf: Config, grid: Grid) -> list[dict[str, list[str]]]:
    """What is left out of the grid, every name held against it; hosts may be named by their roles.

    Raises:
        UserError: the grid lacks a name.
    """
    known = {
        "method": [rated(method, rate).name for method, rate in product(grid.methods, grid.rates)],
        "origin": [origin.name for origin, _ in grid.pairs], "relation": [*grid.relations],
        "receiving": [receiving.name for _, receiving in grid.pairs],
        "data": [data.name for data in grid.data], "init": [init.name for init in grid.inits],
        "port": [port.name for port in grid.ports], "seed": [*map(str, grid.seeds)],
        "budget": [*map(str, (0, *grid.budgets))],
    }
    found = []
    for number, place in enumerate(conf.grid.exclude):
        found.append({key: [conf.host_set.roles.get(name) or name if key in ("origin", "receiving") else name
                            for name in names] for key, names in place.items()})
        for key, names in found[-1].items():
            for name in names:
                validate_choice(name, known[key], f"{key} of grid.exclude[{number}]")
    return found


def _port(conf: Config, name: str, data: StudyData) -> specs.PortSpec:
    """A port of the catalogue, whose calibration is named by its texts."""
    found = _entry(conf, "port", name, specs.PortSpec)
    if (how := found.calibration) is None:
        return found
    from portability.porting.calibration import calibration, texts_of  # with torch

    texts = calibration(Path(how.texts).name, texts_of(how.texts, data), how.tokens, how.seed)
    return replace(found, calibration=replace(how, digest=texts.digest))


def _pairs(conf: Config) -> list[tuple[specs.HostSpec, specs.HostSpec]]:
    """Origin and receiving hosts; the origin of a module from elsewhere is its base, unless it is named."""
    given, module = conf.grid.pairs, conf.origin.module
    if given is None:
        given = [(conf.origin.host or (OWN_BASE if module else "raw_base"), conf.receiving)]
    pairs = [tuple(_role(conf, name) for name in pair) for pair in given]
    hosts, lacking = dict[str, specs.HostSpec](), dict[str, NotMade]()
    for name in dict.fromkeys(chain(*pairs)):
        try:
            hosts |= {name: find_host(conf, name)} if name != OWN_BASE else {}
        except NotMade as error:
            lacking[name] = error
    if len(lacking) > 1:
        raise UserError(f"hosts {', '.join(lacking)} are derived from others and were not made here yet; "
                        f"make them once: portability derive {' '.join(lacking)}")
    if lacking:
        raise next(iter(lacking.values()))
    if OWN_BASE in chain(*pairs):
        hosts[OWN_BASE] = base_of(str(module), list(hosts.values()))
    return [(hosts[origin], hosts[receiving]) for origin, receiving in pairs]


def find_host(
    conf: Config, name: str, make: Callable[[Recipe, Callable[[str], specs.HostSpec]], Path] = made,
    above: tuple[str, ...] = (),
) -> specs.HostSpec:
    """A host of the catalogue.

    Args:
        make: gives the folder of a derived host.
        above: hosts that are derived from it, the last one directly.

    Raises:
        UserError: there is no such host, it cannot be described, it is derived from itself, or as `make`: it
            was not made yet.
    """
    if name in above:
        raise UserError(f"host '{name}' is derived from itself ({' from '.join([*above, name])}): name "
                        f"another parent (host.{above[-1]}.derive)")
    source = _entry(conf, "host", name, HostSource)
    if source.derive is None:
        return describe(source)
    check_place(source)
    folder = make(read_recipe(name, source.derive),
                  lambda other: find_host(conf, other, make, (*above, name)))
    return describe(HostSource(name, path=str(folder)))


def _derived(conf: Config, name: str) -> dict[str, Any]:
    """How a host came to be, for the manifest: the host it stems from, the kinds of its changes, the first
    one first, and the updates of them all; nothing of a host that is not derived."""
    source = _entry(conf, "host", name, HostSource)
    if source.derive is None:
        return {}
    recipe = read_recipe(name, source.derive)
    above = _derived(conf, recipe.parent) or {"from": recipe.parent, "changes": [], "updates": 0}
    return {"from": above["from"], "changes": [*above["changes"], kind_of(recipe.change)],
            "updates": above["updates"] + getattr(recipe.change, "updates", 0)}


def _role(conf: Config, name: str) -> str:
    """A host by its own name, or by its role in the host set."""
    roles = conf.host_set.roles
    host = name if name == OWN_BASE else roles.get(validate_choice(name, {*roles, *conf.host}, "host"), name)
    if host is None and not any(roles.values()):
        raise UserError(f"the study names no host for {name}; name two under hosts in its file, or "
                        "origin=HOST receiving=HOST")
    if host is None:
        held = ", ".join(role for role, filled in roles.items() if filled)
        raise UserError(f"host set '{conf.host_set.name}' has no {name}: narrow grid.pairs to its roles "
                        f"({held}), or fill it with host_set.roles.{name}=HOST")
    return host


def _methods(conf: Config) -> list[specs.MethodSpec]:
    """The chosen methods. A sweep may set a rate for a method that the command line left out: that entry is
    passed over.
    """
    for name in conf.method:
        validate_choice(name, conf.known_methods, "method")
        if conf.method[name].get("learning_rate", 0) is None:
            raise UserError(f"method.{name}.learning_rate is missing: an adapter's folder does not say it; "
                            f"give it, as in method.{name}.learning_rate=3e-3")
    methods = [build(specs.MethodSpec, {"name": name} | value, f"method.{name}")
               for name, value in conf.method.items() if value.keys() & {"library", "config"}]
    if not methods:
        raise UserError(f"no method is chosen; choose of: {', '.join(conf.known_methods)}")
    for method, key in product(methods, SIZES):
        where = f"method.{method.name}.settings.{key}"
        if type(size := method.settings.get(key, 1)) is not int or size < 1:
            raise UserError(f"{where} must be a whole number from 1 on, got {size!r}")
    return methods


def _check(grid: Grid, relations: Relations) -> None:
    """Refuse axes that do not go together."""
    offered = [kind for kind, traits in INIT_KINDS.items() if traits.offered]
    for init in grid.inits:
        validate_choice(init.kind, offered, f"kind of init '{init.name}'")
    received = [data.name for data in grid.data]
    encoders = [host.name for host in chain(*grid.pairs) if FAMILIES[host.shape.family].scoring == "head"]
    if encoders and grid.answers:
        raise UserError(f"host '{encoders[0]}' is an encoder and can neither write an answer nor rate "
                        f"choices token by token, as data set '{next(iter(grid.answers))}' asks for; choose "
                        "a gpt2, llama or t5 host")
    if grid.eval.metrics != specs.METRICS and all(name in grid.answers for name in received):
        raise UserError(f"eval.metrics ({', '.join(map(name_of, grid.eval.metrics))}) are of texts with "
                        "labels, and no set of grid.data has them: answers to prompts are measured as "
                        f"data.{received[0]}.answers.scoring says; leave eval.metrics out")
    if grid.train.loss == "token" and not grid.answers:
        raise UserError("train.loss=token is of answers to prompts, and no data set of the grid has them: "
                        "the answers of texts with labels have one token; leave train.loss out")
    if encoders and grid.head == "shared":
        _check_heads(grid, encoders[0])
    if any("extraction" in init.traits.needs for init in grid.inits):
        check_relations(relations, received)
    if extracted := [init for init in grid.inits if init.traits.subtracts_start]:
        from portability.inits.kinds import extraction_options  # with torch

        for init in extracted:
            for method in grid.methods:
                extraction_options(method, init)


def _check_heads(grid: Grid, encoder: str) -> None:
    """Refuse a head of other labels than those that the receiving set has."""
    for (name, sources), data in product(grid.relations.items(), grid.data):
        counts = [len(task.label_words) for task in map(grid.task_of, (sources[data.name], data))
                  if isinstance(task, specs.TaskSpec)]
        if len(set(counts)) > 1:
            raise UserError(f"grid.relations.{name}: data set '{sources[data.name].name}' has {counts[0]} "
                            f"labels and '{data.name}' {counts[1]}, so encoder '{encoder}' cannot begin with "
                            "the origin's head; choose head=fresh, or another set")


def _primary_metric(conf: Config, grid: Grid) -> str | None:
    """The metric by which the study is decided, if one is declared: of those that all its runs have."""
    if (name := conf.primary_metric) is None:
        return None
    if any(data.name in grid.answers for data in grid.data):
        raise UserError(f"primary_metric={name} is of texts with labels, and answers to prompts are measured "
                        "as data.NAME.answers.scoring says; leave primary_metric out")
    asked = [name for name in map(name_of, grid.eval.metrics) if name in DECIDING]
    return validate_choice(name, asked, "primary_metric (of eval.metrics)")


def _primary(values: list[Any], grid: Grid, kinds: Kinds, roles: Mapping[str, str | None]) -> list[Contrast]:
    methods = [rated(method, rate).name for method, rate in product(grid.methods, grid.rates)]
    axes = product(methods, kinds, grid.relations, grid.data, grid.ports)
    places = [{"method": method, "origin": origin, "receiving": receiving, PAIRS: kind, "relation": relation,
               "data": data.name, "port": port.name}
              for method, (origin, receiving, kind), relation, data, port in axes]
    budgets = {init.name: [0, *grid.budgets][init.traits.trains_extra :] for init in grid.inits}
    try:
        found = declared(values, budgets | {specs.BARE: [0]}, places, roles)
        for contrast in found:
            if cut := cut_by(contrast, places, grid.seeds, grid.exclude):
                left = "; ".join(", ".join(f"{key} {' or '.join(names)}" for key, names in out.items())
                                 for out in cut)
                raise UserError(f"primary '{contrast.name}' compares cells that grid.exclude leaves out "
                                f"({left}), so no seed has all of them; leave them in, or declare another "
                                "contrast")
            if len(grid.rates) > 1 and any("method" not in side for side in contrast.sides):
                raise UserError(f"primary '{contrast.name}' would pool the rates of grid.rates; name its "
                                f"methods: {', '.join(methods)}")
        return found
    except UserError as error:
        raise UserError(f"{error} (primary=[] declares no contrast, for a narrowed grid)") from error
