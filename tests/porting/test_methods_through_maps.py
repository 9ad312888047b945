"""Every method through maps of spaces: what it does in a hidden basis is known where the mathematics allows
it, and refused where it does not."""

import functools

import pytest
import torch

from portability.core.errors import UserError
from portability.core.specs import MethodSpec, PortSpec
from portability.hosts.host import load_host
from portability.methods import attach
from portability.methods.peft_backend import PREFIX
from portability.porting.base import PortContext
from portability.porting.calibration import calibration
from portability.porting.port import port
from support import adapters_methods, peft_methods
from support.hidden import READ, Basis, Mapped, identity, scenes, shuffled
from support.tiny import noisy

WHOLE = {"values": True, "meetings": True, "heads": True}
SCENES = {
    "llama, turned, folded": ("llama", Basis("turned", folded=True, flipped=True, **WHOLE)),
    "llama, narrow, no gains": ("llama", Basis("turned", folded=True, **WHOLE), 16, 2, 2, None),
    "llama, permuted": ("llama", Basis("permuted", flipped=True, heads=True, signed=True)),
    "llama, permuted, folded": ("llama", Basis("permuted", folded=True, heads=True)),
    "gemma2, permuted": ("gemma2", Basis("permuted", heads=True)),
    "llama, narrow": ("llama", Basis("turned", folded=True, **WHOLE), 16, 2, 2),
    "t5, turned, folded": ("t5", Basis("turned", folded=True, flipped=True, **WHOLE)),
    "t5, permuted": ("t5", Basis("permuted", flipped=True, heads=True, signed=True)),
    "bert, heads turned": ("bert", Basis("permuted", **WHOLE)),
    "bert, permuted": ("bert", Basis("permuted", heads=True)),
    "gpt2, heads turned": ("gpt2", Basis("permuted", **WHOLE)),
    "gpt2, permuted": ("gpt2", Basis("permuted", heads=True)),
    "modernbert, permuted": ("modernbert", Basis("permuted", heads=True)),
}
LONGER = {"prompt": ("PromptTuningConfig", {"num_virtual_tokens": 5}),
          "flat": (PREFIX, {"num_virtual_tokens": 5})}
BOTTLENECKS = {  # further settings of the library's bottlenecks
    "gated": ("SeqBnConfig", {"bottleneck": 8, "use_gating": True}),
    "channel": ("ParBnConfig", {"bottleneck": 8, "scaling": "channel"}),
    "gated_lora": ("LoRAConfig", {"r": 4, "alpha": 2, "use_gating": True, "intermediate_lora": True,
                                  "output_lora": True, "attn_matrices": ["q", "k", "v"]}),
}


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return scenes(tmp_path_factory, SCENES)


def method(name):
    """A kind of peft by its name there, one of adapters as a:NAME."""
    if name in LONGER:
        return MethodSpec(name, "peft", *LONGER[name], 1e-3)
    if name.startswith("a:"):
        kinds = adapters_methods.KINDS | BOTTLENECKS
        return MethodSpec(name, "adapters", *kinds[name[2:]], 1e-3)
    return MethodSpec(name, "peft", *peft_methods.KINDS[name], 1e-3)


TURNED = {  # where -> methods
    "llama, turned, folded": ["rslora", "adalora", "flat", "a:unipelt", "a:loreft"],
    "llama, narrow, no gains": ["hra"], "llama, narrow": ["prompt", "a:loreft_ends"],
    "t5, turned, folded": ["a:adapter", "a:parallel", "a:scaled_parallel", "a:gated", "a:lora",
                           "a:gated_lora", "a:prefix", "a:mam", "a:unipelt", "a:loreft_ends", "a:noreft"],
    "bert, heads turned": ["a:mam"], "gpt2, heads turned": ["a:lora", "a:unipelt"],
}
PERMUTED = {
    "llama, permuted": ["rslora", "dora", "ia3", "loha", "hra", "adalora", "ln", "flat"],
    "llama, permuted, folded": ["ln", "loha", "ia3", "dora"], "gemma2, permuted": ["ln"],
    "t5, permuted": ["a:adapter", "a:ia3", "a:channel", "a:unipelt", "a:loreft"],
    "gpt2, permuted": ["dora", "ia3"], "bert, permuted": ["ln"],
    "modernbert, permuted": ["loha", "dora", "hra"],
}


def each(table):
    rows = [(where, name) for where, many in table.items() for name in many]
    return pytest.mark.parametrize(("where", "name"), rows)


@each(TURNED)
def test_a_method_does_the_same_in_a_turned_basis(scene, name, where):
    here = scene(where)
    assert here.error(method(name), "procrustes") <= 1e-4
    assert here.error(method(name), here.true(identity)) > .3
    if name in ("a:adapter", "a:parallel", "a:scaled_parallel", "a:gated"):  # bottlenecks
        assert here.error(method(name), "copy") > .9


@each(PERMUTED)
def test_a_method_does_the_same_in_a_permuted_basis(scene, name, where):
    here = scene(where)
    assert here.error(method(name), "corr") <= 1e-4
    assert here.error(method(name), here.true(shuffled)) > .2


@pytest.mark.parametrize("name", ["dora", "ia3", "loha", "ln", "a:ia3", "a:channel"])
def test_numbers_of_one_unit_each_are_not_mixed(scene, name):
    where = "t5, turned, folded" if name.startswith("a:") else "llama, turned, folded"
    with pytest.raises(UserError, match="cannot port .* from 'origin' .* to 'hidden' .*: its numbers belong "
                       "to one unit each, and this strategy mixes units; use corr, or turn it into") as said:
        scene(where).port(method(name), "procrustes")
    assert "\n" not in str(said.value)


@pytest.mark.parametrize("strategy", ["procrustes", "corr"])
@pytest.mark.parametrize("name", ["vera", "oft", "lokr", "randlora", "miss", "vblora", "fourierft", "c3a",
                                  pytest.param("boft", marks=pytest.mark.system)])
def test_what_is_not_written_in_the_hosts_coordinates_is_refused(scene, name, strategy):
    """Even between hosts of one shape, where copy would carry it."""
    with pytest.raises(UserError, match=f"cannot port .*{name[:4]}.* from 'origin' .*: the method's numbers "
                       r"are not written .*; use copy or pad, or turn it into a LoRA first \(--via lora\)"):
        scene("llama, permuted").port(method(name), strategy)


@pytest.mark.parametrize(("name", "said"), [
    ("a:compacter", "numbers are not written in the host's coordinates .*; use copy or pad$"),
    ("a:compacter_plus_plus", "numbers are not written in the host's coordinates .*; use copy or pad$"),
    ("a:prefix_mlp", "the network that makes a prefix has coordinates of its own; train the prefix flat"),
])
def test_blocks_and_networks_of_a_methods_own_are_refused(scene, name, said):
    with pytest.raises(UserError, match=said):
        scene("t5, permuted").port(method(name), "corr")


@pytest.mark.parametrize("strategy", ["procrustes", "corr"])
@pytest.mark.parametrize(("origin", "receiving", "said"), [
    (("llama", 32, 1, 4), ("opt", 32, 1, 4), "the queries and keys of one of them turn with the position"),
    (("llama", 32, 1, 4), ("llama", 48, 1, 4), "heads of sizes 8 and 12 turn with the position"),
    (("llama", 32, 1, 4), ("mistral", 48, 1, 6), None), (("opt", 32, 1, 4), ("opt", 48, 1, 4), None),
])
def test_values_are_mapped_where_queries_and_keys_cannot_be(load, origin, receiving, said, strategy):
    hosts = load(*origin), load(*receiving)
    texts = calibration("sentences", READ, 200)

    def ported(*sites):
        spec = MethodSpec("lora", "peft", "LoraConfig", {"r": 2, "sites": list(sites)}, 1e-3)
        source, target = (attach(host, spec) for host in hosts)
        try:
            return port(noisy(source, 1), PortContext(
                *(host.spec for host in hosts), target.init_parameters(0), PortSpec("a", strategy, "stretch"),
                functools.cache(load_host), lambda: texts))
        finally:
            source.detach()
            target.detach()

    done = ported("value", "attention_out")
    assert done.report.carried_fraction == 1 and set(done.report.tensors.values()) == {"transported"}
    if said is None:
        assert ported("query", "key").report.carried_fraction == 1
    else:
        with pytest.raises(UserError, match=f"{said}.* leave query and key out of the method's sites"):
            ported("query")


def test_units_that_nothing_is_sent_to_stay_as_the_library_begins_them(scene):
    """IA3's factors are 1 there, not 0."""
    here = scene("llama, permuted")

    def half(matrix):
        kept = matrix.clone()
        kept[:, ::2] = 0
        return kept

    done, _ = here.port(method("ia3"), here.true(half))
    for slot, tensor in done.module.tensors.items():
        carried = done.carried[slot]
        assert carried.any() and not carried.all() and (tensor[~carried] == 1).all(), slot
    assert done.report.filled_fraction == .5


def test_numbers_that_a_map_sends_nowhere_are_not_counted_as_carried(scene):
    """A pair of rank 4 beside each matrix of an attention of width 32, with 4 query heads of 8 in 2 groups,
    of which the second is dropped: what queries, keys and values give, and what the output reads, lose
    half."""
    here = scene("llama, permuted")

    def first_group(_, pairs):
        maps = {pair: torch.eye(pair[0].size(here.origin.shape), dtype=torch.float64) for pair in pairs}
        for pair, matrix in maps.items():
            if pair[0].kind != "hidden":
                matrix[len(matrix) // 2:] = 0
        return maps

    spec = MethodSpec("attention", "peft", "LoraConfig", {"sites": ["attention"], "r": 4}, 1e-3)
    done, _ = here.port(spec, Mapped(first_group))
    whole = {"query": (4 * 32, 32 * 4), "key": (4 * 32, 16 * 4), "value": (4 * 32, 16 * 4),
             "attention_out": (4 * 32, 32 * 4)}
    taken = sum(a // 2 + b if site == "attention_out" else a + b // 2 for site, (a, b) in whole.items())
    assert done.report.carried_entries_fraction == pytest.approx(taken / sum(map(sum, whole.values())))
    assert done.report.carried_fraction == 1 and done.report.carried_norm_fraction < 0.95
    assert sum(int(tensor.count_nonzero()) for tensor in done.module.tensors.values()) == 2 * taken


def test_a_tensor_of_which_a_map_sends_nothing_is_dropped_though_it_has_a_place(scene):
    """What keys and values give is of width 16, and alone."""
    here = scene("llama, permuted")

    def no_groups(_, pairs):
        sizes = {pair: pair[0].size(here.origin.shape) for pair in pairs}
        return {pair: (size != 16) * torch.eye(size, dtype=torch.float64) for pair, size in sizes.items()}

    spec = MethodSpec("attention", "peft", "LoraConfig", {"sites": ["attention"], "r": 4}, 1e-3)
    done, _ = here.port(spec, Mapped(no_groups))
    assert done.report.carried_fraction == 6 / 8
    dropped = [name for name, fate in done.report.tensors.items() if fate == "dropped"]
    assert len(dropped) == 4 and all(".key." in name or ".value." in name for name in dropped)
