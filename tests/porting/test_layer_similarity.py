"""Layer map "cka": which layers two hosts share, by their states and by their weights."""

import json
from dataclasses import replace
from itertools import combinations_with_replacement

import pytest
import torch
from safetensors.torch import load_file

from portability.core.errors import UserError
from portability.core.specs import MethodSpec, PortSpec
from portability.hosts.host import load_host
from portability.hosts.sources import HostSource, describe
from portability.methods import attach
from portability.methods.module import ModuleState
from portability.port import main
from portability.porting import layer_similarity
from portability.porting.base import PortContext
from portability.porting.calibration import calibration
from portability.porting.layer_similarity import (
    alike_in_states,
    alike_in_weights,
    best_map,
    cka_layers,
    matched_layers,
    same_weights,
)
from portability.porting.port import LOOKED_AT, port
from portability.porting.similarity import cka, gram
from portability.porting.verdict import layers_line
from support.hidden import Basis, hide
from support.peft_methods import write_plain
from support.tiny import model, noisy, sentences, tokenizer

TEXTS = calibration("texts", [row["text"] for row in sentences(200, 3)])
STACKS = {"llama": ("decoder", "model.layers"), "bert": ("encoder", "encoder.layer")}
KEPT = [(0, 2, 4, 6), (1, 3, 5, 7), (0, 1, 4, 7), (0, 1, 2, 6, 7), (2, 3, 6)]  # evenly and unevenly


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """family -> a host of 8 layers that each add something of their own."""
    made = {}

    def get(family):
        if family not in made:
            with torch.random.fork_rng():
                torch.manual_seed(0)
                host = model(family, 32, 8, 4)
                for name, value in host.named_parameters():
                    if value.ndim == 2:
                        value.data.normal_(0, 1.0 if "embed" in name else 0.1)
            made[family] = written(host, tmp_path_factory.mktemp(family))
        return made[family]

    return get


def written(host, folder):
    host.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return describe(HostSource(folder.name, path=str(folder)))


@pytest.fixture(scope="module")
def thinned(deep, tmp_path_factory):
    """family, layers -> the host with these layers alone."""
    made = {}

    def get(family, kept):
        if (family, kept) not in made:
            host = load_host(deep(family)).model
            path, _, name = STACKS[family][1].rpartition(".")
            parent = host.get_submodule(path)
            setattr(parent, name, torch.nn.ModuleList([getattr(parent, name)[layer] for layer in kept]))
            host.config.num_hidden_layers = len(kept)
            made[family, kept] = written(host, tmp_path_factory.mktemp(f"{family}-of-{len(kept)}-"))
        return made[family, kept]

    return get


def context(origin, receiving, texts=None):
    return PortContext(origin, receiving, ModuleState({}, {}), PortSpec("pad", "pad", "cka"), load_host,
                       None if texts is None else lambda: texts, needs=LOOKED_AT)


@pytest.mark.parametrize("by", ["the map", "states", "spectra"])
@pytest.mark.parametrize("family", STACKS)
def test_the_kept_layers_of_a_thinned_host_are_found(family, by, deep, thinned):
    stack = STACKS[family][0]
    for kept in KEPT:
        hosts = load_host(deep(family)), load_host(thinned(family, kept))
        if by == "the map":
            found = cka_layers(context(hosts[0].spec, hosts[1].spec, TEXTS), stack, stack)
        else:
            alike = (alike_in_states(hosts, (stack, stack), TEXTS) if by == "states"
                     else alike_in_weights(hosts, (stack, stack)))
            found = [[one] for one in best_map(alike)]
        assert all(len(one) == 1 for one in found) and found == sorted(found)
        right = sum(one == [layer] for one, layer in zip(found, kept, strict=True))
        assert right >= 0.8 * len(kept), (kept, found)
        even = PortContext(deep(family), thinned(family, kept), ModuleState({}, {}), PortSpec(
            "pad", "pad", "stretch")).layers_of(stack, stack)
        assert right >= sum(one == [layer] for one, layer in zip(even, kept, strict=True))


@pytest.mark.parametrize("texts", [TEXTS, None], ids=["texts", "weights"])
def test_each_layer_of_a_thicker_host_comes_from_its_own(texts, deep, thinned):
    """From the thinned host to the whole one: a kept layer's own, and no way back."""
    kept = (0, 3, 5, 7)
    found = [one for (one,) in cka_layers(context(thinned("llama", kept), deep("llama"), texts), "decoder",
                                          "decoder")]
    assert found == sorted(found) and len(found) == 8
    assert sum(found[layer] == place for place, layer in enumerate(kept)) >= 0.8 * len(kept)


@pytest.mark.parametrize("texts", [TEXTS, None], ids=["texts", "weights"])
@pytest.mark.parametrize("family", ["llama", "t5"])
def test_a_hosts_layers_are_its_own(family, texts, make_host):
    host = make_host(family, 32, 4, 4)
    for stack in host.shape.layers:
        assert cka_layers(context(host, host, texts), stack, stack) == [[0], [1], [2], [3]]


@pytest.mark.parametrize("texts", [TEXTS, None], ids=["texts", "weights"])
def test_layers_are_found_in_another_basis(texts, thinned, tmp_path):
    """Where no number of the weights is the same; RMSNorms' gains are folded in, units and heads moved."""
    kept = (0, 1, 2, 6, 7)
    basis = Basis("turned", folded=True, values=True, meetings=True, heads=True)
    spec, _ = hide(thinned("llama", kept), basis, tmp_path / "hidden")
    hosts = load_host(thinned("llama", kept)), load_host(spec)
    both = ("decoder", "decoder")
    found = best_map(alike_in_states(hosts, both, texts) if texts else alike_in_weights(hosts, both))
    assert found == [0, 1, 2, 3, 4]


def test_a_network_without_a_gate_is_compared_by_what_it_has(tmp_path, make_host):
    torch.manual_seed(1)
    gated = load_host(make_host("t5", 32, 3, 4))
    gated.model.config.dense_act_fn, gated.model.config.is_gated_act = "relu", False
    gated.model.config.feed_forward_proj = "relu"
    plain = load_host(written(type(gated.model)(gated.model.config), tmp_path / "plain"))
    alike = alike_in_weights((plain, plain), ("encoder", "decoder"))
    assert alike.shape == (3, 3)
    assert best_map(alike_in_weights((plain, plain), ("decoder", "decoder"))) == [0, 1, 2]
    assert alike_in_weights((plain, gated), ("encoder", "encoder")).isfinite().all()


def test_weights_that_are_not_finite_are_one_sentence(make_host):
    host = load_host(make_host("bert", 32, 2, 4))
    with torch.no_grad():
        host.model.encoder.layer[1].intermediate.dense.weight[0, 0] = float("nan")
    with pytest.raises(UserError, match="not finite at encoder.1.ffn_up"):
        alike_in_weights((host, host), ("encoder", "encoder"))


def test_hosts_of_unequal_widths_are_compared_by_spectra(make_host):
    one, other = load_host(make_host("llama", 32, 3, 4)), load_host(make_host("llama", 64, 3, 4))
    alike = alike_in_weights((one, other), ("decoder", "decoder"))
    assert alike.shape == (3, 3) and (alike > 0).all() and (alike < 1).all()
    assert best_map(alike) == sorted(best_map(alike))


def test_states_are_compared_by_cka_of_what_layers_add(deep):
    """Another way: hooks of our own, on one text."""
    host = load_host(deep("llama"))
    texts = calibration("one", ["the film was very lovely and the plot was grim"])
    alike = alike_in_states((host, host), ("decoder", "decoder"), texts)
    tok = host.tokenizer(list(texts.texts), return_tensors="pt")
    caught = []
    for layer in host.model.model.layers:
        for part in (layer.self_attn.o_proj, layer.mlp.down_proj):
            part.register_forward_hook(lambda module, given, out: caught.append(out[0]))
    with torch.no_grad():
        host.model(input_ids=tok["input_ids"])
    grams = [gram(torch.cat(pair, 1)) for pair in zip(caught[::2], caught[1::2], strict=True)]
    wanted = torch.tensor([[cka(one, other) for other in grams] for one in grams], dtype=torch.float64)
    assert torch.allclose(alike, wanted, atol=1e-5)
    assert torch.allclose(alike.diagonal(), torch.ones(8).double())


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_matched_layers_are_alike_whatever_the_order_of_neurons_and_unlike_elsewhere(family, deep, make_host,
                                                                                    tmp_path):
    stacks = (STACKS[family][0],) * 2
    host = load_host(deep(family))
    permuted = load_host(hide(deep(family), Basis("permuted", heads=True), tmp_path / "hidden")[0])
    unrelated = load_host(make_host(family, 32, 8, 4, 5))
    for other in (host, permuted):
        assert matched_layers((host, other), stacks, TEXTS) == pytest.approx([1] * 8, abs=1e-5)
    assert max(matched_layers((host, unrelated), stacks, TEXTS)) < .5


def test_layers_of_unequal_depths_are_matched_at_the_same_depth(deep, make_host):
    hosts = load_host(deep("llama")), load_host(make_host("llama", 64, 3, 4))
    alike = alike_in_states(hosts, ("decoder", "decoder"), TEXTS)
    wanted = [float(alike[place]) for place in ((0, 0), (4, 1), (7, 2))]
    assert matched_layers(hosts, ("decoder", "decoder"), TEXTS) == wanted


def worth(alike, layers):
    return round(sum(float(alike[layer, place]) for place, layer in enumerate(layers)), 9)


def unevenness(layers, depth):
    if len(layers) == 1:
        return (depth - 1 - layers[0])**2
    return sum((layer * (len(layers) - 1) - place * (depth - 1))**2 for place, layer in enumerate(layers))


@pytest.mark.parametrize("depths", [(1, 1), (1, 4), (4, 1), (3, 3), (5, 3), (3, 5), (6, 4)])
@pytest.mark.parametrize("levels", [1024, 4, 1])
def test_the_best_map_is_that_of_all_maps_that_do_not_go_back(depths, levels):
    """With few levels there are ties, which go to the more even spread."""
    for seed in range(5):
        draw = torch.Generator().manual_seed(seed)
        alike = torch.randint(0, levels, depths, generator=draw).double() / levels
        maps = list(combinations_with_replacement(range(depths[0]), depths[1]))
        best = max((worth(alike, layers), -unevenness(layers, depths[0])) for layers in maps)
        found = best_map(alike)
        assert found == sorted(found)
        assert (worth(alike, found), -unevenness(found, depths[0])) == best


def test_a_hosts_layers_are_looked_at_once(deep, thinned, monkeypatch, tmp_path):
    calls = []
    monkeypatch.setenv("PORTABILITY_CACHE", str(tmp_path))
    monkeypatch.setattr(layer_similarity, "_known", {})
    monkeypatch.setattr(layer_similarity, "same_weights",
                        lambda hosts, stacks: calls.append(stacks) or same_weights(hosts, stacks))
    for _ in range(2):
        found = cka_layers(context(deep("llama"), thinned("llama", KEPT[0])), "decoder", "decoder")
        found[0].append(9)  # nobody else's
    assert len(calls) == 1 and found[0] == [0, 9]
    monkeypatch.setattr(layer_similarity, "_known", {})  # as in another process
    again = cka_layers(context(deep("llama"), thinned("llama", KEPT[0])), "decoder", "decoder")
    assert len(calls) == 1 and again == [[0], *found[1:]]
    nameless = replace(deep("llama"), fingerprint="")
    for _ in range(2):
        monkeypatch.setattr(PortContext, "origin_host", lambda self: load_host(deep("llama")))
        cka_layers(context(nameless, thinned("llama", KEPT[0])), "decoder", "decoder")
    assert len(calls) == 3


def test_too_few_tokens_are_one_sentence(deep):
    host = load_host(deep("llama"))
    with pytest.raises(UserError, match="texts 'few' give 2 tokens .* layers are compared on at least 4"):
        alike_in_states((host, host), ("decoder", "decoder"), calibration("few", ["the film"]))


def test_tokens_that_all_say_the_same_are_one_sentence(deep):
    host = load_host(deep("llama"))
    with torch.no_grad():
        for part in (host.model.model.layers[0].self_attn.o_proj, host.model.model.layers[0].mlp.down_proj):
            part.weight.zero_()
    with pytest.raises(UserError, match="layer 0 of host .* adds the same to all tokens"):
        alike_in_states((host, host), ("decoder", "decoder"), TEXTS)


def test_a_port_goes_by_the_layers_that_were_found(deep, thinned):
    spec = MethodSpec("lora", "peft", "LoraConfig", {"r": 4, "sites": ["ffn"]}, 1e-3)
    kept = (0, 1, 4, 7)
    source, target = attach(load_host(deep("llama")), spec), attach(load_host(thinned("llama", kept)), spec)
    module = noisy(source, 1)
    how = context(deep("llama"), thinned("llama", kept))
    done = port(module, replace(how, fresh=target.init_parameters(0), needs=frozenset()))
    assert done.report.layer_map["decoder"] == [[layer] for layer in kept]
    for slot, tensor in done.module.tensors.items():
        assert torch.equal(tensor, module.tensors[slot._replace(layer=kept[slot.layer])])


# ---- the command


@pytest.fixture(scope="module")
def folder(deep, tmp_path_factory):
    """An adapter of the deep Llama."""
    out = tmp_path_factory.mktemp("adapter") / "in"
    write_plain(out, load_host(deep("llama")), "lora")
    return out


@pytest.mark.parametrize(("words", "layers"), [
    ("cka", [[0], [1], [4], [7]]), ("1,3,4+5,7", [[1], [3], [4, 5], [7]]),
    ("sum", [[0, 1], [2, 3], [4, 5], [6, 7]]),
])
def test_the_command_takes_layer_maps_by_words(words, layers, folder, deep, thinned, tmp_path, capsys):
    origin, receiving = deep("llama").source, thinned("llama", (0, 1, 4, 7)).source
    arguments = [str(folder), "--from", origin, "--to", receiving, "--layer-map", words, "--json"]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    assert json.loads(capsys.readouterr().out)["report"]["layer_map"] == {"decoder": layers}
    before, after = (load_file(path / "adapter_model.safetensors") for path in (folder, tmp_path / "out"))
    name = "base_model.model.model.layers.{}.mlp.down_proj.lora_{}.weight"
    for layer, origins in enumerate(layers):
        b, a = (after[name.format(layer, part)] for part in "BA")
        parts = [before[name.format(one, "B")] @ before[name.format(one, "A")] for one in origins]
        if len(parts) == 1:
            assert torch.equal(b @ a, parts[0])
        else:  # the mean or the sum, of the rank that there is
            left, scale, right = torch.linalg.svd(sum(parts) / (1 if words == "sum" else len(parts)))
            assert torch.allclose(b @ a, left[:, :4] * scale[:4] @ right[:4], atol=1e-4)


@pytest.mark.parametrize(("words", "said"), [
    ("0,2", "layer map 0,2: the receiving stack has 4 layers, the origin's layers are 0 to 7"),
    ("0,1,2,8", "layer map 0,1,2,8: the receiving stack has 4 layers"), ("0;1", "unknown layer map '0;1'"),
    ("cca", "did you mean 'cka'"),
])
def test_the_command_refuses_bad_layer_maps_in_one_sentence(words, said, folder, deep, thinned, tmp_path,
                                                            capsys):
    receiving = thinned("llama", (0, 1, 4, 7)).source
    assert main([str(folder), "--from", deep("llama").source, "--to", receiving, "--layer-map", words,
                 "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_the_layers_of_hosts_whose_stacks_have_other_names_are_compared(make_host):
    one, other = make_host("bert"), make_host("gpt2")
    for pair in ((one, other), (other, one)):
        assert layers_line(*pair, load_host, TEXTS).startswith("layers: CKA of what 2 matched ones make of")


def test_the_command_says_how_alike_the_layers_are_where_there_are_texts(folder, deep, tmp_path, capsys):
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(TEXTS.texts))
    words = [str(folder), "--from", deep("llama").source, "--to", deep("llama").source, "--dry-run"]
    assert main([*words, "--strategy", "auto", "--calibrate", str(texts)]) == 0
    said = "layers: CKA of what 8 matched ones make of the texts: lowest 1.00, median 1.00 (1: the same but "
    assert said in capsys.readouterr().out
    assert main(words) == 0 and "CKA" not in capsys.readouterr().out
    texts.write_text("film")
    assert main([*words, "--calibrate", str(texts)]) == 0
    assert "layers: not compared (calibration texts 'texts.txt' give 1 tokens" in capsys.readouterr().out
