"""A matrix of several sites against separate ones: modules go by role from one family to another."""

import json
import re

import numpy as np
import peft
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from portability.core.architectures import Slot
from portability.core.errors import UserError
from portability.core.specs import MethodSpec, PortSpec
from portability.hosts.host import load_host
from portability.hosts.sources import HostSource, describe
from portability.methods import attach
from portability.methods.files import read_folder
from portability.porting.adapter import port_folder
from portability.porting.base import PortContext
from portability.porting.calibration import calibration
from portability.porting.port import port
from portability.porting.roles import by_roles
from portability.porting.spaces import runs
from support.peft_methods import write_plain
from support.tiny import model, noisy, sentences, tokenizer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
WEIGHTS = "adapter_model.safetensors"
JOINED = "query+key+value"
SITES = ("query", "key", "value")
PARTIAL = PortSpec("pad", "pad", "stretch", partial=True)
TEXTS = [row["text"] for row in sentences(300, 5)]


def lora(**settings):
    usual = {"r": 4, "lora_alpha": 8, "sites": ["attention", "ffn"]}
    return MethodSpec("lora", "peft", "LoraConfig", usual | settings, 1e-3)


def product(module, layer, site, stack="decoder"):
    """B A, (out, in), wherever a module keeps them."""
    whole = next(slot.site for slot in module.tensors if slot.layer == layer and site in slot.site.split("+"))
    role = "B" if whole == site else f"B_{site}"
    b, a = (module.tensors[Slot(stack, layer, whole, one)] for one in (role, "A"))
    if (scale := module.tensors.get(Slot(stack, layer, whole, "E"))) is not None:
        a = a * scale
    return b.reshape(-1, b.shape[-1]).double() @ a.reshape(len(a), -1).double()


@pytest.fixture(scope="module")
def modules(load):
    """family, method, seed -> a noisy module on a host of 2 layers, and the host's shape."""
    def make(family, spec, seed=1):
        attached = attach(load(family, 32, 2, 4), spec)
        return noisy(attached, seed), attached.host.spec.shape

    return make


def with_one_a(module):
    """The module with one A beside query, key and value."""
    return module.map({slot: module.tensors[slot._replace(site="query")] if (
        slot.role == "A" and slot.site in SITES) else tensor for slot, tensor in module.tensors.items()})


# ---- what becomes of the pairs


def test_different_pairs_stand_side_by_side_where_the_rank_has_room(modules):
    module, shape = modules("opt", lora())
    fresh, _ = modules("gpt2", lora(r=12))
    found, notes = by_roles(module, fresh, shape)
    assert {slot.site for slot in found.tensors} == {slot.site for slot in fresh.tensors}
    assert all(torch.allclose(product(found, layer, site), product(module, layer, site), atol=1e-6)
               for layer in range(2) for site in (*SITES, "attention_out", "ffn_up", "ffn_down"))
    assert len(notes) == 1 and "loses 0.00%" in notes[0] and JOINED in notes[0]


def test_without_room_they_are_the_best_of_that_rank_and_the_loss_is_said(modules):
    module, shape = modules("opt", lora())
    fresh, _ = modules("gpt2", lora())
    found, notes = by_roles(module, fresh, shape)
    kept = whole = 0.0
    for layer in range(2):
        stacked = np.concatenate([product(module, layer, site).numpy() for site in SITES])
        left, scale, right = np.linalg.svd(stacked, full_matrices=False)
        got = np.concatenate([product(found, layer, site).numpy() for site in SITES])
        assert np.allclose(got, left[:, :4] * scale[:4] @ right[:4], atol=1e-5)
        kept, whole = kept + (scale[:4]**2).sum(), whole + (scale**2).sum()
    said = float(re.search(r"loses ([\d.]+)%", notes[0])[1])
    assert said == pytest.approx(100 * (1 - kept / whole), abs=0.006) and said > 5
    assert found.tensors[Slot("decoder", 0, JOINED, "A")].shape == (4, 32)


def test_one_a_for_all_stays_as_it_is(modules):
    module, shape = modules("opt", lora())
    module = with_one_a(module)
    fresh, _ = modules("gpt2", lora())
    found, notes = by_roles(module, fresh, shape)
    for layer in range(2):
        joined = Slot("decoder", layer, JOINED, "A")
        assert torch.equal(found.tensors[joined], module.tensors[joined._replace(site="query")])
        for site in SITES:
            assert torch.equal(found.tensors[joined._replace(role=f"B_{site}")],
                               module.tensors[Slot("decoder", layer, site, "B")])
    back, none = by_roles(found, module, shape)
    assert back.tensors.keys() == module.tensors.keys() and not none and "0.00%" in notes[0]
    assert all(torch.equal(tensor, module.tensors[slot]) for slot, tensor in back.tensors.items())
    assert back.axes == module.axes


def test_of_two_matrices_with_one_a_and_another_the_ranks_add_up_once(modules):
    module, shape = modules("opt", lora())
    module = module.map({slot: module.tensors[slot._replace(site="query")] if (slot.site, slot.role) == (
        "value", "A") else tensor for slot, tensor in module.tensors.items()})
    found, _ = by_roles(module, modules("gpt2", lora(r=12))[0], shape)
    assert len(found.tensors[Slot("decoder", 1, JOINED, "A")]) == 8
    assert all(torch.allclose(product(found, 1, site), product(module, 1, site), atol=1e-6) for site in SITES)


def test_a_site_without_a_pair_gets_zeros(modules):
    module, shape = modules("opt", lora(sites=["query", "value"]))
    found, _ = by_roles(module, modules("gpt2", lora(r=8))[0], shape)
    assert not product(found, 0, "key").any()
    assert torch.allclose(product(found, 0, "value"), product(module, 0, "value"), atol=1e-6)


def test_an_adaloras_singular_values_come_along(modules):
    spec = MethodSpec("adalora", "peft", "AdaLoraConfig", {
        "sites": ["attention"], "init_r": 4, "target_r": 4, "total_step": 100}, 1e-3)
    module, shape = modules("llama", spec)
    fresh, _ = modules("phi3", spec)
    found, _ = by_roles(module, fresh, shape)
    stacked = torch.cat([product(module, 0, site) for site in SITES])
    left, scale, right = torch.linalg.svd(stacked, full_matrices=False)
    got = torch.cat([product(found, 0, site) for site in SITES])
    assert torch.allclose(got, left[:, :4] * scale[:4] @ right[:4], atol=1e-5)
    assert found.tensors.keys() == fresh.tensors.keys()
    back, _ = by_roles(found, module, shape)
    assert torch.allclose(product(back, 0, "value"), product(found, 0, "value"), atol=1e-6)


def test_what_comes_out_of_each_site_is_only_named_anew(modules):
    spec = MethodSpec("ia3", "peft", "IA3Config", {"sites": ["attention"]}, 1e-3)
    module, shape = modules("opt", spec)
    fresh, _ = modules("gpt2", spec)
    found, notes = by_roles(module, fresh, shape)
    assert found.tensors.keys() == fresh.tensors.keys() and not notes
    assert torch.equal(found.tensors[Slot("decoder", 1, JOINED, "ia3_l_key")],
                       module.tensors[Slot("decoder", 1, "key", "ia3_l")])
    back, _ = by_roles(found, module, shape)
    assert all(torch.equal(tensor, module.tensors[slot]) for slot, tensor in back.tensors.items())


def test_reflections_of_what_goes_into_separate_matrices_are_refused_in_one_sentence(modules):
    spec = MethodSpec("hra", "peft", "HRAConfig", {"sites": ["attention"], "r": 4}, 1e-3)
    module, shape = modules("llama", spec)
    fresh, _ = modules("phi3", spec)
    with pytest.raises(UserError, match=r"query\+key\+value is one matrix of the .*, with one u for all"):
        by_roles(module, fresh, shape)
    same = module.map({slot: module.tensors[slot._replace(site="query")] if slot.site in SITES else tensor
                       for slot, tensor in module.tensors.items()})
    found, _ = by_roles(same, fresh, shape)
    assert found.tensors.keys() == fresh.tensors.keys()


def test_modules_of_one_family_stay_the_same_object_for_object(modules):
    for family in ("gpt2", "opt"):
        module, shape = modules(family, lora())
        found, notes = by_roles(module, module, shape)
        assert not notes and all(found.tensors[slot] is tensor for slot, tensor in module.tensors.items())


def test_weights_of_a_frozen_random_matrix_are_not_taken_apart(modules):
    spec = MethodSpec("vera", "peft", "VeraConfig", {"sites": ["attention"], "r": 4}, 1e-3)
    module, shape = modules("phi3", spec)
    fresh, _ = modules("llama", spec)
    found, _ = by_roles(module, fresh, shape)
    assert found.tensors.keys() == module.tensors.keys()


# ---- ports of folders through plain peft


@pytest.fixture(scope="module")
def twins(tmp_path_factory):
    """A Llama, and a Phi-3 with the same weights, which computes the same."""
    torch.manual_seed(3)
    one, other = model("llama", 32, 2, 4), model("phi3", 32, 2, 4)
    for value in one.parameters():
        if value.ndim == 2:
            value.data.normal_(0, 0.3)
        else:
            value.data = 0.5 + torch.rand(value.shape)
    have, other.config.rms_norm_eps = one.state_dict(), one.config.rms_norm_eps
    for name, value in other.state_dict().items():
        parts = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
        for joined, names in parts.items():
            if joined in name:
                value.copy_(torch.cat([have[name.replace(joined, part)] for part in names]))
                break
        else:
            value.copy_(have[name])
    specs = []
    for name, made in (("a-llama", one), ("a-phi3", other)):
        folder = tmp_path_factory.mktemp("twins") / name
        made.save_pretrained(folder)
        tokenizer().save_pretrained(folder)
        specs.append(describe(HostSource(name, path=str(folder))))
    return specs


def logits(host, folder=None):
    """Of a host, or of it with the adapter of a folder, by peft alone."""
    made = load_host(host)
    bare = made.model if folder is None else PeftModel.from_pretrained(made.model, folder).eval()
    tok = made.tokenizer(TEXTS[:8], padding=True, return_tensors="pt")
    with torch.no_grad():
        return bare(input_ids=tok["input_ids"], attention_mask=tok["attention_mask"]).logits[
            tok["attention_mask"].bool()]


def distance(got, known, bare):
    return float((got - known).norm() / (known - bare).norm())


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"use_dora": True}, {"target_modules": [
    "q_proj", "v_proj", "down_proj"]}])
def test_a_folder_of_separate_pairs_does_the_same_beside_matrices_of_several(twins, tmp_path, settings):
    llama, phi3 = twins
    bare = logits(llama)
    assert torch.allclose(bare, logits(phi3), atol=1e-5)
    write_plain_on(llama, tmp_path / "in", **settings)
    done = port_folder(read_folder(tmp_path / "in"), llama, phi3)
    done.write(tmp_path / "out", "base")
    known = logits(llama, tmp_path / "in")
    assert distance(logits(phi3, tmp_path / "out"), known, bare) < 1e-4
    assert done.report.carried_fraction == 1.0
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert 4 in (config["r"], *config["rank_pattern"].values())
    assert any("loses 0.00%" in note for note in done.report.notes)
    # and back to separate ones
    again = port_folder(read_folder(tmp_path / "out"), phi3, llama)
    again.write(tmp_path / "back", "base")
    assert distance(logits(llama, tmp_path / "back"), known, bare) < 1e-4


def write_plain_on(spec, folder, **settings):
    host = load_host(spec)
    values = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj",
                                                          "up_proj", "down_proj"], **settings}
    torch.manual_seed(0)
    made = peft.get_peft_model(host.model, peft.LoraConfig(**values))
    for parameter in made.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    made.save_pretrained(folder)


def test_a_folder_whose_pairs_share_an_a_comes_back_bit_by_bit(load, make_host, tmp_path):
    """BERT to ModernBERT and back; ranks and scales stay, and the gate that BERT lacks is zero."""
    bert, modern = make_host("bert", 32, 2, 4), make_host("modernbert", 32, 2, 4)
    write_plain(tmp_path / "in", load("bert", 32, 2, 4), "lora")
    values = load_file(tmp_path / "in" / WEIGHTS)
    for key in list(values):
        if re.search(r"self\.(key|value)\.lora_A", key):
            values[key] = values[re.sub(r"self\.\w+", "self.query", key)].clone()
    save_file(values, tmp_path / "in" / WEIGHTS)
    there = port_folder(read_folder(tmp_path / "in"), bert, modern)
    there.write(tmp_path / "out", "base")
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["rank_pattern"]) == (4, 8, {})
    gate = load_file(tmp_path / "out" / WEIGHTS)["base_model.model.layers.0.mlp.Wi.lora_B.weight"]
    assert not gate[:64].any() and gate[64:].all()
    back = port_folder(read_folder(tmp_path / "out"), modern, bert)
    back.write(tmp_path / "back", "base")
    after = load_file(tmp_path / "back" / WEIGHTS)
    assert after.keys() == values.keys() and all(torch.equal(after[key], values[key]) for key in after)


def test_pairs_of_unequal_scale_are_not_put_together(load, make_host, tmp_path):
    write_plain(tmp_path / "in", load("opt", 32, 2, 4), "lora", alpha_pattern={"q_proj": 32})
    with pytest.raises(UserError, match="pairs of unequal scale .* would become one, those of decoder.0.key, "
                       "decoder.0.query"):
        port_folder(read_folder(tmp_path / "in"), make_host("opt", 32, 2, 4), make_host("gpt2", 32, 2, 4))


def test_pairs_of_unequal_rank_and_one_scale_are_put_together(load, make_host, tmp_path):
    write_plain(tmp_path / "in", load("opt", 32, 2, 4), "lora", rank_pattern={"q_proj": 2},
                alpha_pattern={"q_proj": 4})
    done = port_folder(read_folder(tmp_path / "in"), make_host("opt", 32, 2, 4), make_host("gpt2", 32, 2, 4))
    assert done.spec.settings["rank_pattern"] == {f"h.{layer}.attn.c_attn": 10 for layer in range(2)}
    assert done.spec.settings["alpha_pattern"] == {f"h.{layer}.attn.c_attn": 20 for layer in range(2)}


# ---- across families


KEPT = {  # origin, receiving -> sites that have a counterpart, and some of what is left behind
    ("t5", "bert"): ({"query", "key", "value", "attention_out", "ffn_up", "ffn_down"},
                     ["decoder.1.cross_query.A (origin)", "decoder.0.query.B (origin)",
                      "encoder.1.ffn_gate.B (origin)"]),
    ("bert", "t5"): ({"query", "key", "value", "attention_out", "ffn_up", "ffn_down"}, []),
    ("bert", "roberta"): ({"query", "key", "value", "attention_out", "ffn_up", "ffn_down"}, []),
    ("bert", "deberta-v2"): ({"query", "key", "value", "attention_out", "ffn_up", "ffn_down"}, []),
    ("t5", "gpt2"): ({JOINED, "attention_out", "ffn_up", "ffn_down"},
                     ["decoder.1.cross_value.B (origin)", "encoder.0.query.A (origin)"]),
    ("llama", "gpt2"): ({JOINED, "attention_out", "ffn_up", "ffn_down"}, ["decoder.0.ffn_gate.A (origin)"]),
    ("gpt2", "llama"): ({"query", "key", "value", "attention_out", "ffn_up", "ffn_down"}, []),
    ("bert", "llama"): ({"query", "key", "value", "attention_out", "ffn_up", "ffn_down"}, []),
    ("llama", "bert"): ({"query", "key", "value", "attention_out", "ffn_up", "ffn_down"},
                        ["decoder.0.ffn_gate.A (origin)"]),
    ("modernbert", "bert"): ({"query", "key", "value", "attention_out", "ffn_up", "ffn_down"},
                             ["encoder.0.ffn_gate.B (origin)"]),
    ("bert", "modernbert"): ({JOINED, "attention_out", "ffn_gate+ffn_up", "ffn_down"}, []),
    ("phi3", "t5"): ({"query", "key", "value", "attention_out", "ffn_gate", "ffn_up", "ffn_down"}, []),
}


@pytest.mark.parametrize(("origin", "receiving"), KEPT)
def test_a_folder_goes_to_the_sites_of_its_roles(origin, receiving, load, make_host, tmp_path):
    sites, left = KEPT[origin, receiving]
    write_plain(tmp_path / "in", load(origin, 32, 2, 4), "lora")
    done = port_folder(read_folder(tmp_path / "in"), make_host(origin, 32, 2, 4),
                       make_host(receiving, 48, 3, 6), PARTIAL)
    assert {slot.site for slot in done.port.module.tensors} == sites
    dropped = [name for name, action in done.report.tensors.items() if action == "dropped"]
    assert set(left) <= set(dropped) and bool(left) == bool(dropped)
    assert "fresh" not in done.report.tensors.values()
    assert not any("cross" in name for name in done.report.tensors if "(origin)" not in name)
    done.write(tmp_path / "out", "base")
    host = load(receiving, 48, 3, 6)
    made = PeftModel.from_pretrained(host.model, tmp_path / "out")
    held = {key.replace(".default", "") for key in made.state_dict() if "lora_" in key}
    assert held == load_file(tmp_path / "out" / WEIGHTS).keys()
    if left:
        with pytest.raises(UserError, match="would lose"):
            port_folder(read_folder(tmp_path / "in"), make_host(origin, 32, 2, 4),
                        make_host(receiving, 48, 3, 6))


def test_a_module_of_one_stack_of_two_goes_to_a_host_that_has_only_the_other(make_host, tmp_path):
    write_plain_on(make_host("t5", 32, 2, 4), tmp_path / "in", target_modules=r"encoder.*\.(q|v|wo)")
    done = port_folder(read_folder(tmp_path / "in"), make_host("t5", 32, 2, 4), make_host("llama", 32, 2, 4))
    assert done.report.layer_map["decoder"] == [[0], [1]] and done.report.carried_fraction == 1.0


@pytest.mark.parametrize(("origin", "receiving", "sites"), [
    ("t5", "bert", ["attention", "ffn"]), ("bert", "t5", ["attention", "ffn"]),
    ("bert", "gpt2", ["attention", "ffn"]), ("gpt2", "bert", ["attention", "ffn"]),
    ("phi3", "llama", ["attention", "ffn"]), ("llama", "gpt2", ["ffn"]),
    ("modernbert", "bert", ["ffn"]),
])
def test_a_studys_module_goes_through_maps_of_its_roles(origin, receiving, sites, load, modules):
    spec, texts = lora(sites=sites), calibration("texts", TEXTS)
    source, target = load(origin, 32, 2, 4), attach(load(receiving, 32, 2, 4), spec)
    module, _ = modules(origin, spec)
    done = port(module, PortContext(source.spec, target.host.spec, target.init_parameters(0), PortSpec(
        "procrustes", "procrustes", "stretch", partial=True), load_host, lambda: texts))
    actions = done.report.tensors
    assert "transported" in actions.values()
    fresh = [key for key, action in actions.items() if action == "fresh"]
    assert all(receiving == "t5" and (key.startswith("decoder") or "ffn_gate" in key) for key in fresh)
    moved = [slot for slot, mask in done.carried.items() if mask.any()]
    assert all(done.module.tensors[slot].any() for slot in moved)


@pytest.mark.parametrize("strategy", ["pad", "procrustes"])
def test_a_known_answer_of_separate_pairs_and_one_matrix(twins, strategy):
    """On twins, one A for all three: the port gives what the origin gave. With three As of a rank without
    room, what is lost is what the note says."""
    llama, phi3 = twins
    texts = calibration("texts", TEXTS)
    source, target = (attach(load_host(host), lora()) for host in twins)
    module = noisy(source, 1)
    one_a = with_one_a(module)
    one_a = one_a.map({slot: one_a.tensors[slot._replace(site="ffn_up")] if (slot.site, slot.role) == (
        "ffn_gate", "A") else tensor for slot, tensor in one_a.tensors.items()})
    bare = run(source, None)
    found = {}
    for name, own in (("one", one_a), ("three", module)):
        done = port(own, PortContext(llama, phi3, target.init_parameters(0), PortSpec(
            strategy, strategy, "stretch"), load_host, lambda: texts))
        found[name] = distance(run(target, done.module), run(source, own), bare)
        assert len(done.report.notes) == 2
    assert found["one"] < (1e-3 if strategy == "pad" else 0.02)
    assert 0.05 < found["three"] < 1.0


def run(attached, module):
    values = attached.to_parameters(module) if module is not None else {
        name: torch.zeros(shape) for name, shape in attached.shapes.items()}
    parameters = dict(attached.host.model.named_parameters())
    with torch.no_grad():
        for name, value in values.items():
            parameters[name].copy_(value)
        tok = attached.host.tokenizer(TEXTS[:8], padding=True, return_tensors="pt")
        made = attached.host.model(input_ids=tok["input_ids"], attention_mask=tok["attention_mask"]).logits
    return made[tok["attention_mask"].bool()].clone()


@pytest.mark.parametrize("site", SITES)
def test_what_comes_out_of_each_site_of_one_matrix_is_a_space_of_its_own(site):
    for role in ("B", "magnitude", "ia3_l", "w1_a"):
        run, = runs(Slot("decoder", 0, JOINED, f"{role}_{site}"), ("kv_heads", "head_dim", "one"))
        assert run.space == ("decoder", 0, site, "out")
    assert runs(Slot("decoder", 0, JOINED, "A"), ("rank", "hidden"))[0].space == ("decoder", 0, "query", "in")
