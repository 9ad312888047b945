"""Settings of our own LoRA: what cannot work is refused in one sentence, before the host is changed."""

from dataclasses import replace

import pytest

from portability.core.errors import UserError
from portability.methods import attach
from support.lora import METHOD, method
from support.tiny import METHODS


@pytest.mark.parametrize(("family", "settings", "words"), [
    ("gpt2", {"sites": ["ffn_gate"]}, r"\(gpt2\) has no site 'ffn_gate'; it has attention_out, embedding, "
     r"ffn_down, ffn_up"),
    ("bert", {"sites": ["head"]}, r"\(bert\) has none of the sites head"),
    ("t5", {"sites": ["atention"]}, "unknown site of method 'own' 'atention'; choose one of: attention, "
     "attention_out"),
    ("t5", {"sites": "attention"}, "sites must be a list such as .*, got 'attention'"),
    ("t5", {"sites": []}, r"sites must be a list such as .*, got \[\]"),
    ("t5", {"rank": 4}, "unknown setting of method 'own' 'rank'; choose one of: alpha, r, sites, subtract"),
    ("t5", {"dropout": 0.05}, "unknown setting of method 'own' 'dropout'"),
    ("t5", {"r": 0}, "r must be a whole number above 0, got 0"),
    ("t5", {"r": 2.5}, "r must be a whole number above 0, got 2.5"),
    ("t5", {"alpha": -1}, "alpha must be a number above 0, got -1"),
    ("t5", {"subtract": "both"}, "unknown subtract of method 'own' 'both'; choose one of: block, product"),
])
def test_wrong_settings_are_refused(load, family, settings, words):
    host = load(family)
    names = [name for name, _ in host.model.named_parameters()]
    with pytest.raises(UserError, match=words):
        attach(host, method(**settings))
    assert [name for name, _ in host.model.named_parameters()] == names


def test_a_setting_that_is_not_there_and_another_class_are_refused(load):
    with pytest.raises(UserError, match=r"method 'own' lacks the setting sites \(conf/method/own.yaml\)"):
        attach(load(), replace(METHOD, settings={"r": 4}))
    with pytest.raises(UserError, match="unknown config class of portability 'LoRAConfig'; choose one of: "
                       "LoRA"):
        attach(load(), replace(METHOD, config="LoRAConfig"))


def test_groups_take_what_a_family_has_and_alpha_is_r_by_default(load):
    attached = attach(load("bert"), method(sites=["ffn", "head"], alpha=None))
    assert {slot.site for slot in attached.init_parameters(0).tensors} == {"ffn_up", "ffn_down"}
    assert attached.scale == 1.0


def test_a_start_that_does_not_fit_or_a_library_that_cannot_subtract_is_refused(load):
    attached = attach(load(), METHOD)
    start = attached.init_parameters(0)
    with pytest.raises(ValueError, match="module does not fit host .* at shared.0.head.B"):
        attached.to_frozen(start.map({slot: value for slot, value in start.tensors.items()
                                      if slot.key != "shared.0.head.B"}))
    with pytest.raises(UserError, match="method 'lora' of library adapters cannot subtract a start"):
        attach(load(), METHODS["lora"]).to_frozen(start)
