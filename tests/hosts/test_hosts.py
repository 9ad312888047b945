"""A host is loaded with the weights of its folder, all of them and no others, or not at all."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from portability.core.errors import UserError
from portability.execution.rehearse import skeleton
from portability.hosts.attention import TAKES_READY
from portability.hosts.host import load_plain
from portability.hosts.sources import HostSource, describe
from portability.inits.extraction.weights import Weights
from support.tiny import FAMILIES

ENCODERS = ("bert", "roberta")
SOME = {  # a matrix in the middle of each family
    "t5": "decoder.block.1.layer.1.EncDecAttention.k.weight",
    "bert": "encoder.layer.1.attention.self.key.weight",
    "roberta": "encoder.layer.1.attention.self.key.weight", "gpt2": "transformer.h.1.mlp.c_fc.weight",
    "llama": "model.layers.1.self_attn.k_proj.weight",
}


@pytest.fixture
def spoil(make_host, tmp_path):
    """family, what to make of its weights, config keys to change -> the source of the changed copy."""
    def change(family, weights=lambda found: found, **config):
        folder = shutil.copytree(make_host(family).source, tmp_path / "host")
        found = weights(load_file(folder / "model.safetensors"))
        save_file(found, folder / "model.safetensors", metadata={"format": "pt"})
        values = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(values | config))
        return HostSource("spoilt", path=str(folder))

    return change


def without(*names):
    return lambda found: {name: tensor for name, tensor in found.items() if name not in names}


def refusals(source):
    """What loading, reading for an extraction, and looking at a host before work say."""
    for read in (load_plain, Weights, skeleton):
        with pytest.raises(UserError) as said:
            read(describe(source))
        yield str(said.value)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_missing_weight_is_named(spoil, family):
    for said in refusals(spoil(family, without(SOME[family]))):
        assert "not those that its config.json asks for: it lacks " in said
        assert SOME[family].split(".", 1)[1] in said


@pytest.mark.parametrize("family", FAMILIES)
def test_a_weight_too_many_is_named(spoil, family):
    for said in refusals(spoil(family, lambda found: found | {"another.weight": torch.ones(3)})):
        assert "it has beyond them another.weight;" in said


@pytest.mark.parametrize("family", FAMILIES)
def test_a_weight_of_another_shape_is_named(spoil, family):
    for said in refusals(spoil(family, lambda found: found | {SOME[family]: torch.ones(3, 5)})):
        assert "it has in another shape " in said and SOME[family].split(".", 1)[1] in said


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("depth", "words"), [(3, "it lacks "), (1, "it has beyond them ")])
def test_layers_that_file_and_config_do_not_share_are_named(spoil, family, depth, words):
    keys = {"t5": ("num_layers", "num_decoder_layers"), "gpt2": ("n_layer",)}.get(family,
                                                                                  ("num_hidden_layers",))
    for said in refusals(spoil(family, **dict.fromkeys(keys, depth))):
        assert words in said and " more" in said


@pytest.mark.parametrize("family", ["t5", "gpt2", "llama"])
def test_a_host_without_its_own_head_is_refused_before_it_is_loaded(spoil, family):
    source = spoil(family, without("lm_head.weight"), tie_word_embeddings=False)
    with pytest.raises(UserError, match="it lacks lm_head.weight; take a whole copy"):
        describe(source)


@pytest.mark.parametrize("family", ["t5", "gpt2", "llama"])
def test_a_tied_head_may_be_missing(spoil, family):
    spec = describe(spoil(family, without("lm_head.weight"), tie_word_embeddings=True))
    model = load_plain(spec)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert Weights(spec).tied


@pytest.mark.parametrize("family", ENCODERS)
def test_an_encoders_pooler_and_heads_may_be_missing_or_there(spoil, make_host, family):
    def pretrained(found):
        bare = {f"{family}.{name}": tensor for name, tensor in found.items()
                if not name.startswith("pooler.")}
        return bare | {"cls.predictions.bias": torch.ones(3), "lm_head.dense.weight": torch.ones(3, 3),
                       f"{family}.embeddings.position_ids": torch.arange(64)[None]}

    spec, ids = describe(spoil(family, pretrained)), torch.tensor([[3, 7, 9]])
    plain, other = (load_plain(one)(input_ids=ids).last_hidden_state for one in (make_host(family), spec))
    assert torch.equal(plain, other)
    Weights(spec)


@pytest.mark.parametrize("family", FAMILIES)
def test_tables_that_older_files_hold_are_passed_over(spoil, make_host, family):
    tables = {
        "t5": {"decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": torch.ones(32, 4)},
        "gpt2": {"transformer.h.0.attn.bias": torch.ones(1, 1, 64, 64),
                 "transformer.h.0.attn.masked_bias": torch.ones(())},
        "llama": {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)},
    }
    more = tables.get(family, {"embeddings.position_ids": torch.arange(64)[None]})
    spec = describe(spoil(family, lambda found: found | more))
    ours, plain = (load_plain(one).parameters() for one in (spec, make_host(family)))
    assert all(torch.equal(one, two) for one, two in zip(ours, plain, strict=True))
    Weights(spec)


def test_names_without_the_prefix_of_the_base_model_are_read(spoil):
    spec = describe(spoil("gpt2", lambda found: {name.removeprefix("transformer."): one
                                                 for name, one in found.items()}))
    assert load_plain(spec).lm_head.weight.shape == (31, 32) and Weights(spec).tied


@pytest.mark.parametrize(("size", "says"), [
    (0, "must have a whole number from 1 on as n_layer, got 0"), ("two", "as n_layer, got 'two'"),
    (2.0, "as n_layer, got 2.0"), (None, "config.json lacks n_layer"),
])
def test_a_size_that_is_none_is_named_with_its_host(make_host, tmp_path, size, says):
    folder = shutil.copytree(make_host("gpt2").source, tmp_path / "host")
    found = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(found | {"n_layer": size}))
    with pytest.raises(UserError, match=f"^host 'spoilt': .*{says}"):
        describe(HostSource("spoilt", path=str(folder)))


@pytest.mark.skipif(TAKES_READY, reason="transformers 5 reads them")
def test_names_of_two_kinds_are_one_sentence(spoil):
    spec = describe(spoil("llama", lambda found: {name.removeprefix("model."): one
                                                  for name, one in found.items()}))
    with pytest.raises(UserError, match="host 'spoilt' cannot be loaded from"):
        load_plain(spec)


@pytest.fixture
def shards(make_host, tmp_path):
    """A llama in two files and their index."""
    folder = shutil.copytree(make_host("llama").source, tmp_path / "host")
    found = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    files = {name: f"model-0000{1 + (name == 'lm_head.weight')}-of-00002.safetensors" for name in found}
    for file in set(files.values()):
        save_file({name: found[name] for name in found if files[name] == file}, folder / file,
                  metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": 1},
                                                                     "weight_map": files}))
    load_plain(describe(HostSource("sharded", path=str(folder))))
    return folder


def refused(folder):
    with pytest.raises(UserError) as said:
        load_plain(describe(HostSource("sharded", path=str(folder))))
    return str(said.value)


def test_a_shard_that_is_not_there_is_named(shards):
    (shards / "model-00002-of-00002.safetensors").unlink()
    assert "names model-00002-of-00002.safetensors, not in its folder" in refused(shards)


def test_a_shard_that_is_cut_off_is_named(shards):
    whole = (shards / "model-00001-of-00002.safetensors").read_bytes()
    (shards / "model-00001-of-00002.safetensors").write_bytes(whole[: len(whole) // 2])
    assert "model-00001-of-00002.safetensors cannot be read" in refused(shards)


def test_a_shard_that_the_index_leaves_out_is_missed(shards):
    index = shards / "model.safetensors.index.json"
    table = json.loads(index.read_text())
    table["weight_map"].pop("lm_head.weight")
    index.write_text(json.dumps(table))
    assert "it lacks lm_head.weight" in refused(shards)


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"weight_map": {}}', '{"weight_map": [], "metadata": '
                                  '{}}'])
def test_a_broken_index_is_one_sentence(shards, text):
    (shards / "model.safetensors.index.json").write_text(text)
    assert "is no index of weights" in refused(shards)
