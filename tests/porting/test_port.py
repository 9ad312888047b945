"""Contracts of porting, over all methods, layer maps, and strategies that give axes their sizes."""

from dataclasses import replace
from itertools import combinations

import pytest
import torch

from portability.core.architectures import Slot
from portability.core.errors import UserError
from portability.core.specs import PortSpec
from portability.methods.module import ModuleState, equal
from portability.porting.axes import AxisStrategy
from portability.porting.base import PortContext
from portability.porting.layer_maps import LAYER_MAPS
from portability.porting.port import fit_head, port
from portability.porting.strategies import STRATEGIES
from portability.porting.strategies.repeat import repeat_axis
from support.pairs import over
from support.tiny import FAMILIES, METHODS, noisy

BY_AXES = [name for name, strategy in STRATEGIES.items() if isinstance(strategy, AxisStrategy)]
SHAPES = {"same": (32, 2, 4), "deeper": (32, 3, 4), "shallower": (32, 1, 4), "wider": (48, 2, 4),
          "narrower": (16, 2, 4), "wider and deeper": (48, 4, 6)}


def spec(strategy="pad", layer_map="stretch", partial=False):
    return PortSpec(strategy, strategy, layer_map, partial)


@pytest.fixture(scope="module")
def mounted(mount):
    made = {}

    def get(method, family="t5", shape="same", seed=0):
        key = (method, family, shape, seed)
        if key not in made:
            made[key] = mount(method, family, *SHAPES[shape], seed=seed)
        return made[key]

    return get


def carry(source, target, how, module=None):
    """Port a noisy module from one mounted method to another."""
    module = module or noisy(source, 1)
    return port(module, PortContext(source.host.spec, target.host.spec, target.init_parameters(2),
                                    how)), module


@over(layer_map=LAYER_MAPS, strategy=BY_AXES, method=METHODS, family=FAMILIES)
def test_porting_to_the_same_host_is_the_identity(mounted, family, method, strategy, layer_map):
    host = mounted(method, family)
    done, module = carry(host, host, spec(strategy, layer_map))
    assert equal(done.module, module)
    assert set(done.report.tensors.values()) == {"carried"}
    report = done.report
    assert report.carried_fraction == report.carried_entries_fraction == report.filled_fraction == 1.0
    assert report.carried_norm_fraction == pytest.approx(1.0)
    assert all(mask.all() for mask in done.carried.values())


@over(shape=SHAPES, strategy=["pad", "repeat"], method=METHODS)
def test_every_shape_gives_an_exactly_known_carry(mounted, method, strategy, shape):
    source, target = mounted(method), mounted(method, shape=shape)
    done, module = carry(source, target, spec(strategy))
    report, layers = done.report, {"deeper": 2, "shallower": 1, "wider and deeper": 2}.get(shape, 2)
    shared = 1 if method == "compacter" else 0
    per_layer = (len(module.tensors) - shared) / 2
    assert report.carried_fraction * len(module.tensors) == pytest.approx(layers * per_layer + shared)
    for slot, tensor in done.module.tensors.items():
        assert tensor.shape == target.init_parameters(0).tensors[slot].shape
        picked = report.layer_map[slot.stack][slot.layer] if slot.stack != "shared" else [0]
        original = module.tensors[slot._replace(layer=picked[0])]
        corner = tuple(slice(0, min(a, b)) for a, b in zip(original.shape, tensor.shape, strict=True))
        if strategy == "pad":
            assert torch.equal(tensor[corner], original[corner]), slot
            assert float(tensor.abs().sum()) == pytest.approx(float(original[corner].abs().sum()), rel=1e-5)
            assert done.carried[slot].sum() == original[corner].numel()
        else:
            assert done.carried[slot].all()
    entries = sum(min_entries(module.tensors[s], done.module.tensors[s._replace(layer=0)])
                  for s in used(done, module))
    assert report.carried_entries_fraction == pytest.approx(entries / module.entries)


def used(done, module):
    """Origin slots that some receiving slot was filled from."""
    return {slot._replace(layer=layer) for slot in done.module.tensors
            for layer in (done.report.layer_map[slot.stack][slot.layer] if slot.stack != "shared" else [0])}


def min_entries(one, other):
    count = 1
    for a, b in zip(one.shape, other.shape, strict=True):
        count *= min(a, b)
    return count


@pytest.mark.parametrize("method", METHODS)
def test_changing_the_map_or_the_strategy_changes_the_result(mounted, method):
    deep, shallow = mounted(method, shape="wider and deeper"), mounted(method)
    maps = LAYER_MAPS if method in ("adapter", "lora") else ("skip", "stretch")  # the others have no mean
    results = {name: carry(deep, shallow, spec("pad", name))[0].module for name in maps}
    assert not any(equal(results[one], results[other]) for one, other in combinations(results, 2))
    wide = mounted(method, shape="wider")
    padded, repeated = (carry(shallow, wide, spec(name))[0].module for name in ("pad", "repeat"))
    assert not equal(padded, repeated)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", ["deeper", "shallower", "wider", "narrower"])
def test_copy_refuses_other_shapes_and_names_hosts_and_shapes(mounted, method, shape):
    source, target = mounted(method), mounted(method, shape=shape)
    with pytest.raises(UserError) as refusal:
        carry(source, target, spec("copy"))
    text = str(refusal.value)
    assert source.host.spec.name in text and target.host.spec.name in text
    assert ("layers" in text) if shape in ("deeper", "shallower") else ("(" in text and "copy" in text)


@pytest.mark.parametrize("method", METHODS)
def test_nothing_carried_is_an_error(mounted, method):
    host = mounted(method)
    empty = host.init_parameters(0).map({slot: torch.zeros_like(t)
                                         for slot, t in host.init_parameters(0).tensors.items()})
    with pytest.raises(UserError, match="carries nothing"):
        carry(host, host, spec(), empty)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("strategy", BY_AXES)
def test_bert_and_roberta_name_their_places_alike_so_everything_is_carried(mounted, method, strategy):
    done, module = carry(mounted(method, "bert"), mounted(method, "roberta"), spec(strategy))
    assert equal(done.module, module)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("origin", "receiving"), [("t5", "gpt2"), ("t5", "bert"), ("gpt2", "t5"),
                                                   ("bert", "t5")])
def test_other_stacks_need_a_partial_carry_that_is_asked_for(mounted, method, origin, receiving):
    source, target = mounted(method, origin), mounted(method, receiving)
    with pytest.raises(UserError, match="partial"):
        carry(source, target, spec())
    done, module = carry(source, target, spec(partial=True))
    kept = sum(action not in ("dropped", "fresh") for action in done.report.tensors.values())
    fresh = [s for s in done.module.tensors if done.report.tensors[s.key] == "fresh"]
    assert kept and kept + len(fresh) == len(done.module.tensors)
    assert all(torch.equal(done.module.tensors[s], target.init_parameters(2).tensors[s]) for s in fresh)
    assert done.report.carried_fraction < 1.0 or fresh


@pytest.mark.parametrize(("origin", "receiving", "left"), [
    ("t5", "bert", {"dropped": ["decoder layers 0-1: attention, ffn"]}),
    ("gpt2", "t5", {"fresh": ["encoder layers 0-1: attention, ffn"]}),
    ("bert", "roberta", {}),
])
def test_the_report_names_what_is_left(mounted, origin, receiving, left):
    report = carry(mounted("adapter", origin), mounted("adapter", receiving), spec(partial=True))[0].report
    assert report.left() == left == report.summary().get("left", {})


def test_the_report_names_layers_that_feed_none(mounted):
    done, _ = carry(mounted("prefix", shape="wider and deeper"), mounted("prefix"), spec("pad", "skip"))
    assert done.report.left() == {"dropped": [
        "encoder layers 1, 3: self_prefix", "decoder layers 1, 3: self_prefix, cross_prefix"]}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("origin", "receiving"), [("bert", "gpt2"), ("gpt2", "bert"), ("gpt2", "llama")])
def test_single_stacks_of_other_families_are_mapped(mounted, method, origin, receiving):
    done, _ = carry(mounted(method, origin), mounted(method, receiving), spec())
    assert done.report.carried_fraction == 1.0 and "fresh" not in done.report.tensors.values()


def test_other_hyper_parameters_are_refused_not_cut(mount, mounted):
    from portability.methods import attach
    source = mounted("lora")
    host = mount("lora").host
    host.model.delete_adapter("module")
    other = attach(host, replace(METHODS["lora"], settings={**METHODS["lora"].settings, "r": 2}))
    with pytest.raises(UserError, match="'rank' differs"):
        carry(source, other, spec())


def test_compacters_shared_factor_is_ported_once(mounted):
    source, target = mounted("compacter"), mounted("compacter", shape="wider and deeper")
    done, module = carry(source, target, spec())
    rule = Slot("shared", 0, "phm", "rule")
    assert torch.equal(done.module.tensors[rule], module.tensors[rule])
    assert sum(slot.stack == "shared" for slot in done.module.tensors) == 1


def test_repeating_keeps_the_function_where_the_hosts_units_are_repeated(mounted):
    """Net2WiderNet: a host whose hidden units stand twice sees the same bottleneck activations."""
    source = mounted("adapter")
    wide = source.init_parameters(0)
    slot = Slot("encoder", 0, "attention", "down_weight")
    repeated = repeat_axis(wide.tensors[slot], 1, 48, True)
    x = torch.randn(32)
    assert torch.allclose(repeated @ x[torch.arange(48) % 32], wide.tensors[slot] @ x, atol=1e-6)


def test_repeated_key_value_heads_keep_their_prefixes_whole(mounted):
    """A query meets a key along the head size alone, so a head that stands twice keeps its keys undivided."""
    # 4 heads of 8 to 6 heads of 8
    source, target = mounted("prefix"), mounted("prefix", shape="wider and deeper")
    done, module = carry(source, target, spec("repeat"))
    slot = Slot("encoder", 0, "self_prefix", "prefix_key")
    assert torch.equal(done.module.tensors[slot][:, 4:], module.tensors[slot][:, :2])
    assert torch.equal(done.module.tensors[slot][:, :4], module.tensors[slot])


@pytest.mark.parametrize("strategy", ["pad", "repeat"])
def test_queries_keep_their_key_value_heads_between_groupings(mounted, mount, strategy):
    """8 query heads in 4 groups of 2 to 4 groups of 1: the first query of each group stays with its group."""
    source, target = mount("lora", "llama", 32, 2, 8), mount("lora", "gpt2", 32, 2, 4)
    done, module = carry(source, target, spec(strategy))
    ours, theirs = (m.tensors[Slot("decoder", 0, "query", "B")] for m in (done.module, module))
    assert theirs.shape == (4, 2, 4, 4) and ours.shape == (4, 1, 8, 4)
    flat = theirs.reshape(8, 4, 4)
    for head in range(4):
        assert torch.equal(ours[head, 0, :4], flat[2 * head])


def test_heads_are_fitted_by_the_same_strategy(make_host):
    host = make_host("bert")
    head = {"head.weight": torch.arange(8.0).reshape(2, 4), "head.bias": torch.ones(2)}

    def fitted(width, strategy="pad"):
        receiving = replace(host, shape=replace(host.shape, hidden=width))
        context = PortContext(host, receiving, ModuleState({}, {}), spec(strategy))
        return fit_head(head, context)["head.weight"]

    assert fitted(3).tolist() == [[0, 1, 2], [4, 5, 6]]
    assert fitted(6)[:, 4:].abs().sum() == 0 and torch.equal(fitted(4, "copy"), head["head.weight"])
    with pytest.raises(UserError, match="head of width 4"):
        fitted(6, "copy")
