"""Our own LoRA on every matrix of a host, and starts that are subtracted, against merged weights and against
peft."""

import math
import re

import peft
import pytest
import torch
from transformers import AutoModel

from portability.core.architectures import Slot
from portability.core.errors import UserError
from portability.hosts.host import load_host
from portability.methods import attach
from portability.methods.module import ModuleState, equal
from portability.methods.subtractive_lora import Pair
from portability.tasks.classification import Scorer
from support.lora import ALL, KINDS, METHOD, method, named
from support.tiny import FAMILIES, TASK, noisy

QKVO = ("query", "key", "value", "attention_out")


def blocks(attached, seed):
    """A random matrix for every pair's site, as `subtract: block` takes them."""
    generator, fresh = torch.Generator().manual_seed(seed), attached.init_parameters(0)
    tensors, axes = {}, {}
    for slot in [slot for slot in fresh.tensors if slot.role == "A"]:
        out, place = slot._replace(role="B"), slot._replace(role="D")
        axes[place] = fresh.axes[out][:-1] + fresh.axes[slot][1:]
        size = fresh.tensors[out].shape[:-1] + fresh.tensors[slot].shape[1:]
        tensors[place] = 0.1 * torch.randn(size, generator=generator)
    return ModuleState(tensors, axes)


def inputs(size=4):
    ids = torch.randint(3, 20, (size, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    return ids, mask


def logits(scorer, attached=None, module=None, start=None):
    """Logits with a seed's head and a module, or of the host as it is."""
    values = scorer.fresh_head(3)
    if module is not None:
        values = named(attached.to_parameters(module)) | values
    if start is not None:
        values = named(attached.to_frozen(start)) | values
    with torch.no_grad():
        return scorer.logits(values, *inputs())


# ---- merged weights: names of the hosts' matrices, written a second time


def weights_of(family, slot):
    """Name of a site's weight in transformers, and which third of it (GPT-2's query, key, value), or None."""
    stack, layer, site, _ = slot
    plain = site.removeprefix("cross_")
    if site == "embedding":
        return {"t5": "shared", "gpt2": "transformer.wte", "llama": "model.embed_tokens"}.get(
            family, "embeddings.word_embeddings"), None
    if site == "head":
        return "lm_head", None
    if family == "t5":
        if plain in QKVO:
            attention = "1.EncDecAttention" if site != plain else "0.SelfAttention"
            return f"{stack}.block.{layer}.layer.{attention}.{'qkvo'[QKVO.index(plain)]}", None
        last = 1 if stack == "encoder" else 2
        name = {"ffn_up": "wi_1", "ffn_gate": "wi_0", "ffn_down": "wo"}[site]
        return f"{stack}.block.{layer}.layer.{last}.DenseReluDense.{name}", None
    if family == "llama":
        names = dict(zip(QKVO, ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
                                "self_attn.o_proj"), strict=True))
        names |= {"ffn_up": "mlp.up_proj", "ffn_gate": "mlp.gate_proj", "ffn_down": "mlp.down_proj"}
        return f"model.layers.{layer}.{names[site]}", None
    if family == "gpt2":
        names = {"attention_out": "attn.c_proj", "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"}
        return f"transformer.h.{layer}.{names.get(site, 'attn.c_attn')}", QKVO.index(site) if site in QKVO[
            :3] else None
    names = {"attention_out": "attention.output.dense", "ffn_up": "intermediate.dense",
             "ffn_down": "output.dense"}
    return f"encoder.layer.{layer}.{names.get(site, f'attention.self.{site}')}", None


def merge(model, family, slot, change):
    """Add a change (out, in) to the weight of a site."""
    name, third = weights_of(family, slot)
    weight = model.get_submodule(name).weight
    change = change.T if slot.site == "embedding" or "c_" in name else change
    place = weight if third is None else weight[:, third * change.shape[1] : (third + 1) * change.shape[1]]
    with torch.no_grad():
        place += change


def plain_model(spec, family):
    """The host's folder loaded by transformers alone; the head has a matrix of its own."""
    model = KINDS.get(family, AutoModel).from_pretrained(spec.source,
                                                         attn_implementation="eager").eval().requires_grad_(
                                                             False)
    if model.get_output_embeddings() is not None:
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone(), requires_grad=False)
    return model


def changes(module):
    """Slot of each A -> (out, in) product of its pair."""
    for slot, a in module.tensors.items():
        if slot.role == "A":
            b = module.tensors[slot._replace(role="B")]
            yield slot, b.reshape(-1, b.shape[-1]) @ a.reshape(len(a), -1)


def merged(attached, module, start=None):
    """Logits of the host's folder, loaded plainly, with a module added to its weights and a start taken
    off."""
    family, scale = attached.host.family, attached.scale
    scorer, model = Scorer(attached.host, TASK), plain_model(attached.host.spec, attached.host.family)
    for slot, change in changes(module):
        merge(model, family, slot, scale * change)
    for slot, change in changes(start) if start else ():
        merge(model, family, slot, -scale * change)
    for slot, block in start.tensors.items() if start else ():
        if slot.role == "D":
            into = attached.init_parameters(0).tensors[slot._replace(role="A")][0].numel()
            merge(model, family, slot, -scale * block.reshape(-1, into))
    scorer.model = model
    return logits(scorer)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_fresh_module_changes_nothing_and_taking_it_off_leaves_the_host_as_it_was(load, family):
    host = load(family)
    scorer = Scorer(host, TASK)
    bare, before = logits(scorer), {name: id(p) for name, p in host.model.named_parameters()}
    attached = attach(host, METHOD)
    assert torch.equal(logits(scorer, attached, attached.init_parameters(1)),
                       bare) and torch.equal(logits(scorer), bare)
    assert not torch.allclose(logits(scorer, attached, noisy(attached, 1)), bare, atol=1e-3)
    attached.detach()
    assert {name: id(p) for name, p in host.model.named_parameters()} == before and torch.equal(
        logits(scorer), bare)


@pytest.mark.parametrize(("family", "sites"), [(f, ALL) for f in FAMILIES] + [
    ("gpt2", ["key"]), ("gpt2", ["query", "value"]), ("t5", ["query", "ffn_gate"]), ("llama", ["head"])])
def test_merged_weights_give_the_same_logits(load, family, sites):
    attached = attach(load(family), method(sites=sites))
    module = noisy(attached, 0)
    sizes = {(slot.stack, slot.site): slot for slot in module.tensors}
    if sites == ALL:  # every matrix of the host, norms and tables of positions left
        assert len(sizes) == {"t5": 7 + 11 + 2, "bert": 7, "roberta": 7, "gpt2": 8, "llama": 9}[family]
    assert equal(attached.to_state(attached.to_parameters(module)), module)
    assert torch.allclose(logits(Scorer(attached.host, TASK), attached, module), merged(attached, module),
                          atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("subtract", ["product", "block"])
def test_a_start_is_subtracted(load, family, subtract):
    attached = attach(load(family), method(subtract=subtract))
    module, start = noisy(attached, 0), noisy(attached, 1) if subtract == "product" else blocks(attached, 1)
    ours = logits(Scorer(attached.host, TASK), attached, module, start)
    assert torch.allclose(ours, merged(attached, module, start), atol=1e-4)
    assert not torch.allclose(ours, logits(Scorer(attached.host, TASK), attached, module), atol=1e-2)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_subtracted_start_is_the_host_to_the_bit(make_host, family, precision):
    attached = attach(load_host(make_host(family), precision=precision), METHOD)
    scorer, starts = Scorer(attached.host, TASK), [noisy(attached, seed) for seed in (0, 1)]
    bare = logits(scorer)
    for start in starts:
        assert torch.equal(logits(scorer, attached, start, start), bare)
    held = [named(attached.to_parameters(one) | attached.to_frozen(one)) | scorer.fresh_head(3)
            for one in starts]
    both = scorer.stacked_logits({name: torch.stack([one[name] for one in held]) for name in held[0]},
                                 *inputs())
    assert torch.allclose(both, bare.expand_as(both), atol=1e-6 if precision == "fp32" else 1e-2)
    assert torch.equal(both[0], both[1])  # two starts, one function


def test_in_bf16_a_small_step_from_a_large_start_is_not_rounded_away(make_host):
    """Both products rounded for themselves would differ from one another by more than this step changes."""
    pair, step = make_pair(64, 48, 16, seed=0), 1e-3
    x = torch.randn(8, 64, generator=torch.Generator().manual_seed(1))
    pair.A0, pair.B0 = pair.A.detach().clone(), pair.B.detach().clone()
    with torch.no_grad():
        pair.B += step * torch.randn(pair.B.shape, generator=torch.Generator().manual_seed(2))
        exact = (x.double() @ pair.A.T.double()) @ (pair.B - pair.B0).T.double()
        with torch.autocast("cpu", torch.bfloat16):
            ours, apart = pair(x).double(), ((x @ pair.A.T) @ pair.B.T - (x @ pair.A0.T) @ pair.B0.T).double()
    error = [float((value - exact).norm() / exact.norm()) for value in (ours, apart)]
    assert error[0] < 0.01 < 0.3 < error[1]


def make_pair(into, out, rank, seed):
    pair, generator = Pair(rank, into, out, 1.0, lookup=False), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in (pair.A, pair.B):
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return pair


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_flow_to_the_pairs_alone(load, family):
    attached = attach(load(family), METHOD)
    scorer, start = Scorer(attached.host, TASK), noisy(attached, 1)
    values = {name: value.requires_grad_()
              for name, value in named(attached.to_parameters(noisy(attached, 0))).items()}
    frozen, head = named(attached.to_frozen(start)), scorer.fresh_head(0)
    scorer.logits(values | frozen | head, *inputs()).square().sum().backward()
    idle = r"decoder.*\.SelfAttention\.[qk]\."  # T5 decodes one token, which sees nothing but itself
    assert all(value.grad is not None and bool(value.grad.any()) != bool(re.search(idle, n))
               for n, value in values.items())
    assert not any(value.requires_grad for value in frozen.values())
    assert all(p.grad is None for p in attached.host.model.parameters())
    assert {n for n, p in attached.host.model.named_parameters() if p.requires_grad} == set(attached.shapes)


# ---- peft


@pytest.mark.parametrize(("family", "targets"), [
    ("t5", ["q", "k", "v", "o", "wi_0", "wi_1", "wo"]), ("bert", ["query", "key", "value", "dense"]),
    ("roberta", ["query", "key", "value", "dense"]), ("gpt2", ["c_proj", "c_fc"]),
    ("llama", ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "embed_tokens"])])
def test_pefts_lora_with_the_same_weights_gives_the_same_logits(load, family, targets):
    sites = {"gpt2": ["attention_out", "ffn"], "llama": ["attention", "ffn", "embedding"]}.get(family,
                                                                                               ["attention",
                                                                                                "ffn"])
    attached = attach(load(family), method(sites=sites))
    module, model = noisy(attached, 0), plain_model(attached.host.spec, family)
    scorer = Scorer(attached.host, TASK)
    ours = logits(scorer, attached, module)
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=targets, fan_in_fan_out=family == "gpt2",
                             exclude_modules=["pooler.dense"] if "dense" in targets else None)
    peft.inject_adapter_in_model(config, model)
    left = {name for name, p in model.named_parameters() if "lora_" in name}
    with torch.no_grad():
        for slot, value in module.tensors.items():
            layer = model.get_submodule(weights_of(family, slot)[0])
            lookup = slot.site == "embedding"
            held = getattr(layer, f"lora_{'embedding_' if lookup else ''}{slot.role}")["default"]
            weight = held if lookup else held.weight
            weight.copy_(value.reshape(weight.shape))
            left -= {name for name, p in model.named_parameters() if p is weight}
    scorer.model = model
    assert not left and torch.allclose(logits(scorer), ours, atol=1e-5)


def test_fresh_pairs_are_drawn_as_peft_draws_them(load):
    attached = attach(load("llama"), method(sites=["embedding", "query"]))
    fresh, model = attached.init_parameters(9), plain_model(attached.host.spec, "llama")
    peft.inject_adapter_in_model(peft.LoraConfig(r=4, target_modules=["embed_tokens", "q_proj"]), model)
    torch.manual_seed(9)
    for name, site in [("embed_tokens", Slot("shared", 0, "embedding", "B"))] + [
            (f"layers.{layer}.self_attn.q_proj", Slot("decoder", layer, "query", "A")) for layer in (0, 1)]:
        layer = model.get_submodule(f"model.{name}")
        layer.reset_lora_parameters("default", True)
        held = layer.lora_embedding_B["default"] if site.role == "B" else layer.lora_A["default"].weight
        assert torch.equal(fresh.tensors[site].reshape(held.shape), held)
        assert not fresh.tensors[site._replace(role="AB"["BA".index(site.role)])].any()
    state = torch.random.get_rng_state()
    assert equal(attached.init_parameters(9), fresh) and not equal(attached.init_parameters(8), fresh)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert fresh.tensors[Slot("decoder", 0, "query", "A")].abs().max() <= 1 / math.sqrt(32)


def test_matrices_of_unequal_widths_in_one_layer_are_refused(load):
    with pytest.raises(UserError, match="qkv_proj of host .* unequal widths in one.*method=lora_peft"):
        attach(load("phi3"), method(sites=["attention"]))
