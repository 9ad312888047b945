"""Adapter folders fitted to other hosts: what is written, what is refused, and what no file can do."""

import json
import pickle
import random
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from portability.core.errors import UserError
from portability.methods.files import read_folder
from portability.porting.adapter import port_folder
from portability.porting.convert import to_lora
from support.peft_methods import write_plain

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def ported(load, make_host, tmp_path):
    """Origin, receiving (as of `make_host`), method -> the adapter that peft wrote, ported."""
    def port(origin, receiving, name="lora", options=None, **settings):
        write_plain(tmp_path / "in", load(*origin), name, **settings)
        return port_folder(read_folder(tmp_path / "in"), make_host(*origin), make_host(*receiving),
                           **(options or {}))

    return port


def test_a_lora_fits_a_larger_host_and_peft_loads_it(ported, load, tmp_path):
    done = ported(("llama", 32, 2, 4), ("llama", 64, 4, 8))
    done.write(tmp_path / "out", "me/larger")
    before, after = (load_file(tmp_path / side / WEIGHTS) for side in ("in", "out"))
    for layer, origin in enumerate((0, 0, 1, 1)):
        name = "base_model.model.model.layers.{}.mlp.down_proj.lora_A.weight"
        wide = after[name.format(layer)]
        assert torch.equal(wide[:, :64], before[name.format(origin)]) and not wide[:, 64:].any()
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["r"], config["lora_alpha"]) == ("me/larger", 4, 8)
    model = PeftModel.from_pretrained(load("llama", 64, 4, 8).model, tmp_path / "out")
    held = {key: value for key, value in model.state_dict().items() if "lora_" in key}
    assert all(torch.equal(held[key.replace(".weight", ".default.weight")], after[key]) for key in after)
    assert done.port.report.carried_fraction == 1.0 and done.port.report.filled_fraction == 0.5


def test_of_an_embeddings_pair_what_comes_out_is_repeated_and_nothing_divided(ported, tmp_path):
    done = ported(("llama", 32, 2, 4), ("llama", 64, 2, 8), options={"strategy": "repeat", "partial": True},
                  sites=["embedding", "query"])
    left = {name for name, action in done.port.report.tensors.items() if action == "dropped"}
    assert left == {"shared.0.embedding.base_layer (origin)"}  # the table itself, which peft saves beside it
    done.write(tmp_path / "out", "base")
    before, after = (load_file(tmp_path / side / WEIGHTS) for side in ("in", "out"))
    name = "base_model.model.model.embed_tokens.lora_embedding_{}"
    assert torch.equal(after[name.format("A")], before[name.format("A")])
    assert torch.equal(after[name.format("B")], before[name.format("B")].repeat(2, 1))
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    assert torch.equal(after[name], before[name].repeat(1, 2) / 2)


def test_ranks_and_scales_of_single_modules_go_along(ported):
    done = ported(("llama", 32, 2, 4), ("llama", 32, 4, 4), rank_pattern={"layers.1.mlp.up_proj": 2},
                  alpha_pattern={"layers.0.self_attn.q_proj": 32})
    assert done.spec.settings["rank_pattern"] == {f"layers.{i}.mlp.up_proj": 2 for i in (2, 3)}
    assert done.spec.settings["alpha_pattern"] == {f"layers.{i}.self_attn.q_proj": 32 for i in (0, 1)}


def test_numbers_and_scales_go_by_the_layer_map_that_was_asked_for(ported):
    done = ported(("llama", 32, 6, 4), ("llama", 32, 3, 4), options={"layer_map": "skip"},
                  alpha_pattern={"layers.4.mlp.up_proj": 32, "layers.5.mlp.up_proj": 64})
    assert done.spec.settings["alpha_pattern"] == {"layers.2.mlp.up_proj": 32}
    assert done.port.report.layer_map["decoder"] == [[0], [2], [4]]


def test_layers_without_a_module_stay_without(ported):
    done = ported(("llama", 32, 4, 4), ("llama", 32, 4, 4), layers_to_transform=[1, 2])
    assert all(name.startswith(("layers.1.", "layers.2.")) for name in done.spec.settings["target_modules"])
    assert done.port.report.carried_fraction == 1.0


def test_what_multiplies_stays_as_the_library_begins_it_where_nothing_is_carried(ported):
    done = ported(("llama", 32, 2, 4), ("llama", 64, 2, 8), "ia3")
    for name, value in done.parameters.items():
        filled = value.flatten()[value.numel() // 2:]
        assert torch.equal(filled, torch.ones_like(filled)), name


def test_a_magnitude_that_is_not_carried_is_the_norm_of_the_hosts_own_row(ported, load):
    done = ported(("llama", 32, 2, 4), ("llama", 64, 2, 8), "dora")
    weight = load("llama", 64, 2, 8).model.model.layers[0].mlp.up_proj.weight
    name = "model.layers.0.mlp.up_proj.lora_magnitude_vector.module.weight"
    assert torch.allclose(done.parameters[name][64:], weight.norm(dim=1)[64:])


def test_encoders_keep_the_name_that_their_class_gives_them(ported, tmp_path, load, make_host):
    done = ported(("bert", 32, 2, 4), ("roberta", 48, 3, 6))
    done.write(tmp_path / "out", "base")
    assert all(key.startswith("base_model.model.encoder.") for key in load_file(tmp_path / "out" / WEIGHTS))
    named = {key.replace("base_model.model.", "base_model.model.bert."): value
             for key, value in load_file(tmp_path / "in" / WEIGHTS).items()}
    save_file(named, tmp_path / "in" / WEIGHTS)
    again = port_folder(read_folder(tmp_path / "in"), make_host("bert", 32, 2, 4),
                        make_host("roberta", 48, 3, 6))
    again.write(tmp_path / "again", "base")
    assert all(key.startswith("base_model.model.roberta.encoder.")
               for key in load_file(tmp_path / "again" / WEIGHTS))


def test_numbers_keep_their_type(ported, tmp_path):
    done = ported(("gpt2", 32, 2, 4), ("gpt2", 48, 3, 6))
    half = {key: value.to(torch.bfloat16) for key, value in load_file(tmp_path / "in" / WEIGHTS).items()}
    save_file(half, tmp_path / "in" / WEIGHTS)
    again = port_folder(read_folder(tmp_path / "in"), done.origin, done.origin)
    again.write(tmp_path / "out", "base")
    written = load_file(tmp_path / "out" / WEIGHTS)
    assert written.keys() == half.keys() and all(torch.equal(written[key], half[key]) for key in half)
    assert {value.dtype for value in written.values()} == {torch.bfloat16}  # equal() looks at values alone


@pytest.mark.parametrize(("origin", "receiving", "name", "said"), [
    (("llama", 64, 4, 8), ("llama", 32, 2, 4), "vera", "turn it into a LoRA first"),
    (("llama", 32, 2, 4), ("bert", 32, 2, 4), "lora", "would lose decoder.0.ffn_gate"),
])
def test_what_is_not_defined_is_refused(ported, origin, receiving, name, said):
    with pytest.raises(UserError, match=said):
        ported(origin, receiving, name)


@pytest.mark.parametrize("name", ["loha", "lokr", "miss", "randlora", "vera"])
def test_what_has_no_port_between_widths_has_one_as_a_lora(load, make_host, tmp_path, name):
    """The LoRA keeps as much of each matrix as was asked for."""
    write_plain(tmp_path / "in", load("llama", 32, 2, 4), name)
    lora, errors = to_lora(read_folder(tmp_path / "in"), make_host("llama", 32, 2, 4), 0.9999)
    assert errors["median"] <= errors["largest"] < 0.011  # sqrt(1 - 0.9999)
    assert lora.spec.config == "LoraConfig"
    done = port_folder(lora, make_host("llama", 32, 2, 4), make_host("llama", 64, 4, 8))
    assert done.port.report.carried_fraction == 1.0


def test_what_peft_cannot_turn_into_a_lora_is_said_with_its_words(load, make_host, tmp_path):
    write_plain(tmp_path / "in", load("llama", 32, 2, 4), "oft")
    with pytest.raises(UserError, match="peft cannot turn OFTConfig into a LoRA: Some module types on this"):
        to_lora(read_folder(tmp_path / "in"), make_host("llama", 32, 2, 4), 0.99)


def test_an_adapter_of_another_base_is_seen(load, make_host, tmp_path):
    write_plain(tmp_path / "in", load("llama", 32, 2, 4), "lora")
    with pytest.raises(UserError, match="does not belong to a llama host of width 64: it was made on "
                       "another"):
        port_folder(read_folder(tmp_path / "in"), make_host("llama", 64, 4, 8), make_host("llama", 64, 4, 8))


# ---- folders from elsewhere


class Harm:
    def __reduce__(self):
        return Path.touch, (Path("harm"),)


@pytest.fixture
def folder(load, tmp_path):
    write_plain(tmp_path / "in", load("llama", 32, 2, 4), "lora")
    return tmp_path / "in"


def _change(folder, **values):
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | values))


@pytest.mark.parametrize(("harm", "said"), [
    (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:300]), "cannot be read.*download it "
     "again"),
    (lambda f: (f / WEIGHTS).unlink(), "holds no adapter_model.safetensors"),
    (lambda f: (f / "adapter_config.json").unlink(), "it is no folder of an adapter"),
    (lambda f: (f / "adapter_config.json").write_text("[" * 100_000), "cannot be read as JSON"),
    (lambda f: (f / "adapter_config.json").write_text("[]"), "is not a JSON object"),
    (lambda f: (f / "adapter_config.json").write_bytes(b" " * (1 << 20) + b"{}"), "larger than a "
     "configuration"),
    (lambda f: _change(f, peft_type="LORRA"), "unknown peft_type.*did you mean 'LORA'"),
    (lambda f: _change(f, peft_type=None), "unknown peft_type"),
    (lambda f: _change(f, base_model_name_or_path=["../.."]), "base_model_name_or_path must be text"),
    (lambda f: _change(f, use_magic=True), "knows no setting 'use_magic'"),
    (lambda f: _change(f, init_lora_weights="pissa"), "init_lora_weights=pissa cannot be ported"),
    (lambda f: save_file({"a": torch.ones(2, dtype=torch.int64)}, f / WEIGHTS), "floating"),
    (lambda f: save_file({"a": torch.tensor([float("nan")])}, f / WEIGHTS), "not finite"),
    (lambda f: save_file({"base_model.model.lm_head.weight": torch.ones(2, 2)}, f / WEIGHTS), "whole matrix"),
    (lambda f: save_file({"x.y.lora_A.weight": torch.ones(2, 2)}, f / WEIGHTS), "no place is known"),
    (lambda f: ((f / WEIGHTS).unlink(), (f / "adapter_model.bin").write_bytes(pickle.dumps(Harm()))),
     "refused by torch's restricted loader"),
    (lambda f: ((f / WEIGHTS).unlink(), (f / "adapter_model.bin").write_bytes(b"\x80\x02}q\x00")),
     "restricted loader, or damaged: EOFError; have it saved as safetensors"),
])
def test_a_damaged_or_hostile_folder_is_one_sentence(folder, make_host, harm, said, monkeypatch):
    monkeypatch.chdir(folder)
    harm(folder)
    host = make_host("llama", 32, 2, 4)
    with pytest.raises(UserError, match=said) as error:
        port_folder(read_folder(folder), host, host)
    assert "\n" not in str(error.value) and not (folder / "harm").exists()


def test_a_pickle_of_tensors_alone_is_read(folder, make_host):
    values = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    torch.save(values, folder / "adapter_model.bin")
    host = make_host("llama", 32, 2, 4)
    assert port_folder(read_folder(folder), host, host).port.report.carried_fraction == 1.0


@pytest.mark.parametrize("count", [pytest.param(100, marks=pytest.mark.system),
                                   pytest.param(1000, marks=pytest.mark.full)])
def test_no_folder_makes_it_fall_over(folder, make_host, count, tmp_path):
    """Bytes and settings changed at random: a port, or one sentence."""
    draw, host = random.Random(0), make_host("llama", 32, 2, 4)
    weights, config = (folder / WEIGHTS).read_bytes(), (folder / "adapter_config.json").read_text()
    ends = {"ported": 0, "refused": 0}
    for _ in range(count):
        damaged = bytearray(weights)
        for _ in range(draw.randrange(4)):
            damaged[draw.randrange(draw.choice([40, 600, len(damaged)]))] = draw.randrange(256)
        if draw.random() < 0.2:
            damaged = damaged[:draw.randrange(len(damaged))]
        values = json.loads(config)
        for _ in range(draw.randrange(3)):
            values[draw.choice(list(values))] = draw.choice(
                [None, -1, 0, 1e308, "../../etc", [], {}, [[]], True, "x" * 1000, {"a": {"b": []}}, 2**70])
        (folder / WEIGHTS).write_bytes(bytes(damaged))
        (folder / "adapter_config.json").write_text(json.dumps(values))
        try:
            done = port_folder(read_folder(folder), host, host)
            done.write(tmp_path / f"out{ends['ported']}", "base")
            ends["ported"] += 1
        except UserError as error:
            assert len(str(error)) < 3000
            ends["refused"] += 1
    assert min(ends.values()) > count // 20
