"""Every method through maps of spaces: what it does in a hidden basis is known where the mathematics allows
it, and refused where it does not."""

import pytest

from portability.core.errors import UserError
from portability.core.specs import MethodSpec
from portability.methods.peft_backend import PREFIX
from support import adapters_methods, peft_methods
from support.hidden import Basis, Scene, identity, shuffled

WHOLE = {"values": True, "meetings": True, "heads": True}
SCENES = {
    "llama, turned, folded": ("llama", Basis("turned", folded=True, flipped=True, **WHOLE)),
    "llama, narrow, no gains": ("llama", Basis("turned", folded=True, **WHOLE), 16, 2, 2, False),
    "llama, permuted": ("llama", Basis("permuted", flipped=True, heads=True, signed=True)),
    "llama, permuted, folded": ("llama", Basis("permuted", folded=True, heads=True)),
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
    made = {}

    def get(name):
        if name not in made:
            made[name] = Scene(tmp_path_factory.mktemp("hidden") / "scene", *SCENES[name])
        return made[name]

    return get


def method(name):
    """A kind of peft by its name there, one of adapters as a:NAME."""
    if name in LONGER:
        return MethodSpec(name, "peft", *LONGER[name], 1e-3)
    if name.startswith("a:"):
        kinds = adapters_methods.KINDS | BOTTLENECKS
        return MethodSpec(name, "adapters", *kinds[name[2:]], 1e-3)
    return MethodSpec(name, "peft", *peft_methods.KINDS[name], 1e-3)


TURNED = {  # where -> methods
    "llama, turned, folded": ["rslora", "adalora", "flat", "a:unipelt"],
    "llama, narrow, no gains": ["hra"], "llama, narrow": ["prompt"],
    "t5, turned, folded": ["a:adapter", "a:parallel", "a:scaled_parallel", "a:gated", "a:lora",
                           "a:gated_lora", "a:prefix", "a:mam", "a:unipelt"],
    "bert, heads turned": ["a:mam"], "gpt2, heads turned": ["a:lora", "a:unipelt"],
}
PERMUTED = {
    "llama, permuted": ["rslora", "dora", "ia3", "loha", "hra", "adalora", "ln", "flat"],
    "llama, permuted, folded": ["ln", "loha", "ia3"],
    "t5, permuted": ["a:adapter", "a:ia3", "a:channel", "a:unipelt"],
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
