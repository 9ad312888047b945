"""An extraction from end to end equals the slow one: scores, layers, blocks, decomposition."""

import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from portability.core.architectures import LORA_AXES, Slot
from portability.core.errors import UserError
from portability.core.specs import PortSpec
from portability.hosts.sources import HostSource, describe
from portability.inits.extraction import ExtractionOptions, cuts, extract, layerwise, sensitivity, threads
from portability.inits.extraction.options import Place
from portability.methods.module import ModuleState, equal
from portability.porting.base import PortContext
from portability.porting.port import port
from support.extraction_slow import NAMES, WORD, best_block, head_of, plain_model, seeds_of, slow, truncated
from support.pairs import representatives
from support.tiny import FAMILIES


def product(module, place):
    pair = [module.tensors[Slot(*place, role)] for role in "AB"]
    return (pair[1].flatten(0, -2).double() @ pair[0].flatten(1).double()).numpy()


@pytest.mark.parametrize("student_size", [(16, 2, 4), (16, 3, 4), (32, 3, 4)])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_extraction_is_the_slow_one(family, student_size, make_host):
    teacher, student = make_host(family, 32, 3, 4), make_host(family, *student_size, seed=5)
    seeds, head = seeds_of(family), head_of(family, 32)
    module, report = extract(teacher, student, seeds, ExtractionOptions(rank=3), 0, head)
    slowly = slow(teacher, seeds, head)
    expected = set()
    for stack, depth in student.shape.layers.items():
        totals = [slowly.total(stack, layer) for layer in range(3)]
        best = sorted(sorted(range(3), key=lambda layer: -totals[layer])[:depth])
        assert report.layers[stack] == best and np.allclose(report.totals[stack], totals, rtol=1e-4)
        for layer, source in enumerate(best):
            for site in NAMES[family, stack][1]:
                place = Place(stack, layer, site)
                expected.add(place)
                scores, values = (slowly.matrix(kind, stack, source, site) for kind in ("scores", "values"))
                compare(module, report, place, scores, values, student.shape)
    words = slowly.scores[WORD[family]].double().numpy(), slowly.values[WORD[family]].double().numpy()
    heads = [slowly.scores.get("lm_head.weight"), slowly.values.get("lm_head.weight")]
    expected.add(Place("shared", 0, "embedding"))
    compare_shared(module, report, "embedding", *words, student.shape.hidden)
    if family in ("llama", "gpt2", "t5"):
        expected.add(Place("shared", 0, "head"))
        untied = [part.double().numpy() for part in heads] if heads[0] is not None else words
        compare_shared(module, report, "head", *untied, student.shape.hidden)
    assert {Place(*slot[:3]) for slot in module.tensors} == expected == set(report.captured)


def compare(module, report, place, scores, values, shape):
    into, out = LORA_AXES[place.site.removeprefix("cross_")]
    n, m = (int(np.prod([shape.size(axis) for axis in axes])) for axes in (into, out))
    row, column = best_block(scores, m, n)
    assert report.offsets[place] == (row, column), place
    block = values[row : row + m, column : column + n]
    assert np.allclose(product(module, place), truncated(block, 3), atol=1e-6), place
    inside = scores[row : row + m, column : column + n].sum() / scores.sum()
    assert report.captured[place] == pytest.approx(inside, rel=1e-4)
    singular = np.linalg.svd(block, compute_uv=False) ** 2
    assert report.kept[place] == pytest.approx(singular[:3].sum() / singular.sum(), rel=1e-5)
    pair = [Slot(*place, role) for role in "AB"]
    assert module.axes[pair[0]] == ("rank", *into) and module.axes[pair[1]] == (*out, "rank")
    assert module.tensors[pair[0]].shape == (3, *(shape.size(axis) for axis in into))
    assert module.tensors[pair[1]].shape == (*(shape.size(axis) for axis in out), 3)


def compare_shared(module, report, site, scores, values, hidden):
    place = Place("shared", 0, site)
    column = best_block(scores, len(scores), hidden)[1]
    # (out, in), as all matrices
    assert report.offsets[place] == ((column, 0) if site == "embedding" else (0, column))
    change = product(module, place)
    expected = truncated(values[:, column : column + hidden], 3)
    assert np.allclose(change.T if site == "embedding" else change, expected, atol=1e-6)


def test_batches_do_not_change_what_is_extracted(make_host):
    for family in ("t5", "bert"):
        hosts = make_host(family, 32, 3, 4), make_host(family, 16, 2, 4)
        options = [ExtractionOptions(rank=3, batch_size=size, sites=("ffn",)) for size in (2, 5)]
        found = [extract(*hosts, seeds_of(family), one, 0, head_of(family, 32)) for one in options]
        assert found[0][1].offsets == found[1][1].offsets and equal(found[0][0], found[1][0])


CHANGES = [{"scores": "ones"}, {"layers": "first"}, {"layers": "last"}, {"structure": "rows_columns"},
           {"structure": "neurons"},
           {"structure": "random_block"}, {"structure": "random_entries"}, {"structure": "aligned"},
           {"split": "balanced"}]


@pytest.mark.parametrize("change", CHANGES)
def test_every_stage_switched_changes_the_result(change, make_host, tmp_path):
    model = plain_model(make_host("llama", 64, 6, 8))
    with torch.no_grad():
        for layer in (1, 4):  # so that neither the first three nor the last three are the most sensitive
            for parameter in model.model.layers[layer].parameters():
                parameter.mul_(0.01)
    model.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(Path(make_host("llama").source, "tokenizer.json").read_bytes())
    hosts = describe(HostSource("teacher", path=str(tmp_path))), make_host("llama", 32, 3, 4)
    modules = [extract(*hosts, seeds_of("llama"), ExtractionOptions(rank=3, **options), 0)[0]
               for options in ({}, change)]
    assert modules[0].axes == modules[1].axes and not equal(*modules)
    if change == {"split": "balanced"}:
        for slot in [s for s in modules[0].tensors if s.role == "A"]:
            assert np.allclose(product(modules[0], slot[:3]), product(modules[1], slot[:3]), atol=1e-5)


def test_ones_take_the_first_layers_and_corners_without_seeds(make_host):
    hosts = make_host("llama", 64, 4, 8), make_host("llama", 32, 2, 4)
    _, report = extract(*hosts, (), ExtractionOptions(rank=3, scores="ones"), 0)
    assert report.layers == {"decoder": [0, 1]} and set(report.offsets.values()) == {(0, 0)}
    assert report.captured[Place("decoder", 0, "query")] == 0.25


def test_other_seed_examples_change_the_cuts_and_the_random_seed_only_random_ones(make_host):
    hosts = make_host("llama", 64, 4, 8), make_host("llama", 32, 2, 4)
    few, all_seeds = seeds_of("llama")[:1], seeds_of("llama")
    options = ExtractionOptions(rank=3)
    assert extract(*hosts, few, options, 0)[1].offsets != extract(*hosts, all_seeds, options, 0)[1].offsets
    assert equal(extract(*hosts, few, options, 0)[0], extract(*hosts, few, options, 1)[0])
    drawn = ExtractionOptions(rank=3, layers="random", structure="random_block", scores="ones")
    modules = [extract(*hosts, (), drawn, seed)[0] for seed in (0, 0, 1)]
    assert equal(modules[0], modules[1]) and not equal(modules[0], modules[2])


@pytest.mark.parametrize("sites", [("attention",), ("ffn",), ("embedding",), ("head",),
                                   ("query", "ffn_down")])
def test_groups_and_single_sites_are_switched(sites, make_host):
    hosts = make_host("t5", 32, 3, 4), make_host("t5", 16, 2, 4)
    whole = extract(*hosts, seeds_of("t5"), ExtractionOptions(rank=3), 0)[0]
    part = extract(*hosts, seeds_of("t5"), ExtractionOptions(rank=3, sites=sites), 0)[0]
    groups = {"attention": ("query", "key", "value", "attention_out"),
              "ffn": ("ffn_up", "ffn_gate", "ffn_down")}
    single = {one for site in sites for one in groups.get(site, (site,))}
    expected = {slot for slot in whole.tensors if slot.site.removeprefix("cross_") in single}
    assert part.tensors.keys() == expected and all(torch.equal(part.tensors[s], whole.tensors[s])
                                                   for s in expected)
    assert ("cross_query" in {slot.site for slot in expected}) == ("query" in single)


def test_the_report_is_json_and_complete(make_host):
    module, report = extract(make_host("llama", 64, 3, 8), make_host("llama", 32, 2, 4), seeds_of("llama"),
                             ExtractionOptions(rank=3), 0)
    summary, places = json.loads(json.dumps([report.summary(), report.tensors]))
    assert summary["seed_count"] == 5 and summary["seconds"] > 0
    assert summary["shared_tokens"] == 31 and len(summary["totals"]["decoder"]) == 3
    assert report.tensors.keys() == {f"{s.stack}.{s.layer}.{s.site}" for s in module.tensors}
    assert all(0 < one["captured"] <= 1 and 0 < one["kept"] <= 1 for one in report.tensors.values())


def test_a_module_goes_through_a_file_and_a_port(make_host):
    options = ExtractionOptions(rank=3, sites=("attention", "ffn"))
    hosts = make_host("llama", 64, 3, 8), make_host("llama", 32, 2, 4)
    module = extract(*hosts, seeds_of("llama"), options, 0)[0]
    assert equal(ModuleState.from_file(*module.to_file()), module)
    moved = port(module, PortContext(hosts[1], hosts[1], module, PortSpec("copy", "copy", "skip")))
    assert equal(moved.module, module)


@pytest.mark.parametrize("seed", [0, 4, 12])  # where all layers together have another best cut
def test_the_residual_cut_is_the_best_of_the_chosen_layers(seed, make_host):
    teacher, student = make_host("llama", 32, 6, 4, seed=seed), make_host("llama", 16, 2, 2)
    _, report = extract(teacher, student, seeds_of("llama"), ExtractionOptions(rank=3, structure="aligned"),
                        0)
    slowly = slow(teacher, seeds_of("llama"), None)
    profile = sum(slowly.scores[name].double().numpy().sum(0) for name in (WORD["llama"], "lm_head.weight"))
    for place, offset in report.offsets.items():
        if place.stack != "shared":
            scores = slowly.matrix("scores", "decoder", report.layers["decoder"][place.layer], place.site)
            if place.site in ("attention_out", "ffn_down"):
                scores, offset = scores.T, offset and offset[::-1]
            into, out = LORA_AXES[place.site]
            kept = int(np.prod([student.shape.size(axis) for axis in (into if out == ("hidden",) else out)]))
            profile = profile + scores[offset[0] : offset[0] + kept].sum(0)
    line = [profile[first : first + 16].sum() for first in range(17)]
    rows = ("attention_out", "ffn_down", "embedding")
    assert {offset[0 if place.site in rows else 1] for place, offset in report.offsets.items()} == {
        int(np.argmax(line))}


# ---- threads and devices


SHAPES = [("llama", (64, 3, 8), (48, 2, 6)), ("llama", (96, 2, 4), (96, 2, 4)),
          ("gpt2", (64, 3, 8), (32, 2, 4)),
          ("t5", (48, 3, 4), (32, 2, 4)), ("bert", (64, 3, 8), (32, 3, 4)),
          ("roberta", (32, 2, 4), (16, 1, 2))]


@pytest.mark.parametrize("structure", representatives(["block", "aligned", "neurons", "random_entries"],
                                                      "block", "aligned"))
@pytest.mark.parametrize("shape", representatives(SHAPES, SHAPES[0], SHAPES[2], SHAPES[3]),
                         ids=lambda shape: shape[0])
def test_no_bit_depends_on_the_number_of_threads(shape, structure, make_host, monkeypatch):
    """With pieces so small that every thread has some of every matrix."""
    family, large, small = shape
    for name, entries in (("PIECE", 200), ("WIDE", 300)):
        monkeypatch.setattr(threads, name, entries)
    monkeypatch.setattr(cuts, "COLUMNS", 5)
    hosts, head = (make_host(family, *large), make_host(family, *small, seed=5)), head_of(family, large[0])
    options = ExtractionOptions(rank=3, structure=structure, batch_size=2)
    at_work = set()
    monkeypatch.setattr(layerwise, "require_finite", lambda *given: at_work.add(threading.get_ident()))
    first, *others = [extract(*hosts, seeds_of(family), options, 0, head, free=lambda count=count: count)
                      for count in (1, 2, 3)]
    assert len(at_work) > 1
    for module, report in others:
        assert equal(module, first[0])
        assert (report.layers, report.offsets, report.captured, report.totals, report.kept) == (
            first[1].layers, first[1].offsets, first[1].captured, first[1].totals, first[1].kept)


def test_torchs_own_threads_are_put_aside_and_given_back(make_host):
    hosts = make_host("llama", 64, 3, 8), make_host("llama", 32, 2, 4)
    seen = []
    torch.set_num_threads(2)
    try:
        extract(*hosts, seeds_of("llama"), ExtractionOptions(rank=3), 0,
                free=lambda: seen.append(torch.get_num_threads()) or 2)
        assert seen and set(seen) == {1} and torch.get_num_threads() == 2
        with pytest.raises(UserError):
            extract(*hosts, (), ExtractionOptions(rank=3), 0)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_what_a_thread_raises_comes_out(make_host):
    def work(part):
        if part == 5:
            raise UserError("part 5")

    with pytest.raises(UserError, match="part 5"), threads.threads(lambda: 3):
        threads.share(work, range(9))


class SecondDevice(TorchDispatchMode):
    """Ordinary memory that plays a device of its own, "xla": a tensor is there if it was made or moved there,
    or comes of such tensors; an operation on tensors of two devices is refused, as a GPU would (single
    numbers and indices may mix)."""

    def __init__(self):
        super().__init__()
        self.memory, self.made = set(), 0  # addresses: a parameter is another tensor in the same place

    def has(self, tensor):
        return tensor.untyped_storage().data_ptr() in self.memory

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs, name = dict(kwargs or {}), function._schema.name
        named = kwargs.get("device")
        given = [one for one in pytree.tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        places = {self.has(one) for one in given if one.ndim}
        if named is not None:
            target, kwargs["device"] = str(named).startswith("xla"), "cpu" if str(named).startswith(
                "xla") else named
        if named is None or name == "aten::_to_copy" and not str(named).startswith("xla"):
            target = any(map(self.has, given))
        mixes = name in ("aten::copy_", "aten::index.Tensor", "aten::index", "aten::_to_copy",
                         "aten::index_put_")
        assert len(places) < 2 or mixes, f"{name} of two devices"
        out = function(*args, **kwargs)
        for one in pytree.tree_leaves(out):
            if isinstance(one, Tensor):
                (self.memory.add if target else self.memory.discard)(one.untyped_storage().data_ptr())
                self.made += target
        return out


def padded(parts, batch_first):
    """torch's `pad_sequence`, whose C++ would make its result in ordinary memory, where the second device's
    is."""
    out = parts[0].new_zeros(len(parts), max(map(len, parts)))
    for row, part in zip(out, parts, strict=True):
        row[: len(part)] = part
    return out


class Calls(TorchFunctionMode):
    """What a dispatch mode does not see: `torch.tensor` looks for the device before, `cpu` and `numpy` find
    nothing to do."""

    def __init__(self, second):
        super().__init__()
        self.second = second

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        device = kwargs.pop("device", None) if function is torch.tensor else None
        assert function is not Tensor.numpy or not self.second.has(
            args[0]), "numpy cannot read another device"
        out = function(*args, **kwargs)
        if function is Tensor.cpu and self.second.has(out):
            out = out.clone()
            self.second.memory.discard(out.untyped_storage().data_ptr())
        return out if device is None else out.to(device)


@pytest.mark.parametrize("structure", ["block", "aligned", "random_block"])
@pytest.mark.parametrize("family", representatives(FAMILIES, "t5", "bert", "llama"))
def test_on_a_device_everything_is_made_there(family, structure, make_host, monkeypatch):
    """No GPU needed: ordinary memory plays one, and what is mixed is refused. Numbers are those without
    it."""
    hosts, head = (make_host(family, 64, 3, 8), make_host(family, 32, 2, 4)), head_of(family, 64)
    options = ExtractionOptions(rank=3, structure=structure, blocks=True)
    plain = extract(*hosts, seeds_of(family), options, 0, head)
    monkeypatch.setattr(sensitivity, "load_file", lambda path, device: {
        name: tensor.to(device) for name, tensor in load_file(path).items()})
    monkeypatch.setattr(torch.nn.utils.rnn, "pad_sequence", padded)
    with SecondDevice() as second, Calls(second):
        module, report = extract(*hosts, seeds_of(family), options, 0, head, device="xla:0")
    assert second.made > 1000 and equal(module, plain[0]) and equal(report.blocks, plain[1].blocks)
    assert not any(map(second.has, module.tensors.values()))
