"""What every porting strategy promises, and strategies of installed packages."""

import functools
import re
from dataclasses import replace

import pytest
import torch

from portability.core.errors import UserError
from portability.core.plugins import plugins
from portability.core.specs import PortSpec
from portability.execution.execute import WorkerContext, execute
from portability.hosts.host import load_host
from portability.methods.module import ModuleState, equal
from portability.planning.plan import plan
from portability.porting.base import Port, PortContext, PortReport, Purpose, Strategy
from portability.porting.calibration import calibration
from portability.porting.layer_maps import LAYER_MAPS
from portability.porting.maps import MapStrategy
from portability.porting.port import fit_head, port
from portability.porting.strategies import STRATEGIES, find_strategy
from portability.store import Store
from support.pairs import over
from support.studies import small
from support.tiny import METHODS, TASK, noisy, sentences

TEXTS = calibration("sentences", [row["text"] for row in sentences(80, 3)], 256)
SHAPES = {"same": (24, 2, 4), "deeper": (24, 3, 4), "wider": (28, 2, 4), "smaller": (16, 1, 2)}
ROWS = [(row["text"], row["label"]) for row in sentences(40, 6)]
REFUSED = {  # what a strategy may say no to, in its words
    "copy": "needs equal shapes|layers and", "rebasin": "hosts of one shape",
    "svd_subspace": "stands beside no matrix of the host", "gradmask": "weight changes of low-rank pairs",
}
LEARNING = {"warm": {"updates": 1, "learning_rate": 1e-3}, "distill": {"updates": 1, "learning_rate": 1e-3}}


@pytest.fixture(scope="module")
def mounted(mount):
    made = {}

    def get(*key):
        if key not in made:
            made[key] = mount(*key)
        return made[key]

    return get


@pytest.fixture(scope="module")
def loaded():
    """Loads each host once."""
    return functools.cache(load_host)


@over(strategy=STRATEGIES, method=METHODS, shape=SHAPES, layer_map=LAYER_MAPS)
def test_a_strategy_gives_a_module_of_the_receiving_host_or_says_why_not(
    strategy, method, shape, layer_map, mounted, loaded
):
    source, target = mounted(method, "t5", 24, 2, 4), mounted(method, "t5", *SHAPES[shape])
    module, fresh = noisy(source, 1), target.init_parameters(2)
    before = module.map({slot: tensor.clone() for slot, tensor in module.tensors.items()})
    spec = PortSpec(strategy, strategy, layer_map, options=LEARNING.get(strategy, {}))
    purpose = Purpose(TASK, (source.spec, target.spec), lambda: ROWS)
    context = PortContext(source.host.spec, target.host.spec, fresh, spec, loaded, lambda: TEXTS,
                          purpose=purpose)
    mapped = isinstance(STRATEGIES[strategy], MapStrategy)
    mixed = method in ("compacter", "prefix") and layer_map in ("average", "sum") and SHAPES[shape][1] < 2
    try:
        done, again = port(module, context), port(module, context)
    except UserError as refusal:
        deeper = layer_map == "skip" and shape == "deeper"
        blocks = (mapped or strategy == "auto") and method == "compacter" and (
            "in the host's coordinates one by one" in str(refusal))
        mean = mixed and "no mean of several layers'" in str(refusal)
        assert deeper or blocks or mean or re.search(REFUSED.get(strategy, "nothing"), str(refusal)), refusal
        assert strategy != "copy" or shape != "same"
        assert "\n" not in str(refusal) and (deeper or all(
            host.spec.name in str(refusal) for host in (source.host, target.host)))
        return
    assert not (mapped and method == "compacter"), "its blocks go with no map"
    assert not mixed, "its layers have no mean"
    assert equal(done.module, again.module) and done.module.axes == fresh.axes
    for slot, tensor in fresh.tensors.items():
        assert done.module.tensors[slot].shape == done.carried[slot].shape == tensor.shape
        assert done.carried[slot].dtype == torch.bool
    assert target.to_parameters(done.module) and 0 < done.report.filled_fraction <= 1
    assert done.report.name == strategy and done.report.strategy == strategy
    assert done.report.summary()["actions"]
    for tensor in done.module.tensors.values():
        tensor.zero_()
    assert equal(module, before), "a port never changes its source"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_head_fits_its_own_host_as_it_is(strategy, make_host, loaded):
    """Up to what no state of the host has: after a plain LayerNorm, a mean."""
    host, head = make_host("bert", 24), {"head.weight": torch.rand(2, 24), "head.bias": torch.rand(2)}
    before = {name: tensor.clone() for name, tensor in head.items()}
    context = PortContext(host, host, ModuleState({}, {}), PortSpec(strategy, strategy, "stretch"), loaded,
                          lambda: TEXTS)
    if strategy == "svd_subspace":
        with pytest.raises(UserError, match="no matrix has the residual stream's"):
            fit_head(head, context)
        return
    found = fit_head(head, context)
    states = torch.randn(5, 24)
    states -= states.mean(1, keepdim=True)
    assert torch.allclose(states @ found["head.weight"].T, states @ head["head.weight"].T, atol=1e-4)
    assert torch.equal(found["head.bias"], head["head.bias"])
    for tensor in found.values():
        tensor.zero_()
    assert all(torch.equal(head[name], before[name]) for name in head)


def test_an_unknown_strategy_is_refused_with_the_choices():
    known = ", ".join(sorted(STRATEGIES))
    with pytest.raises(UserError, match=f"choose one of: {known}; did you mean 'pad'"):
        find_strategy("padd")


# ---- strategies of installed packages


class Ratio(Strategy):
    """Pads, then scales by how much larger the receiving host's embedding is than the origin's."""

    needs = frozenset({"origin_weights", "receiving_weights"})

    def fit(self, module: ModuleState, context: PortContext) -> Port:
        done = STRATEGIES["pad"].fit(module, context)
        norms = [host.model.get_input_embeddings().weight.norm() for host in (
            context.receiving_host(), context.origin_host())]
        factor = norms[0] / norms[1]
        tensors = {slot: tensor * factor for slot, tensor in done.module.tensors.items()}
        return Port(done.module.map(tensors), done.carried, done.report)


class Greedy(Ratio):
    """Uses what it does not declare."""

    needs = frozenset({"receiving_weights"})


class Curious(Strategy):
    """Declares what nobody knows."""

    needs = frozenset({"luck"})

    def fit(self, module, context):
        raise NotImplementedError


class Careless(Strategy):
    """Gives the origin's module back as it is."""

    def fit(self, module, context):
        return Port(module, {}, PortReport("careless", "careless"))


class Idle(Strategy):
    """Says that it carries everything, and carries nothing."""

    def fit(self, module, context):
        ones = {slot: torch.ones_like(t, dtype=torch.bool) for slot, t in context.fresh.tensors.items()}
        return Port(context.fresh, ones, PortReport("idle", "idle"))


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """name=class -> a package with these entry points, installed in a folder of its own."""
    def install(**entries):
        folder = tmp_path / "outside-1.0.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n")
        lines = [f"{name} = {__name__}:{kind}" for name, kind in entries.items()]
        (folder / "entry_points.txt").write_text("\n".join(["[portability.strategies]", *lines]))
        monkeypatch.syspath_prepend(tmp_path)
        plugins.cache_clear()

    yield install
    monkeypatch.undo()
    plugins.cache_clear()


def context_of(mounted, strategy, load=load_host):
    source, target = mounted("lora", "t5", 32, 2, 4), mounted("lora", "t5", 48, 2, 6)
    spec = PortSpec(strategy, strategy, "stretch")
    return noisy(source, 1), PortContext(source.host.spec, target.host.spec, target.init_parameters(0), spec,
                                         load)


def test_a_packages_strategy_reads_both_hosts(installed, mounted, load):
    installed(ratio="Ratio")
    module, context = context_of(mounted, "ratio")
    done, padded = port(module, context), STRATEGIES["pad"].fit(module, context)
    sizes = [load("t5", *shape).model.shared.weight.norm() for shape in ((48, 2, 6), (32, 2, 4))]
    for slot, tensor in padded.module.tensors.items():
        assert torch.allclose(done.module.tensors[slot], tensor * sizes[0] / sizes[1])
    assert done.report.carried_fraction == 1 and done.report.seconds > 0
    with pytest.raises(UserError, match="no rule that fits a head of width 4 to width 6; use head=fresh"):
        receiving = replace(context.receiving, shape=replace(context.receiving.shape, hidden=6))
        fit_head({"head.weight": torch.ones(2, 4), "head.bias": torch.ones(2)},
                 replace(context, receiving=receiving))


def test_a_study_ports_with_a_packages_strategy(installed, data_folders, make_host, tmp_path):
    installed(ratio="Ratio")
    words = ("method=lora", "grid.inits=[ported,sampled]", "grid.seeds=[0]", "grid.budgets=[1]",
             "grid.ports=[pad,ratio]", "+port.ratio={strategy:ratio,layer_map:stretch,partial:false}")
    got = small(data_folders, make_host, *words)
    planned, store = plan(got.grid), Store(tmp_path / "store")
    for run_id, run in planned.runs.items():
        execute([run], {run_id: sorted(planned.marks[run_id])}, WorkerContext(store, got.data))
    found = {run.port.strategy: store.read(run_id) for run_id, run in planned.runs.items()
             if run.init.kind == "ported"}
    assert found["ratio"]["port_info"]["strategy"] == "ratio"
    scores = [found[name]["train_info"]["metrics"][0]["eval_loss"] for name in ("pad", "ratio")]
    assert scores[0] != scores[1]


@pytest.mark.parametrize(("entries", "strategy", "says"), [
    ({"greedy": "Greedy"}, "greedy", "'greedy' uses origin_weights, which it does not declare"),
    ({"curious": "Curious"}, "curious", "unknown need of port strategy 'curious' 'luck'"),
    ({"careless": "Careless"}, "careless", "gave no module of the receiving host: .* is missing, left over"),
    ({"thing": "SHAPES"}, "thing", "is no portability.porting.base.Strategy"),
    ({"idle": "Idle"}, "idle", "carries nothing: its module is the fresh one"),
    ({"pad": "Ratio"}, "pad", "package outside adds 'pad' to .*, a name that is already taken"),
])
def test_what_a_packages_strategy_may_not_do(entries, strategy, says, installed, mounted):
    installed(**entries)
    with pytest.raises(UserError, match=says) as raised:
        port(*context_of(mounted, strategy))
    assert "\n" not in str(raised.value)


def test_weights_that_nobody_gives_are_an_error(installed, mounted):
    installed(ratio="Ratio")
    module, context = context_of(mounted, "ratio")
    with pytest.raises(UserError, match="weights of host .* are not available here"):
        port(module, PortContext(context.origin, context.receiving, context.fresh, context.spec))
