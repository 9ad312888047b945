"""Adapter folders fitted to other hosts: what is written, what is refused, and what no file can do."""

import json
import pickle
import random
import re
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from portability.core.errors import UserError
from portability.core.specs import PortSpec
from portability.hosts.sources import HostSource, describe
from portability.methods.files import read_folder
from portability.port import main
from portability.porting.adapter import PAD, port_folder
from portability.porting.convert import to_lora
from portability.porting.verify import read_rows
from support.peft_methods import write_plain
from support.tiny import TASK

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def ported(load, make_host, tmp_path):
    """Origin, receiving (as of `make_host`), method -> the adapter that peft wrote, ported."""
    def port(origin, receiving, name="lora", how=PAD, **settings):
        write_plain(tmp_path / "in", load(*origin), name, **settings)
        return port_folder(read_folder(tmp_path / "in"), make_host(*origin), make_host(*receiving),
                           how)

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
    done = ported(("llama", 32, 2, 4), ("llama", 64, 2, 8), "lora", PortSpec("r", "repeat", "stretch", True),
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
    done = ported(("llama", 32, 6, 4), ("llama", 32, 3, 4), "lora", PortSpec("p", "pad", "skip"),
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


@pytest.mark.parametrize("name", ["dora", "ia3"])
def test_what_multiplies_stays_as_the_library_begins_it_in_a_matrix_of_several_sites(ported, name):
    done = ported(("gpt2", 32, 2, 4), ("gpt2", 64, 2, 8), name)
    joined = [value for key, value in done.parameters.items()
              if "c_attn" in key and key.split(".")[-3 if name == "dora" else -2] in (
                  "lora_magnitude_vector", "ia3_l")]
    assert len(joined) == 2 and all(value.all() for value in joined)


def test_a_normalisations_numbers_that_are_not_carried_are_the_hosts_own(load, make_host, tmp_path):
    host = load("gpt2", 64, 2, 8)
    with torch.no_grad():
        for key, value in host.model.named_parameters():
            if ".ln_1." in key:
                value.fill_(0.75)
    host.model.save_pretrained(tmp_path / "host")
    host.tokenizer.save_pretrained(tmp_path / "host")
    write_plain(tmp_path / "in", load("gpt2", 32, 2, 4), "ln")
    done = port_folder(read_folder(tmp_path / "in"), make_host("gpt2", 32, 2, 4),
                       describe(HostSource("host", path=str(tmp_path / "host"))))
    found = [value for key, value in done.parameters.items() if ".ln_1." in key]
    assert len(found) == 4 and all((value[32:] == 0.75).all() for value in found)


@pytest.mark.parametrize("name", ["loha", "adalora"])
def test_scales_of_single_modules_of_other_methods_go_along(ported, name):
    done = ported(("llama", 32, 2, 4), ("llama", 64, 4, 8), name,
                  alpha_pattern={"layers.0.self_attn.q_proj": 32})
    assert done.spec.settings["alpha_pattern"] == {f"layers.{i}.self_attn.q_proj": 32 for i in (0, 1)}


def test_ranks_that_an_adalora_put_out_come_back_as_zeros(ported, make_host, tmp_path):
    whole = ported(("llama", 32, 2, 4), ("llama", 32, 2, 4), "adalora").parameters
    place, kept = "model.layers.0.self_attn.q_proj", [True, False, False, True]
    values = load_file(tmp_path / "in" / WEIGHTS)
    for part in "AEB":
        key = f"base_model.model.{place}.lora_{part}"
        values[key] = (values[key][:, kept] if part == "B" else values[key][kept]).contiguous()
    save_file(values, tmp_path / "in" / WEIGHTS)
    _change(tmp_path / "in", rank_pattern={f"{place}.lora_E": kept})
    host = make_host("llama", 32, 2, 4)
    found = port_folder(read_folder(tmp_path / "in"), host, host).parameters
    scale = found[f"{place}.lora_E.module"]
    assert torch.equal(scale[kept], whole[f"{place}.lora_E.module"][kept]) and not scale[1:3].any()
    assert found.keys() == whole.keys()
    _change(tmp_path / "in", rank_pattern={f"{place}.lora_E": [True, True, True, False]})
    with pytest.raises(UserError, match="rank_pattern keeps 3 of 4 directions there"):
        port_folder(read_folder(tmp_path / "in"), host, host)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_an_adapter_of_a_model_without_a_head_stays_one(load, make_host, tmp_path, family):
    host = load(family, 32, 2, 4)
    host.model = host.model.base_model
    write_plain(tmp_path / "in", host, "lora")
    receiving = make_host(family, 64, 3, 8)
    port_folder(read_folder(tmp_path / "in"), make_host(family, 32, 2, 4), receiving).write(
        tmp_path / "out", "base")
    loaded = PeftModel.from_pretrained(AutoModel.from_pretrained(receiving.source), tmp_path / "out")
    held, written = loaded.state_dict(), load_file(tmp_path / "out" / WEIGHTS)
    assert all(torch.equal(held[key.replace(".weight", ".default.weight")], written[key]) for key in written)


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


@pytest.mark.parametrize("rank", [0, -1, 1.5, float("inf"), float("nan")])
def test_a_rank_is_a_whole_number_or_a_share(folder, make_host, rank):
    with pytest.raises(UserError, match="--rank must be a whole number from 1 on, or a share"):
        to_lora(read_folder(folder), make_host("llama", 32, 2, 4), rank)


def test_a_folder_that_lacks_a_pair_is_one_sentence(folder, make_host):
    values = load_file(folder / WEIGHTS)
    for key in [key for key in values if "layers.0.mlp.up_proj" in key]:
        del values[key]
    save_file(values, folder / WEIGHTS)
    with pytest.raises(UserError, match="are not those that its adapter_config.json asks for"):
        to_lora(read_folder(folder), make_host("llama", 32, 2, 4), 0.99)


@pytest.mark.parametrize(("words", "said"), [
    (["--native", "x"], "--native is an option of --verify, which is not given"),
    (["--label-words", "no", "yes"], "--label-words is an option of --verify and --labels, and neither is"),
    (["--labels", "rows"], "--labels: strategy 'auto' learns from no labels"),
    (["--strategy", "warm", "--labels", "none"], "--labels: there is no file none"),
    (["--rank", "4"], "--rank is an option of --via, which is not given"),
    (["--verify", "rows", "--template", "text"], "--template must have {text}"),
    (["--verify", "rows"], "is not text in UTF-8"),
])
def test_an_option_that_would_do_nothing_is_one_sentence(
        folder, make_host, tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows").write_bytes(b'{"text": "\xff", "label": 1}\n')
    host = make_host("llama", 32, 2, 4).source
    assert main([str(folder), "--to", host, "--from", host, "--out", "out", *words]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_lines_of_examples_end_at_line_feeds_alone(tmp_path):
    (tmp_path / "rows").write_text('{"text": "a\u2028b", "label": 1}\n\n{"text": "c", "label": 0}\n')
    assert read_rows(tmp_path / "rows", "--verify", TASK) == [("a\u2028b", 1), ("c", 0)]
    (tmp_path / "rows").write_text('{"text": "a", "label": 0.7}\n')
    with pytest.raises(UserError, match="line 1: each line must be"):
        read_rows(tmp_path / "rows", "--verify", TASK)


def test_a_card_tells_the_command_and_no_path(folder, make_host, tmp_path):
    host = make_host("llama", 32, 2, 4)
    _change(folder, base_model_name_or_path=host.source)
    words = [str(folder), "--to", host.source, "--from", host.source, "--partial", "--seed", "7"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    card = (tmp_path / "out/README.md").read_text()
    assert (f"`portability port in --to {host.name} --from {host.name} --strategy auto --layer-map stretch "
            "--partial --seed 7`") in card
    assert f"base_model: {host.name}\n" in card and str(tmp_path.parent) not in card


def test_an_empty_list_of_further_modules_is_none(folder, make_host):
    _change(folder, modules_to_save=[])
    host = make_host("llama", 32, 2, 4)
    assert port_folder(read_folder(folder), host, host).report.carried_fraction == 1.0


def test_the_bases_revision_is_part_of_its_name_on_the_hub(folder, make_host):
    _change(folder, base_model_name_or_path="owner/base", revision="v2")
    assert read_folder(folder).base_words == "owner/base@v2"
    place = make_host("llama", 32, 2, 4).source
    _change(folder, base_model_name_or_path=place)
    assert read_folder(folder).base_words == place


def test_the_hubs_cache_gives_an_adapter_its_repositorys_name(folder, tmp_path):
    place = tmp_path / "models--owner--my-lora/snapshots" / ("0" * 40)
    place.parent.mkdir(parents=True)
    folder.rename(place)
    assert read_folder(place).called == read_folder(place).spec.name == "my-lora"


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
    (lambda f: _change(f, alpha_pattern={"(": 3}), "is no regular expression"),
    (lambda f: _change(f, alpha_pattern={"q_proj": {}}), "says '{}' for .*, which is no number"),
    (lambda f: save_file(load_file(f / WEIGHTS) | {
        "base_model.model.vision.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(4, 32)}, f / WEIGHTS),
     "is a second tensor of decoder.0.query.A"),
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


def test_the_command_its_json_and_the_card_name_what_is_left(load, make_host, tmp_path, capsys):
    """A GPT-2 has no gate, and one of its two layers comes from the Llama's first."""
    write_plain(tmp_path / "in", load("llama", 32, 2, 4), "lora")
    words = [str(tmp_path / "in"), "--from", make_host("llama", 32, 2, 4).source, "--to",
             make_host("gpt2", 32, 2, 4).source, "--strategy", "pad", "--partial", "--layer-map", "0,0"]
    left = [{"decoder layer 1", "attention_out", "ffn_down", "ffn_up", "query+key+value"},
            {"decoder layers 0-1", "ffn_gate"}]
    assert main([*words, "--json", "--out", str(tmp_path / "out")]) == 0
    found = json.loads(capsys.readouterr().out)["report"]
    assert list(found["left"]) == ["dropped"]
    assert [set(re.split("[:,] ", place)) for place in sorted(found["left"]["dropped"])] == left
    card = (tmp_path / "out/README.md").read_text()
    assert f"- dropped: {'; '.join(found['left']['dropped'])}\n" in card
    assert main([*words, "--dry-run"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "dropped" in line)
    assert line == "{} tensors dropped: left behind ({})".format(found["actions"]["dropped"],
                                                                 "; ".join(found["left"]["dropped"]))
