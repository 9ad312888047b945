"""What ports keep for one another, what they count, and input that they refuse in a sentence."""

import functools
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from portability.core.errors import UserError
from portability.core.specs import HostSpec, MethodSpec, PortSpec
from portability.execution.execute import _heads_port
from portability.hosts.host import load_host
from portability.methods import attach
from portability.methods.drawn import drawn_pair
from portability.methods.module import ModuleState, equal
from portability.port import main
from portability.porting import adapter, maps
from portability.porting.activations import aligned_batches
from portability.porting.base import PortContext
from portability.porting.calibration import calibration, read_texts
from portability.porting.layer_similarity import alike_in_weights
from portability.porting.port import port
from support.peft_methods import write_plain
from support.tiny import noisy, sentences

TEXTS = [row["text"] for row in sentences(60, 3)]


@pytest.fixture(scope="module")
def pair(mount):
    """A LoRA on a Llama, and a fresh one on another."""
    origin, receiving = mount("lora", "llama", 16, 2, 4), mount("lora", "llama", 16, 2, 4, 5)
    return noisy(origin, 1), origin.host.spec, receiving.host.spec, receiving.init_parameters(2)


def context(pair, strategy, precision="fp32", tokens=400, layer_map="stretch", **options):
    _, origin, receiving, fresh = pair
    load = functools.cache(lambda host: load_host(host, precision=precision))
    return PortContext(origin, receiving, fresh, PortSpec("mine", strategy, layer_map, options=options), load,
                       lambda: calibration("sentences", TEXTS, tokens))


@pytest.mark.parametrize("strategy", ["procrustes", "corr", "rebasin", "svd_subspace"])
def test_hosts_in_bf16_are_read_and_their_maps_kept_apart(pair, strategy, monkeypatch):
    monkeypatch.setattr(maps, "_known", {})
    plain = port(pair[0], context(pair, strategy)).module
    after = port(pair[0], context(pair, strategy, "bf16")).module
    monkeypatch.setattr(maps, "_known", {})
    alone = port(pair[0], context(pair, strategy, "bf16")).module
    assert equal(after, alone), "a port does not hang on what was ported before it"
    assert strategy in ("corr", "rebasin") or not equal(plain, after)


def test_a_bare_hosts_head_is_fitted_in_the_precision_of_the_run(pair):
    run = SimpleNamespace(origin_host=pair[1], host=pair[2], port=PortSpec("mine", "procrustes", "stretch"),
                          stream=(0,), precision="bf16")
    worker = SimpleNamespace(place=SimpleNamespace(device="cpu"), store=None, data=None)
    load = _heads_port(run, worker).load
    assert load(pair[1]).precision == "bf16" and load(pair[1]) is load(pair[1])


def test_two_revisions_of_a_host_are_two_hosts(pair, monkeypatch):
    monkeypatch.setattr(adapter, "port_folder", lambda *given: given)
    monkeypatch.setattr(adapter, "load_adapter", lambda words: words)
    monkeypatch.setattr(adapter, "with_weights", lambda host: host)
    monkeypatch.setattr(adapter, "load_host", lambda host: SimpleNamespace(spec=host))
    one, other = (HostSpec("m", "owner/m", commit, "", pair[1].shape) for commit in ("a", "b"))
    load = adapter.port_adapter("mine", other, one)[5]
    assert load(one).spec.revision == "a" and load(other).spec.revision == "b" and load(one) is load(one)


@pytest.mark.parametrize("tokens", [100, 10**9])
def test_the_report_counts_the_tokens_that_were_compared(pair, tokens):
    asked = context(pair, "procrustes", tokens=tokens)
    read = sum(one.tokens for one in aligned_batches(asked.load(pair[1]), asked.load(pair[2]), asked.texts()))
    assert port(pair[0], asked).report.calibration_tokens == read
    assert len(TEXTS) < read < 60 * 128


def test_of_a_module_without_a_counterpart_no_map_is_asked_for(pair):
    module = ModuleState({}, {})
    for slot, tensor in pair[0].tensors.items():
        new = slot._replace(site=f"cross_{slot.site}")
        module.tensors[new], module.axes[new] = tensor, pair[0].axes[slot]
    given = context(pair, "procrustes")
    with pytest.raises(UserError, match="carries nothing"):
        port(module, replace(given, spec=replace(given.spec, partial=True)))


@pytest.mark.parametrize(("strategy", "options", "says"), [
    *((name, {"centred": True}, rf"port 'mine' \({name}\) has no options, got 'centred'")
      for name in ("pad", "copy", "repeat", "random")),
    ("procrustes", {"centred": "no"}, "options.centred must be true or false, got 'no'"),
    ("procrustes", {"ridge": float("inf")}, "options.ridge must be a number above 0, got inf"),
    ("procrustes", {"ridge": True}, "options.ridge must be a number above 0, got True"),
    ("corr", {"signed": 1}, "options.signed must be true or false, got 1"),
    ("embed", {"least_squares": "no"}, "options.least_squares must be true or false"),
    ("svd_subspace", {"energy": True}, r"options.energy must be a share in \(0, 1\], got True"),
])
def test_options_are_what_they_say(pair, strategy, options, says):
    with pytest.raises(UserError, match=says):
        port(pair[0], context(pair, strategy, **options))


@pytest.mark.parametrize(("strategy", "place", "where"), [
    ("rebasin", "layers.1.mlp.down_proj", "weights that are not finite at decoder.1.ffn_down"),
    ("svd_subspace", "layers.1.mlp.down_proj", "weights that are not finite at decoder.1.ffn_down"),
    ("embed", "layers.1.mlp.up_proj", "weights that are not finite at decoder.1.ffn_up"),
    ("rebasin", "embed_tokens", "embeddings that are not finite"),
    ("embed", "embed_tokens", "embeddings that are not finite"),
])
def test_weights_that_are_not_finite_are_one_sentence(pair, strategy, place, where, monkeypatch):
    monkeypatch.setattr(maps, "_known", {})
    given = context(pair, strategy)
    given.load(pair[2]).model.get_submodule(f"model.{place}").weight.data[0, 0] = float("nan")
    with pytest.raises(UserError, match=f"{where}.*; it cannot be compared with another"):
        port(pair[0], given)


def test_layers_of_zeros_have_a_likeness(load):
    host = load("llama", 16, 2, 4)
    for layer in host.model.model.layers:
        layer.mlp.down_proj.weight.data.zero_()
    assert alike_in_weights((host, host), ("decoder", "decoder")).isfinite().all()


def test_layers_by_number_say_nothing_of_what_stands_outside_the_layers(load):
    method = MethodSpec("lora", "peft", "LoraConfig", {
        "r": 2, "target_modules": ["q_proj", "embed_tokens"], "init_lora_weights": True}, 1e-3)
    one, other = attach(load("llama", 16, 2, 4), method), attach(load("llama", 16, 2, 4, 5), method)
    spec = PortSpec("pad", "pad", "1,0")
    done = port(noisy(one, 1), PortContext(one.host.spec, other.host.spec, other.init_parameters(0), spec))
    assert done.report.layer_map == {"decoder": [[1], [0]], "shared": [[0]]}
    assert done.report.carried_fraction == 1


def test_noise_for_a_pair_that_does_nothing_is_finite():
    shapes = [torch.Size((2, 5)), torch.Size((4, 2))]
    a, b = drawn_pair(torch.zeros(2, 3), [torch.ones(4, 2)], shapes, torch.Generator().manual_seed(0))
    assert a.shape == shapes[0] and b.shape == shapes[1] and not a.any() and b.isfinite().all()


@pytest.mark.parametrize("tokens", [0, -1])
def test_no_tokens_are_no_texts(tokens):
    with pytest.raises(UserError, match=f"'few': the number of tokens must be 1 or more, got {tokens}"):
        calibration("few", TEXTS, tokens)


@pytest.mark.parametrize("line", ['{"text": null}', '{"text": 3}', '{"text": "half \\ud800"}', "[]", "{"])
def test_a_line_without_text_is_named(tmp_path, line):
    path = tmp_path / "texts.jsonl"
    path.write_text(f'{{"text": "whole"}}\n{line}\n')
    with pytest.raises(UserError, match="texts.jsonl, line 2: each line must be a JSON object with text"):
        read_texts(path)


@pytest.fixture
def command(load, make_host, tmp_path, monkeypatch):
    """Words of the command -> its exit code."""
    monkeypatch.chdir(tmp_path)
    write_plain(tmp_path / "mine", load("llama", 32, 2, 4), "lora")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sentences(60, 3)))
    hosts = [make_host("llama", 32, 2, 4).source, make_host("llama", 64, 4, 8).source]
    return lambda *words: main(["mine", "--from", hosts[0], "--to", hosts[1], "--dry-run", *words])


def test_texts_that_nothing_reads_are_refused(command, capsys):
    assert command("--strategy", "pad", "--calibrate", "rows.jsonl") == 2
    assert "--calibrate: strategy 'pad' with layer map 'stretch' reads no texts" in capsys.readouterr().err
    assert command("--strategy", "pad", "--calibrate", "rows.jsonl", "--layer-map", "cka") == 0


def test_what_a_strategy_goes_on_from_may_have_its_labels_and_texts(command, capsys):
    learn = ("--option", "learning_rate=0.01", "--option", "updates=1")
    assert command("--strategy", "distill", "--calibrate", "rows.jsonl", "--labels", "rows.jsonl", *learn,
                   "--option", "of=gradmask") == 0, capsys.readouterr().err
    assert "distill started from gradmask" in capsys.readouterr().out
    assert command("--strategy", "warm", "--calibrate", "rows.jsonl", "--labels", "rows.jsonl", *learn) == 2
    assert "reads no texts" in capsys.readouterr().err
    assert command("--strategy", "warm", "--calibrate", "rows.jsonl", "--labels", "rows.jsonl", *learn,
                   "--option", "of=procrustes") == 0, capsys.readouterr().err
