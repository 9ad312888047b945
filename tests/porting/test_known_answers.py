"""Ports whose answer is known: to a host that computes the same in a hidden basis, a module must do what it
does on the origin. Each answer is shown to be missed under other maps."""

from itertools import permutations, product

import pytest
import scipy.linalg
import torch

from portability.core.errors import UserError
from portability.core.specs import MethodSpec
from portability.porting import maps as porting_maps
from portability.porting.activations import _batches, _pass
from portability.porting.heads import Cross, attention_maps, flipped, polar, signed_permutations, turned
from portability.porting.layer_maps import average_layers
from portability.porting.measured import by_moments
from portability.porting.strategies.corr import CORR
from portability.porting.strategies.procrustes import PROCRUSTES
from support.hidden import Basis, Mapped, Scene, answers, identity, noise, rotation, shuffled

LORA = MethodSpec("lora", "peft", "LoraConfig", {"r": 4, "lora_alpha": 8, "sites": ["attention", "ffn"]}, 1e-3)
WHOLE = {"values": True, "meetings": True, "heads": True}
BASES = {  # family, what is hidden
    "llama, turned, folded": ("llama", Basis("turned", folded=True, flipped=True, **WHOLE)),
    "llama, permuted": ("llama", Basis("permuted")),
    "llama, permuted, signed": ("llama", Basis("permuted", flipped=True, heads=True, signed=True)),
    "llama, stretched": ("llama", Basis("turned", folded=True, stretched=True)),
    "llama, the same": ("llama", Basis("none", units=False)),
    "gemma2, turned, folded": ("gemma2", Basis("permuted", flipped=True, **WHOLE)),
    "bert, permuted": ("bert", Basis("permuted")),
    "bert, heads turned": ("bert", Basis("permuted", **WHOLE)),
    "gpt2, heads turned": ("gpt2", Basis("permuted", **WHOLE)),
    "t5, turned, folded": ("t5", Basis("turned", folded=True, flipped=True, **WHOLE)),
}
TURNED = [name for name in BASES if "turned" in name]


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    made = {}

    def get(name):
        if name not in made:
            made[name] = Scene(tmp_path_factory.mktemp("hidden") / "scene", *BASES[name])
        return made[name]

    return get


def spoilt(strategy, spoil):
    """A strategy whose maps are changed."""
    return Mapped(strategy.maps, spoil, strategy.needs, strategy.by_unit)


@pytest.mark.parametrize("name", BASES)
def test_the_true_maps_carry_a_lora_exactly_and_others_do_not(scene, name):
    here = scene(name)
    bare, hidden = answers(here.load(here.origin)), answers(here.load(here.receiving))
    assert (here.here(hidden) - bare).norm() <= 1e-5 * bare.norm(), "a hidden host computes the same"
    assert here.error(LORA, here.true()) <= 1e-5
    assert here.error(LORA, here.true(noise)) > .3
    if name == "llama, the same":
        assert here.error(LORA, "copy") == 0
        return
    assert here.error(LORA, "copy") > .3 and here.error(LORA, here.true(identity)) > .3
    with pytest.raises(UserError, match="carries nothing"):
        here.port(LORA, here.true(torch.zeros_like))


@pytest.mark.parametrize("name", ["llama, the same", "llama, permuted", "bert, permuted", *TURNED])
def test_procrustes_finds_every_orthogonal_basis(scene, name):
    assert scene(name).error(LORA, "procrustes") <= 1e-5
