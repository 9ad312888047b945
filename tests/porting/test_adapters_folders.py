"""Folders of adapters fitted to other hosts, LoRAs that change their library, folders that are refused."""

import json
import random
from collections import Counter

import adapters
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from portability.core.errors import UserError
from portability.methods.files import read_folder
from portability.port import main
from portability.porting.adapter import port_folder
from portability.porting.formats import in_library
from portability.tasks.classification import Scorer
from support import peft_methods
from support.adapters_methods import write_plain
from support.tiny import TASK

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
IDS = torch.randint(3, 20, (4, 7), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def ported(load, make_host, tmp_path):
    """Origin, receiving (as of `make_host`), method -> the adapter that the library wrote, ported."""
    def port(origin, receiving, name="adapter", **options):
        write_plain(tmp_path / "in", load(*origin), name)
        return port_folder(read_folder(tmp_path / "in"), make_host(*origin), make_host(*receiving), **options)

    return port


@pytest.mark.parametrize(("origin", "receiving", "name"), [
    (("bert", 32, 2, 4), ("roberta", 64, 4, 4), "adapter"),
    (("llama", 32, 2, 4), ("mistral", 64, 3, 8), "mam"),
    (("t5", 32, 2, 4), ("t5", 48, 3, 6), "unipelt"),
    (("gpt2", 32, 2, 4), ("llama", 32, 2, 4), "scaled_parallel"),
    (("bert", 32, 2, 4), ("distilbert", 64, 3, 4), "prefix_mlp"),
    (("bert", 32, 4, 4), ("bert", 64, 2, 4), "compacter"),
    (("bert", 32, 2, 4), ("bert", 64, 2, 4), "ia3"),
])
def test_a_module_keeps_its_size_on_a_larger_host_and_the_library_loads_it(
        ported, load, tmp_path, origin, receiving, name):
    done = ported(origin, receiving, name)
    assert done.port.report.carried_fraction == 1.0 or receiving[2] < origin[2]
    done.write(tmp_path / "out", "me/larger")
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert (config["model_name"], config["name"]) == ("me/larger", "mine")
    assert config["hidden_size"] == receiving[1]
    host = load(*receiving)
    adapters.init(host.model)
    host.model.load_adapter(str(tmp_path / "out"), use_safetensors=True, set_active=True)
    held = dict(host.model.named_parameters())
    written = load_file(tmp_path / "out/adapter.safetensors")
    assert written and all(torch.equal(held[key], value) for key, value in written.items())


def test_a_bottleneck_stays_as_wide_as_it_was(ported):
    done = ported(("bert", 32, 2, 4), ("bert", 64, 2, 4))
    assert done.spec.settings["bottleneck"] == 8 and "reduction_factor" not in done.spec.settings
    assert done.port.report.filled_fraction < 1


def test_layers_that_are_left_out_stay_without(load, make_host, tmp_path):
    host = load("bert", 32, 4, 4)
    write_plain(tmp_path / "in", host, "adapter")
    config = json.loads((tmp_path / "in/adapter_config.json").read_text())
    config["config"]["leave_out"] = [3]
    (tmp_path / "in/adapter_config.json").write_text(json.dumps(config))
    weights = torch.load(tmp_path / "in/pytorch_adapter.bin", weights_only=True)
    torch.save({key: value for key, value in weights.items() if ".layer.3." not in key},
               tmp_path / "in/pytorch_adapter.bin")
    spec = make_host("bert", 32, 4, 4)
    assert port_folder(read_folder(tmp_path / "in"), spec, make_host("bert", 32, 2, 4)
                       ).spec.settings["leave_out"] == [1]


# ---- a LoRA in the other library


def _scores(host, model, values=None):
    scorer = Scorer(host, TASK)
    scorer.model = model
    return scorer.logits(scorer.fresh_head(0), IDS, torch.ones_like(IDS))


@pytest.mark.parametrize("family", ["bert", "llama", "t5", "bart", "qwen3"])
def test_a_lora_computes_the_same_in_the_other_library(load, make_host, tmp_path, family):
    host, spec = load(family), make_host(family)
    theirs = _scores(host, write_plain(tmp_path / "adapters", host, "lora"))
    found = in_library(read_folder(tmp_path / "adapters"), spec.shape, "peft")
    port_folder(found, spec, spec).write(tmp_path / "peft", "me/base")
    model = PeftModel.from_pretrained(load(family).model, tmp_path / "peft")
    assert torch.allclose(_scores(host, model.base_model.model), theirs, atol=1e-5)

    back = in_library(read_folder(tmp_path / "peft"), spec.shape, "adapters")
    port_folder(back, spec, spec).write(tmp_path / "back", "me/base")
    again = load(family)
    adapters.init(again.model)
    again.model.load_adapter(str(tmp_path / "back"), use_safetensors=True, set_active=True)
    assert torch.allclose(_scores(again, again.model.eval()), theirs, atol=1e-5)
    before = torch.load(tmp_path / "adapters/pytorch_adapter.bin", weights_only=True)
    after = load_file(tmp_path / "back/adapter.safetensors")
    assert before.keys() == {key.replace(".module.", ".mine.") for key in after}
    assert all(torch.equal(before[key.replace(".module.", ".mine.")], value) for key, value in after.items())


@pytest.mark.parametrize(("name", "family", "settings", "said"), [
    ("lora", "llama", {}, "has a pair beside attention_out of decoder layer 0, and adapters has them beside"),
    ("lora", "gpt2", {}, "query, key and value in one matrix"),
    ("lora", "opt", {}, "adapters has no opt hosts"),
    ("dora", "llama", {}, "has use_dora=True, and adapters has no such setting"),
    ("ia3", "llama", {}, "a LoRA alone can change its library, and .* holds a module of IA3Config"),
    ("lora", "llama", {"sites": ["query", "key"], "rank_pattern": {"q_proj": 2}}, "several ranks or scales"),
    ("lora", "llama", {"sites": ["query"], "layers_to_transform": [0]}, "has none beside query of decoder"),
])
def test_what_the_other_library_lacks_is_one_sentence(
        load, make_host, tmp_path, name, family, settings, said):
    peft_methods.write_plain(tmp_path / "in", load(family), name, **settings)
    with pytest.raises(UserError, match=said):
        in_library(read_folder(tmp_path / "in"), make_host(family).shape, "adapters")


@pytest.mark.parametrize("name", ["adapter", "ia3", "mam"])
def test_a_module_of_adapters_that_is_no_lora_stays_there(load, make_host, tmp_path, name):
    write_plain(tmp_path / "in", load("bert"), name)
    with pytest.raises(UserError, match="a LoRA alone can change its library"):
        in_library(read_folder(tmp_path / "in"), make_host("bert").shape, "peft")


def test_the_command_ports_a_folder_of_adapters_and_changes_its_library(load, make_host, tmp_path, capsys):
    spec, wide = make_host("llama", 32, 2, 4), make_host("llama", 64, 3, 8)
    write_plain(tmp_path / "in", load("llama", 32, 2, 4), "lora")
    words = [str(tmp_path / "in"), "--from", spec.source, "--to", wide.source, "--strategy", "pad"]
    assert main([*words, "--out", str(tmp_path / "same")]) == 0
    assert main([*words, "--out", str(tmp_path / "other"), "--format", "peft"]) == 0
    assert (tmp_path / "same/adapter.safetensors").is_file()
    assert "library_name: adapters" in (tmp_path / "same/README.md").read_text()
    assert (tmp_path / "other/adapter_model.safetensors").is_file()
    assert "--format peft" in (tmp_path / "other/README.md").read_text()
    assert main([*words, "--out", str(tmp_path / "merged"), "--merge"]) == 2
    assert "can be turned into one of peft" in capsys.readouterr().err
    assert main([*words, "--out", str(tmp_path / "merged"), "--via", "lora"]) == 2
    assert not (tmp_path / "merged").exists()


# ---- folders from elsewhere


@pytest.fixture
def folder(load, tmp_path):
    write_plain(tmp_path / "in", load("bert"), "compacter")
    return tmp_path / "in"


def _change(folder, **values):
    config = json.loads((folder / "adapter_config.json").read_text())
    inside = {key: values.pop(key) for key in list(values) if key not in config}
    (folder / "adapter_config.json").write_text(json.dumps(config | values | {
        "config": {**config["config"], **inside} if "config" not in values else values["config"]}))


def _drop(folder, part):
    weights = torch.load(folder / "pytorch_adapter.bin", weights_only=True)
    torch.save({key: value for key, value in weights.items() if part not in key},
               folder / "pytorch_adapter.bin")


@pytest.mark.parametrize(("harm", "said"), [
    (lambda f: (f / "pytorch_adapter.bin").unlink(), "holds no adapter.safetensors"),
    (lambda f: (f / "pytorch_adapter.bin").write_bytes(b"x" * 100), "refused by torch's restricted loader"),
    (lambda f: save_file({"a": torch.ones(2)}, f / "adapter.safetensors"), "no place is known"),
    (lambda f: _change(f, model_name=3), "model_name must be text"),
    (lambda f: _change(f, hidden_size=64), "hidden_size is 64, and the base's is 32: it was made on another"),
    (lambda f: _change(f, model_type="gpt2"), "model_type is gpt2, and the base's is bert"),
    (lambda f: _change(f, config={"architecture": "magic"}), "has no architecture 'magic'"),
    (lambda f: _change(f, config={"architecture": "union", "configs": 3}), "must be a list of the methods"),
    (lambda f: _change(f, magic=True), "knows no setting 'magic' of BnConfig"),
    (lambda f: _change(f, phm_dim="four"), "phm_dim cannot be 'four'"),
    (lambda f: _change(f, reduction_factor={"default": 4}), "bottlenecks of unequal sizes"),
    (lambda f: _change(f, reduction_factor=0), "must be above 0"),
    (lambda f: _change(f, stochastic_depth=0.5), "stochastic_depth=0.5 cannot be ported"),
    (lambda f: _change(f, config={}), "mh_adapter"),
    (lambda f: _drop(f, "phm_rule"), "lacks shared_parameters.mine.phm_rule"),
    (lambda f: _drop(f, "adapter_up.b"), "has no counterpart"),
])
def test_a_damaged_or_hostile_folder_is_one_sentence(folder, make_host, harm, said):
    harm(folder)
    host = make_host("bert")
    with pytest.raises(UserError, match=said) as error:
        port_folder(read_folder(folder), host, host)
    assert "\n" not in str(error.value)


def _dictionaries(value):
    """Those in a configuration that hold something, at any depth."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return ([value] if isinstance(value, dict) and value else []) + [
        found for one in inside for found in _dictionaries(one)]


@pytest.mark.parametrize("count", [pytest.param(100, marks=pytest.mark.system),
                                   pytest.param(1000, marks=pytest.mark.full)])
def test_no_folder_makes_it_fall_over(load, make_host, count, tmp_path):
    """Bytes and settings changed at random: a port, or one sentence."""
    folders = []
    for name in ("adapter", "lora", "mam", "compacter"):
        write_plain(tmp_path / name, load("bert"), name)
        config = json.loads((tmp_path / name / "adapter_config.json").read_text())
        weights = (tmp_path / name / "pytorch_adapter.bin").read_bytes()
        folders.append((tmp_path / name, weights, config))
    draw, host, ends = random.Random(0), make_host("bert"), Counter()
    for number in range(count):
        folder, weights, config = draw.choice(folders)
        damaged = bytearray(weights)
        for _ in range(draw.choice([0, 0, 0, 1, 4])):
            damaged[draw.randrange(draw.choice([40, 600, len(damaged)]))] = draw.randrange(256)
        if draw.random() < 0.1:
            damaged = damaged[:draw.randrange(len(damaged))]
        values = json.loads(json.dumps(config))
        for _ in range(draw.randrange(3)):
            part = draw.choice(_dictionaries(values))
            part[draw.choice(list(part))] = draw.choice(
                [None, -1, 0, 1e308, "../../etc", [], {}, [[]], True, "x" * 1000, {"a": {"b": []}}, 2**70])
        (folder / "pytorch_adapter.bin").write_bytes(bytes(damaged))
        (folder / "adapter_config.json").write_text(json.dumps(values))
        try:
            done = port_folder(read_folder(folder), host, host)
            done.write(tmp_path / f"out{number}", "base")
            ends["ported"] += 1
        except UserError as error:
            assert len(str(error)) < 3000
            ends["refused"] += 1
    assert min(ends["ported"], ends["refused"]) > count // 20
