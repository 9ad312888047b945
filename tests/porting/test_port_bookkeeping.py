"""What ports keep for one another, what they count, and input that they refuse in a sentence."""

import functools
import itertools
import json
import re
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from portability import port as command_port
from portability.core.errors import UserError
from portability.core.specs import CalibrationSpec, HostSpec, MethodSpec, PortSpec
from portability.execution.execute import _heads_port
from portability.hosts.host import load_host
from portability.inits.start import port_context
from portability.methods import attach
from portability.methods.drawn import drawn_pair
from portability.methods.module import ModuleState, equal
from portability.planning.plan import plan
from portability.port import main
from portability.porting import adapter, maps, size, verdict
from portability.porting.activations import Moments, Reader, aligned_batches
from portability.porting.base import PortContext
from portability.porting.calibration import calibration, read_texts, study_texts
from portability.porting.layer_similarity import alike_in_weights
from portability.porting.maps import MapStrategy
from portability.porting.port import port
from portability.porting.spaces import Space
from portability.porting.strategies import STRATEGIES
from portability.porting.verify import read_rows
from portability.training.run_output import _without_paths
from support.peft_methods import write_plain
from support.studies import small
from support.tiny import TASK, model, noisy, sentences

TEXTS = [row["text"] for row in sentences(60, 3)]


@pytest.fixture
def forget(monkeypatch, tmp_path):
    """As in a new process, on a machine that has seen nothing."""
    def forget():
        monkeypatch.setattr(maps, "_known", {})
        monkeypatch.setenv("PORTABILITY_CACHE", str(tmp_path / f"cache-{next(numbers)}"))

    numbers = itertools.count()
    forget()
    return forget


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


def test_correlations_are_numpys_whatever_the_means():
    draw = torch.Generator().manual_seed(0)
    x, y = (torch.randn(50, size, generator=draw, dtype=torch.float64) + 3 for size in (3, 4))
    y[:, 0] -= 2 * x[:, 1]
    x[:, 2] = 5  # never changes
    found = Moments.of(3, 4)
    for part in (slice(0, 20), slice(20, 50)):
        found.add(x[part], y[part])
    wanted = np.corrcoef(x[:, :2].T.numpy(), y.T.numpy())[:2, 2:]
    assert np.allclose(found.correlation[:2].numpy(), wanted) and not found.correlation[2].any()


@pytest.mark.parametrize(("family", "stack"), [("t5", "decoder"), ("t5", "encoder"), ("llama", "decoder"),
                                               ("opt", "decoder"), ("bart", "decoder")])
def test_a_host_is_read_where_it_has_just_seen_the_token(load, family, stack):
    """A first layer's query depends on its own token, and perhaps on its place."""
    space = Space(stack, 0, "query", "out")
    ids, picks = torch.tensor([[5, 6], [5, 7]]), (torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1]))
    found = Reader(load(family, 16, 2, 4), [space]).read(ids, torch.ones_like(ids), picks)[space]
    assert torch.allclose(found[0], found[2]) and not torch.allclose(found[1], found[3])


class Halves(MapStrategy):
    """Of even layers the first half of the coordinates is kept, of odd ones the second."""

    needs = frozenset({"origin_weights", "receiving_weights"})

    def __init__(self, seen):
        self.seen = seen

    def maps(self, context, pairs):
        self.seen.append(pairs)
        found = {}
        for pair in pairs:
            size = pair[0].size(context.origin.shape)
            kept = (torch.arange(size) < size // 2) == (pair[0].layer % 2 == 0)
            found[pair] = torch.diag(kept.double())
        return found


@pytest.mark.parametrize("strategy", ["procrustes", "corr", "rebasin", "svd_subspace"])
def test_hosts_in_bf16_are_read_and_their_maps_kept_apart(pair, strategy, forget):
    plain = port(pair[0], context(pair, strategy)).module
    after = port(pair[0], context(pair, strategy, "bf16")).module
    forget()
    alone = port(pair[0], context(pair, strategy, "bf16")).module
    assert equal(after, alone), "a port does not hang on what was ported before it"
    assert strategy in ("corr", "rebasin") or not equal(plain, after)


@pytest.mark.parametrize("change", [{"tokens": 200}, {"ridge": 0.5}, {"layer_map": "0,0"}], ids=str)
def test_maps_are_those_of_the_port_whatever_was_ported_before(pair, change, forget):
    first = port(pair[0], context(pair, "procrustes")).module
    after = port(pair[0], context(pair, "procrustes", **change)).module
    forget()
    assert equal(after, port(pair[0], context(pair, "procrustes", **change)).module)
    assert not equal(after, first)


def test_maps_of_the_same_hosts_are_found_once_and_of_nameless_ones_each_time(pair, monkeypatch):
    monkeypatch.setattr(maps, "_known", {})
    seen = []
    monkeypatch.setitem(STRATEGIES, "halves", Halves(seen))
    given = context(pair, "halves")
    for _ in range(2):
        port(pair[0], given)
    assert len(seen) == 1
    nameless = replace(given.receiving, fingerprint="")
    for _ in range(2):
        port(pair[0], replace(given, receiving=nameless,
                              load=lambda host: given.load(pair[1] if host == pair[1] else pair[2])))
    assert len(seen) == 3


@pytest.mark.parametrize("strategy", ["procrustes", "corr"])
def test_maps_of_a_large_host_are_made_layer_by_layer_and_are_the_same(pair, strategy, forget, monkeypatch):
    asked, own = [], type(STRATEGIES[strategy]).maps
    monkeypatch.setattr(type(STRATEGIES[strategy]), "maps", lambda self, given, pairs: asked.append(
        (len(maps._known), {one.layer for pair in pairs for one in pair})) or own(self, given, pairs))
    whole = port(pair[0], context(pair, strategy))
    forget()
    monkeypatch.setattr(maps, "ROOM", 1)
    parts = port(pair[0], context(pair, strategy))
    assert equal(whole.module, parts.module) and whole.report.tensors == parts.report.tensors
    assert whole.report.calibration_tokens == parts.report.calibration_tokens > 0
    assert asked == [(0, {0, 1}), (0, {0}), (0, {1})], "nothing of one layer is held while the next is made"


def test_a_bare_hosts_head_is_fitted_in_the_precision_of_the_run(pair):
    run = SimpleNamespace(origin_host=pair[1], host=pair[2], port=PortSpec("mine", "procrustes", "stretch"),
                          stream=(0,), precision="bf16")
    worker = SimpleNamespace(store=None, data=None,
                             fresh_host=lambda host, precision: load_host(host, "cpu", precision))
    load = _heads_port(run, worker).load
    assert load(pair[1]).precision == "bf16" and load(pair[1]) is load(pair[1])


def test_a_port_draws_by_its_runs_stream(pair):
    def seed(*stream):
        run = SimpleNamespace(origin_host=pair[1], host=pair[2], port=PortSpec("mine", "random", "stretch"),
                              stream=stream)
        return port_context(run, pair[3], None, load_host).seed

    assert seed(0, "receiving", "m", "o") == seed(0, "receiving", "m", "o")
    assert len({seed(0, "receiving", "m", "o"), seed(1, "receiving", "m", "o"),
                seed(0, "receiving", "m", "p")}) == 3


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


def test_the_squared_norm_that_is_carried_is_what_is_left_of_it(pair):
    done = port(pair[0], context(pair, "svd_subspace", energy=0.3))
    left = sum(float(tensor.double().square().sum()) for tensor in done.module.tensors.values())
    whole = sum(float(tensor.double().square().sum()) for tensor in pair[0].tensors.values())
    assert left < 0.9 * whole and done.report.carried_norm_fraction == pytest.approx(left / whole, rel=1e-5)


def test_of_layers_that_become_one_all_that_any_gives_is_carried(pair, mount, monkeypatch):
    monkeypatch.setitem(STRATEGIES, "halves", Halves([]))
    receiving = mount("lora", "llama", 16, 1, 4)
    shallow = pair[0], pair[1], receiving.host.spec, receiving.init_parameters(0)
    done = port(pair[0], context(shallow, "halves", layer_map="average"))
    assert all(mask.all() for mask in done.carried.values()) and done.report.filled_fraction == 1
    done = port(pair[0], context(shallow, "halves", layer_map="0"))
    assert 0 < done.report.filled_fraction < 1


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
def test_weights_that_are_not_finite_are_one_sentence(pair, strategy, place, where, forget):
    given = context(pair, strategy)
    given.load(pair[2]).model.get_submodule(f"model.{place}").weight.data[0, 0] = float("nan")
    with pytest.raises(UserError, match=f"{where}.*; it cannot be compared with another"):
        port(pair[0], given)


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("strategy", ["procrustes", "corr"])
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_host_that_gives_numbers_that_are_not_finite_is_one_sentence(pair, side, strategy, number, forget):
    given = context(pair, strategy)
    spec = (given.origin, given.receiving)[side]
    given.load(spec).model.get_submodule("model.layers.0.mlp.down_proj").weight.data[0, 0] = number
    with pytest.raises(UserError, match=f"host '{spec.name}' gives numbers that are not finite at what .*"
                       r"decoder\.\d\.\w+; it cannot be compared with another$"):
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


def test_half_a_character_is_no_example(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "half \\ud800", "label": 1}')
    with pytest.raises(UserError, match="rows.jsonl, line 1: each line must be a JSON object with text and"):
        read_rows(path, "--labels", TASK)


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


def test_what_a_large_port_takes_is_said_and_too_few_tokens_are_refused_before_a_host_is_read(
        command, capsys, monkeypatch):
    monkeypatch.setattr(verdict, "GB", 1e6)
    monkeypatch.setattr(verdict, "free_memory", lambda: 0)
    monkeypatch.setattr(command_port, "without_gaps", lambda: True)
    monkeypatch.setattr(size, "rates", lambda: (1e6, 1e9, 1e9))
    monkeypatch.setattr(adapter, "load_host", lambda spec: pytest.fail("a host was read"))
    assert command("--strategy", "procrustes", "--calibrate", "rows.jsonl", "--calibrate-tokens", "200") == 2
    assert "200 tokens are too few to compare spaces of 128 coordinates" in capsys.readouterr().err
    monkeypatch.setattr(adapter, "load_host", load_host)
    assert command("--strategy", "procrustes", "--calibrate", "rows.jsonl", "--calibrate-tokens", "300") == 0
    said = capsys.readouterr().out
    weights = sum(4 * parameter.numel() for widths in ((32, 2, 4), (64, 4, 8))
                  for parameter in model("llama", *widths).parameters()) / 1e6
    assert re.search(rf"\nsize: about [\d.]+ GB of memory, {weights:.1f} of them both hosts' weights, and "
                     r"[\d.]+ (s|min) on this machine; both hosts read 300 tokens\n"
                     r"warning: 0.0 GB of memory are free\nlayers: CKA", said), said


def test_what_a_strategy_goes_on_from_may_have_its_labels_and_texts(command, capsys):
    learn = ("--option", "learning_rate=0.01", "--option", "updates=1")
    assert command("--strategy", "distill", "--calibrate", "rows.jsonl", "--labels", "rows.jsonl", *learn,
                   "--option", "of=gradmask") == 0, capsys.readouterr().err
    assert "distill started from gradmask" in capsys.readouterr().out
    assert command("--strategy", "warm", "--calibrate", "rows.jsonl", "--labels", "rows.jsonl", *learn) == 2
    assert "reads no texts" in capsys.readouterr().err
    assert command("--strategy", "warm", "--calibrate", "rows.jsonl", "--labels", "rows.jsonl", *learn,
                   "--option", "of=procrustes") == 0, capsys.readouterr().err


# ---- studies

OLD = {"strategy": "pad", "layer_map": "stretch", "partial": False}
HOW = CalibrationSpec("texts.jsonl", 400, 0, "0123")


def test_a_port_without_options_and_texts_has_the_name_that_it_always_had():
    assert PortSpec("pad", "pad", "stretch").identity() == OLD
    assert PortSpec("another", "pad", "stretch", options={}).identity() == OLD


@pytest.mark.parametrize("change", [
    {"options": {"ridge": 1}}, {"options": {"ridge": 2}}, {"strategy": "corr"}, {"layer_map": "cka"},
    {"partial": True}, {"calibration": HOW}, {"calibration": replace(HOW, digest="4567")},
    {"calibration": replace(HOW, tokens=401)}, {"calibration": replace(HOW, seed=1)},
], ids=str)
def test_what_can_change_a_number_changes_a_ports_name(change):
    whole = PortSpec("mine", "procrustes", "stretch", False, {"centred": True}, replace(HOW, digest="89"))
    assert replace(whole, **change).identity() != whole.identity()


def test_where_the_texts_lie_is_in_no_name():
    spec = PortSpec("mine", "corr", "stretch", calibration=HOW)
    moved = replace(spec, name="other", calibration=replace(HOW, texts="/elsewhere/copy.jsonl"))
    assert moved.identity() == spec.identity()
    assert spec.identity()["calibration"] == {"tokens": 400, "seed": 0, "digest": "0123"}


@pytest.fixture
def studied(data_folders, make_host, tmp_path):
    """Lines of a file of texts -> a study that compares hosts on them."""
    def get(*lines):
        (tmp_path / "own.txt").write_text("".join(f"{line}\n" for line in lines))
        return small(data_folders, make_host, "method=lora", "grid.ports=[corr]", "grid.inits=[ported]",
                     f"port.corr.calibration={{texts:{tmp_path / 'own.txt'},tokens:50}}")

    return get


def test_a_study_knows_its_texts_whatever_their_order(studied):
    first = studied("one text", "another").grid.ports[0].calibration
    assert first.digest and first == studied("another", " one text ", "one text").grid.ports[0].calibration
    got = studied("one text", "a third")
    assert got.grid.ports[0].calibration.digest != first.digest
    with pytest.raises(UserError, match="calibration texts 'own.txt' changed since the study was planned"):
        study_texts(first, got.data)
    with pytest.raises(UserError, match="calibration texts 'own.txt': there is no text in it"):
        studied("", " ")


def test_a_record_has_the_texts_name_and_not_their_place(studied):
    run = next(run for run in plan(studied("one text").grid).runs.values() if run.port is not None)
    record = _without_paths(asdict(run))
    assert record["port"]["calibration"]["texts"] == "own.txt"
    assert asdict(run)["port"]["calibration"]["texts"] != "own.txt"


def test_texts_are_read_in_an_order_of_their_seed():
    orders = [calibration("sentences", texts, 400, seed) for seed in (0, 1) for texts in (TEXTS, TEXTS[::-1])]
    assert orders[0] == orders[1] != orders[2] == orders[3]
    assert sorted(orders[0].texts) == sorted(orders[2].texts) == sorted(set(TEXTS))
    assert orders[0].digest == orders[2].digest and orders[0].mark != orders[2].mark
