"""Methods on hosts: library parameters to slots and back, and out again into plain adapters."""

from dataclasses import replace

import pytest
import torch

from portability.core.architectures import FAMILIES as TABLE
from portability.core.architectures import Slot
from portability.core.errors import UserError
from portability.methods import attach
from portability.methods.module import ModuleState, axis_size, equal
from portability.tasks.classification import Scorer
from support.tiny import FAMILIES, METHODS, TASK, noisy


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_slots_and_parameters_are_two_views_of_one_module(mount, family, method):
    attached = mount(method, family)
    module = noisy(attached, 0)
    parameters = attached.to_parameters(module)
    assert {name: tuple(v.shape) for name, v in parameters.items()} == {n: tuple(s)
                                                                        for n, s in attached.shapes.items()}
    assert equal(attached.to_state(parameters), module)
    assert module.entries == sum(value.numel() for value in parameters.values())
    stacks = set(TABLE[family].stacks) | {"shared"}
    for slot, tensor in module.tensors.items():
        assert slot.stack in stacks and Slot.parse(slot.key) == slot
        for label, size in zip(module.axes[slot], tensor.shape, strict=True):
            assert axis_size(label, attached.host.spec.shape) in (None, size), (slot, label)
    assert equal(ModuleState.from_file(*module.to_file()), module)


# adapters 1.3.0 loses Compacter's shared factor when it saves, and cannot save prefixes
LIBRARY_SAVES = ("adapter", "lora")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_a_module_loads_into_plain_adapters_and_gives_the_same_logits(mount, make_host, family, method,
                                                                      tmp_path):
    """A host loaded by transformers, the method added by adapters: the engine's logits are the reference."""
    import adapters
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    attached = mount(method, family)
    scorer = Scorer(attached.host, TASK)
    module, head = noisy(attached, 3), scorer.fresh_head(3)
    parameters = attached.to_parameters(module)
    ids = torch.randint(3, 20, (4, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    values = {f"model.{name}": value[None] for name, value in parameters.items()}
    with torch.no_grad():
        ours = scorer.stacked_logits(values | {n: v[None] for n, v in head.items()}, ids, mask)[0]
    kind = {"t5": AutoModelForSeq2SeqLM, "gpt2": AutoModelForCausalLM,
            "llama": AutoModelForCausalLM}.get(family, AutoModel)

    def plain():
        model = kind.from_pretrained(make_host(family).source, attn_implementation="eager").eval()
        adapters.init(model)
        return model

    def logits(model):
        scorer.model = model
        with torch.no_grad():
            return scorer.logits(head, ids, mask)

    other = plain()
    other.add_adapter("module", config=attached.config, set_active=True)
    assert not other.load_state_dict(parameters, strict=False).unexpected_keys
    assert torch.allclose(ours, logits(other), atol=1e-5)
    if method in LIBRARY_SAVES:
        other.save_adapter(str(tmp_path), "module", use_safetensors=True)
        third = plain()
        third.load_adapter(str(tmp_path), set_active=True, use_safetensors=True)
        assert torch.allclose(ours, logits(third), atol=1e-5)


def test_a_fused_query_key_value_matrix_splits_in_the_librarys_order(mount):
    """GPT-2 has one matrix for all three: each slot's product must be that third of the library's change."""
    attached = mount("lora", "gpt2")
    module = noisy(attached, 1)
    name = next(n for n in attached.shapes if "h.0.attn.c_attn" in n and n.endswith("lora_A"))
    layer = attached.host.model.transformer.h[0].attn.c_attn
    with torch.no_grad():
        for n, value in attached.to_parameters(module).items():
            dict(attached.host.model.named_parameters())[n].copy_(value)
        before = layer.weight.clone()
        change = layer._compute_adapted_weight("module", layer.loras["module"]) - before
    scaling = METHODS["lora"].settings["alpha"] / METHODS["lora"].settings["r"]
    change = change if change.shape == (32, 96) else change.T
    for place, site in enumerate(("query", "key", "value")):
        a, b = (module.tensors[Slot("decoder", 0, site, role)] for role in ("A", "B"))
        third = change[:, place * 32 : (place + 1) * 32]
        assert torch.allclose(third, scaling * (b.reshape(32, -1) @ a).T, atol=1e-5), (site, name)


@pytest.mark.parametrize(("method", "changes", "words"), [
    ("compacter", {"bottleneck": 6}, "bottleneck 6 must divide by phm_dim 4; a bottleneck of 4 would fit"),
    ("compacter", {"phm_dim": 5, "bottleneck": 10}, "width 32 must divide by phm_dim 5; a width of 30 would "
     "fit"),
    ("lora", {"rnak": 4}, "rnak"),
    ("lora", {"dropout": 0.1}, "dropout=0.1 is not supported"),
])
def test_settings_that_cannot_work_are_refused(load, method, changes, words):
    spec = replace(METHODS[method], settings={**METHODS[method].settings, **changes})
    with pytest.raises(UserError, match=words):
        attach(load(), spec)


@pytest.mark.parametrize("bottleneck", [5, 10, 16, 20, 24])
def test_the_bottleneck_has_the_size_that_was_asked_for(load, bottleneck):
    """The library floors width / factor: 64 / (64 / 20) is 19 there."""
    attached = attach(load("t5", 64, 1, 4), replace(METHODS["adapter"], settings={"bottleneck": bottleneck}))
    assert attached.init_parameters(0).tensors[Slot("encoder", 0, "attention",
                                                    "down_weight")].shape == (bottleneck, 64)


def test_unknown_config_classes_and_libraries_list_the_choices(load):
    with pytest.raises(UserError, match="LoRAConfig"):
        attach(load(), replace(METHODS["lora"], config="LoraConfig"))
    with pytest.raises(UserError, match="adapters"):
        attach(load(), replace(METHODS["lora"], library="peff"))
