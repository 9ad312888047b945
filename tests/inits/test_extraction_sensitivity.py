"""Sensitivity layer by layer equals one backward pass through the whole model for each example."""

import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from portability.core.errors import UserError
from portability.hosts.sources import HostSource, describe
from portability.inits.extraction import ExtractionOptions, extract, threads
from portability.inits.extraction.layerwise import AbsoluteGradients, add_absolute
from portability.inits.extraction.sensitivity import Offload, ones, sensitivity
from portability.inits.extraction.weights import Weights
from portability.methods.module import equal
from portability.tasks.base import Answered as Seed
from support.extraction_slow import NAMES, WORD, changed_host, head_of, loss, plain_model, seeds_of, slow
from support.tiny import FAMILIES, WORDS


def close(one, other):
    return torch.allclose(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))


def check(spec, options, seeds, head, slowly):
    """Every parameter of every layer, and embedding and head where they are scored."""
    checked = set()
    for stack, layer, scores in sensitivity(Weights(spec), seeds, options, head):
        if stack == "shared":
            names = {"embedding": WORD[spec.shape.family], "head": "lm_head.weight"}
            found = {names[site]: part for site, part in scores.items()}
        else:
            prefix = NAMES[spec.shape.family, stack][0].format(layer)
            found = {prefix + name: part for name, part in scores.items()}
            assert found.keys() == {name for name in slowly.values if name.startswith(prefix)}
        for name, part in found.items():
            assert close(part, slowly.scores[name]), name
        checked |= found.keys()
    return checked


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_one_backward_pass_an_example(family, make_host):
    spec, seeds, head = make_host(family, 32, 3, 4), seeds_of(family), head_of(family, 32)
    slowly = slow(spec, seeds, head)
    for batch_size in (1, 2, 5):
        checked = check(spec, ExtractionOptions(batch_size=batch_size), seeds, head, slowly)
        assert WORD[family] in checked and ("lm_head.weight" in checked) == (family == "llama")
    assert max(float(part.max()) for part in slowly.scores.values()) > 1e-4


@pytest.mark.parametrize(("family", "config"), [
    ("t5", {"tie_word_embeddings": False}),
    ("t5", {"feed_forward_proj": "relu", "num_decoder_layers": 1, "d_kv": 12}),
    ("llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True, "pad_token_id": 0}),
    ("llama", {"num_key_value_heads": 4, "head_dim": 6}),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True, "tie_word_embeddings": False}),
    ("roberta", {"pad_token_id": 1, "hidden_act": "relu"}),
    *[(family, {"pad_token_id": seeds_of(family)[0].ids[0]}) for family in ("llama", "bert", "roberta")],
])
def test_scores_hold_for_other_settings_of_a_family(family, config, tmp_path):
    spec, seeds, head = changed_host(tmp_path, family, **config), seeds_of(family), head_of(family, 32)
    untied = config.get("tie_word_embeddings") is False
    checked = check(spec, ExtractionOptions(batch_size=3), seeds, head, slow(spec, seeds, head))
    assert ("lm_head.weight" in checked) == (untied or family == "llama"
                                             and not config.get("tie_word_embeddings"))


@pytest.mark.parametrize("family", ["t5", "gpt2", "llama"])
def test_a_wrong_answer_token_or_a_sum_of_gradients_would_show(family, make_host):
    spec, seeds = make_host(family, 32, 3, 4), seeds_of(family)
    slowly = slow(spec, seeds, None)
    shifted = [Seed(s.ids, start=s.start and max(1, s.start - 1), target=(*s.target, 4)) for s in seeds]
    with pytest.raises(AssertionError):
        check(spec, ExtractionOptions(), [*seeds[:2], shifted[2], *seeds[3:]], None, slowly)
    host = plain_model(spec)
    sum(loss(host, spec, seed, None) for seed in seeds).backward()
    name = NAMES[family, "decoder"][0].format(1) + next(iter(NAMES[family,
                                                                   "decoder"][1].values())) + ".weight"
    parameter = host.get_parameter(name)
    assert not close((parameter * parameter.grad).abs().detach(), slowly.scores[name])


@pytest.mark.parametrize("piece", [1, 7 * 32])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_gradients_that_are_made_in_pieces_are_whole(family, piece, make_host, monkeypatch):
    monkeypatch.setattr(threads, "PIECE", piece)
    spec, seeds = make_host(family, 32, 3, 4), seeds_of(family)
    check(spec, ExtractionOptions(batch_size=2), seeds, None, slow(spec, seeds, None))


def test_a_piece_that_is_not_finite_is_refused(monkeypatch):
    monkeypatch.setattr(threads, "PIECE", 4)
    left, right = torch.ones(2, 5), torch.ones(2, 2)
    left[1, 4] = float("nan")
    with pytest.raises(UserError, match="seed example 3 has a gradient that is not finite at the head"):
        add_absolute(torch.zeros(5, 2), (left, right), 3, "the head")


def test_shards_and_half_precision_are_read(make_host, tmp_path):
    host = plain_model(make_host("llama", 32, 3, 4))
    folders = {"whole": {}, "shards": {"max_shard_size": "20KB"}}
    found = {}
    for name, settings in folders.items():
        host.to(torch.bfloat16).save_pretrained(tmp_path / name, **settings)
        (tmp_path / name / "tokenizer.json").write_text("{}")
        spec = describe(HostSource(name, path=str(tmp_path / name)))
        found[name] = list(sensitivity(Weights(spec), seeds_of("llama"), ExtractionOptions()))
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    for (*place, one), (*other, two) in zip(found["whole"], found["shards"], strict=True):
        assert place == other and all(torch.equal(one[name], two[name]) for name in one | two)
        assert all(part.dtype == torch.float32 for part in one.values())


def test_old_names_and_the_prefix_of_a_bigger_model_are_read(make_host, tmp_path):
    source = make_host("bert", 32, 3, 4)
    old = {f"bert.{name}".replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias",
                                                                                 "LayerNorm.beta"): part
           for name, part in load_file(f"{source.source}/model.safetensors").items()}
    save_file(old, tmp_path / "model.safetensors")
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes(open(f"{source.source}/{name}", "rb").read())
    spec = describe(HostSource("old", path=str(tmp_path)))
    seeds, head = seeds_of("bert"), head_of("bert", 32)
    check(spec, ExtractionOptions(), seeds, head, slow(source, seeds, head))


def test_ones_are_of_the_same_places_and_shapes(make_host):
    for family in FAMILIES:
        weights, options = Weights(make_host(family, 32, 3, 4)), ExtractionOptions()
        kinds = sensitivity(weights, seeds_of(family), options, head_of(family, 32)), ones(weights, options)
        real, off = ({(*place, name): part for *place, scores in kind for name, part in scores.items()}
                     for kind in kinds)
        assert {key: part.shape for key, part in real.items()} == {key: part.shape
                                                                   for key, part in off.items()}
        assert all(bool((part == 1).all()) for part in off.values())


BAD = [
    ("llama", [], "at least one seed example"),
    ("llama", [Seed((3, 4, 5))], "seed example 0 has no answer"),
    ("llama", [Seed((3, 4, 5), start=2), Seed((3, 4), start=2)], "seed example 1 has no answer"),
    ("gpt2", [Seed((3, 4), start=0)], "seed example 0 has no answer"),
    ("gpt2", [Seed((3, 4, 99), start=1)], "token 99"),
    ("gpt2", [Seed([3] * 66, start=1)], "66 tokens, but the teacher has 64 positions"),
    ("t5", [Seed((3, 4))], "seed example 0 has no answer"),
    ("t5", [Seed((), target=(3,))], "seed example 0 has no tokens"),
    ("bert", [Seed((3, 4))], "seed example 0 has no answer"),
]


@pytest.mark.parametrize(("family", "seeds", "message"), BAD)
def test_bad_seeds_are_refused_in_one_sentence(family, seeds, message, make_host):
    with pytest.raises(UserError, match=message) as raised:
        extract(make_host(family, 32, 3, 4), make_host(family, 16, 2, 4), seeds, ExtractionOptions(rank=2), 0,
                head_of(family, 32))
    assert "\n" not in str(raised.value)


def test_an_encoder_needs_its_head(make_host):
    with pytest.raises(UserError, match="classification head"):
        next(sensitivity(Weights(make_host("bert", 32, 3, 4)), seeds_of("bert"), ExtractionOptions()))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_gradient_that_is_not_finite_names_the_example_and_leaves_nothing_behind(family, tmp_path,
                                                                                   monkeypatch):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    spec, head = changed_host(tmp_path / "host", family), head_of(family, 32)
    if head is not None:
        head["head.weight"][1] = float("inf")
    else:
        with_row(spec, "lm_head.weight" if family == "llama" else WORD[family], 30, 3e38)
    seeds = [Seed(tuple(t % 30 for t in s.ids), s.start, tuple(t % 30 for t in s.target), s.label)
             for s in seeds_of(family)]
    with pytest.raises(UserError, match=r"seed example \d has a gradient that is not finite at the head"):
        list(sensitivity(Weights(spec), seeds, ExtractionOptions(), head))
    assert not list(scratch.iterdir())


def with_row(spec, name, row, value):
    """Write a number into a row of a host's parameter."""
    path = f"{spec.source}/model.safetensors"
    tensors = {key: tensor.clone() for key, tensor in load_file(path).items()}
    (key,) = [key for key in tensors if key.endswith(name)]
    tensors[key][row] = value
    save_file(tensors, path, {"format": "pt"})


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_a_row_that_nothing_needs_may_be_anything(family, make_host, tmp_path):
    """No seed example has the token, and the student's tokenizer neither."""
    seeds = [Seed(tuple(t % 29 for t in s.ids), s.start, (), s.label) for s in seeds_of(family)]
    student = changed_host(tmp_path / "student", family, 16, words=[*WORDS[:30], "another"])
    found = []
    for value in (0.5, float("nan")):
        teacher = changed_host(tmp_path / str(value), family)
        with_row(teacher, WORD[family], 30, value)
        found.append(extract(teacher, student, seeds, ExtractionOptions(rank=3), 0, head_of(family, 32)))
    assert equal(found[0][0], found[1][0]) and found[0][1].offsets == found[1][1].offsets


@pytest.mark.parametrize(("family", "name", "says"), [
    ("llama", "embed_tokens.weight", "or leave out embedding and head"),
    ("bert", "word_embeddings.weight", "or leave out embedding and head"),
    ("llama", "lm_head.weight", "or leave out embedding and head"),
    ("t5", "shared.weight", "or leave out embedding and head"),
    ("llama", "layers.1.mlp.up_proj.weight", "mend the file"), ("gpt2", "h.0.ln_1.bias", "mend the file"),
])
def test_weights_that_are_not_finite_are_named(family, name, says, make_host, tmp_path):
    teacher = changed_host(tmp_path, family)
    with_row(teacher, name, 30, float("nan"))
    seeds = [Seed(tuple(t % 29 for t in s.ids), s.start, tuple(t % 29 for t in s.target), s.label)
             for s in seeds_of(family)]
    message = f"row 30 of [a-z_.0-9]*{name} in .* has a number that is not finite; .*{says}"
    with pytest.raises(UserError, match=message) as raised:
        extract(teacher, make_host(family, 16, 2, 4), seeds, ExtractionOptions(rank=3), 0,
                head_of(family, 32))
    assert "\n" not in str(raised.value)
    if "embed" in name:
        inside = ExtractionOptions(rank=3, sites=("attention", "ffn"))
        extract(teacher, make_host(family, 16, 2, 4), seeds, inside, 0, head_of(family, 32))


def test_a_row_that_an_example_uses_is_named(make_host, tmp_path):
    teacher, seeds = changed_host(tmp_path, "llama"), seeds_of("llama")
    with_row(teacher, WORD["llama"], seeds[3].ids[0], float("inf"))
    with pytest.raises(UserError, match=f"row {seeds[3].ids[0]} of embed_tokens.weight"):
        list(sensitivity(Weights(teacher), seeds, ExtractionOptions()))


def test_one_file_larger_than_memory_is_read_in_parts(make_host, tmp_path):
    """A file with twice as many zeros as there is memory, none of which takes room on the disk."""
    source, big = Path(make_host("llama", 32, 3, 4).source), tmp_path / "model.safetensors"
    content = (source / "model.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header, size = json.loads(content[8 : 8 + length]), 2 * os.sysconf("SC_PHYS_PAGES") * os.sysconf(
        "SC_PAGE_SIZE")
    body = len(content) - 8 - length
    table = "model.layers.0.self_attn.rotary_emb.inv_freq"  # is passed over
    header[table] = {"dtype": "U8", "shape": [size], "data_offsets": [body, body + size]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    big.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    os.truncate(big, 8 + len(text) + body + size)
    (tmp_path / "config.json").write_bytes((source / "config.json").read_bytes())
    spec = replace(make_host("llama", 32, 3, 4), source=str(tmp_path))
    weights, plain = Weights(spec), Weights(make_host("llama", 32, 3, 4))
    for name in plain.stored:
        assert torch.equal(weights.read(name), plain.read(name))
    some = torch.tensor([[3, 1]])
    assert torch.equal(weights.read("embed_tokens.weight", some), plain.read("embed_tokens.weight")[some])


def test_a_layers_gradient_that_is_not_finite_names_layer_and_example():
    layer = nn.Sequential(nn.Linear(3, 3)).requires_grad_(False)
    watch = AbsoluteGradients(layer, "decoder layer 5")
    watch.numbers = [4, 9]
    states = torch.ones(2, 1, 3, requires_grad=True)
    gradient = torch.ones(2, 1, 3)
    gradient[1, 0, 2] = float("inf")
    with pytest.raises(UserError, match="seed example 9 .* at decoder layer 5"):
        layer(states).backward(gradient)


def test_absolute_values_are_added_not_sums():
    total = torch.zeros(2)
    for gradient in ([1.0, -2.0], [-1.0, 2.0]):
        add_absolute(total, torch.tensor(gradient), 0, "here")
    assert total.tolist() == [2.0, 4.0]


def test_a_part_without_a_rule_is_refused():
    with pytest.raises(KeyError, match="Bilinear"):
        AbsoluteGradients(nn.Sequential(nn.Bilinear(2, 2, 2)), "encoder layer 0")


def test_sets_on_disk_may_be_replaced_while_they_are_read():
    with Offload() as offload:
        offload.put("a", x=torch.arange(4.0))
        before = offload.get("a")["x"]
        offload.put("a", x=before * 2)
        assert before.tolist() == [0, 1, 2, 3] and offload.get("a")["x"].tolist() == [0, 2, 4, 6]
