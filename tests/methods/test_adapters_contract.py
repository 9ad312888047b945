"""What methods of adapters owe on hosts of the library's families: a sample in continuous integration, the
product in `full`."""

import json

import adapters
import pytest
import torch
from safetensors.torch import load_file

from portability.core.architectures import FAMILIES
from portability.core.errors import UserError
from portability.core.specs import MethodSpec
from portability.methods import attach
from portability.methods.adapters_places import BOTTLENECKS
from portability.methods.files import module_of, read_folder
from portability.methods.module import equal
from portability.tasks.classification import Scorer
from support.adapters_methods import EVERY, KINDS, REFT, method, refused, write_plain
from support.tiny import TASK, noisy

IDS = torch.randint(3, 20, (4, 7), generator=torch.Generator().manual_seed(0))
REAL = torch.ones_like(IDS)
REAL[1, 5:] = 0
each = pytest.mark.parametrize(("name", "family"), EVERY)
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def logits(host, model=None, values=None):
    """Of a host's scorer, with another model, or with values in place of the host's parameters."""
    scorer = Scorer(host, TASK)
    scorer.model = model or scorer.model
    return scorer.logits({f"model.{key}": value for key, value in (values or {}).items()}
                         | scorer.fresh_head(0), IDS, REAL)


@each
def test_a_method_keeps_its_contract(load, name, family):
    host = load(family)
    bare = logits(host)
    if refused(name, family):
        with pytest.raises(UserError, match=f"adapters has no {KINDS[name][0]} for {family} hosts; use a "
                           "method of peft, such as lora_peft"):
            attach(host, method(name))
    else:
        attached = attach(host, method(name))
        assert equal(attached.init_parameters(5), attached.init_parameters(5))
        module = noisy(attached, 1)
        values = attached.to_parameters(module)
        assert equal(attached.to_state(values), module)
        changed = logits(host, values=values)
        assert (changed - bare).abs().max() > 1e-6
        with attached.disabled():
            assert torch.allclose(logits(host), bare, atol=1e-5)
        attached.detach()
    assert torch.allclose(logits(host), bare, atol=1e-5)  # the library's layers compute what the host's do


@each
def test_a_folder_of_adapters_comes_in_and_goes_out_unchanged(load, tmp_path, name, family):
    """Folder -> module -> folder is bit-equal, and the library computes with it what this project does."""
    if refused(name, family):
        pytest.skip("the library refuses the method on this family, which the contract test shows")
    if name in REFT:
        pytest.skip("the library reads other masks there: test_reft.py")
    host = load(family)
    theirs = logits(host, write_plain(tmp_path / "in", host, name))
    found = read_folder(tmp_path / "in")
    again = load(family)
    attached = attach(again, found.spec)
    values = attached.to_parameters(module_of(found, again.spec.shape))
    assert torch.allclose(logits(again, values=values), theirs, atol=1e-5)
    attached.save(values, tmp_path / "out", {"base_model_name_or_path": "me/base", "name": "mine"})

    before = torch.load(tmp_path / "in/pytorch_adapter.bin", weights_only=True)
    after = load_file(tmp_path / "out/adapter.safetensors")
    assert all(torch.equal(before[key], value) for key, value in after.items())
    assert all("prefix_tuning" in key for key in before.keys() - after.keys())  # there once a layer
    one, other = (json.loads((tmp_path / side / "adapter_config.json").read_text()) for side in ("in", "out"))
    assert other == {**one, "model_name": "me/base"}

    alone = load(family)
    adapters.init(alone.model)
    loaded = alone.model.load_adapter(str(tmp_path / "out"), use_safetensors=True, set_active=True)
    assert loaded == "mine"
    assert torch.allclose(logits(alone, alone.model.eval()), theirs, atol=1e-5)


def test_the_files_type_and_the_librarys_own_safetensors_are_kept(load, tmp_path):
    host = load("bert")
    write_plain(tmp_path / "in", host, "adapter", pickle=False)
    found = read_folder(tmp_path / "in")
    attached = attach(load("bert"), found.spec)
    values = attached.to_parameters(module_of(found, host.spec.shape))
    attached.save(values, tmp_path / "out", {"name": "mine"}, torch.bfloat16)
    one, other = (load_file(tmp_path / side / "adapter.safetensors") for side in ("in", "out"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key].to(torch.bfloat16), other[key]) for key in one)


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - BOTTLENECKS.keys()))
def test_a_family_that_the_library_lacks_is_one_sentence(load, family):
    with pytest.raises(UserError, match=f"adapters has no {family} hosts.*; use a method of peft, such as"):
        attach(load(family), method("adapter"))


@pytest.mark.parametrize(("config", "settings", "said"), [
    ("LoReftConfig", {}, "dropout=0.05 is not supported, set it to 0"),
    ("LoReftConfig", {"r": 32, "dropout": 0.0}, "r must be from 1 to less than the width 32, got 32"),
    ("LoReftConfig", {"prefix_positions": 0, "dropout": 0.0}, "LoReftConfig edits no state"),
    ("DiReftConfig", {"dropout": 0.0}, "loads it as a NoReft; use LoReftConfig or NoReftConfig"),
    ("PromptTuningConfig", {}, "a prompt lengthens the texts"),
    ("DoRAConfig", {}, "with use_dora=True cannot be ported, only with use_dora=False: DoRA is of"),
    ("SeqBnConfig", {"inv_adapter": "nice", "inv_adapter_reduction_factor": 2}, "inv_adapter=nice cannot be"),
    ("SeqBnConfig", {"dropout": 0.1}, "dropout=0.1 is not supported, set it to 0"),
    ("SeqBnConfig", {"rank": 0.1}, "unexpected keyword argument 'rank'"),
    ("CompacterConfig", {"shared_phm_rule": False}, "shared_phm_rule=False cannot be ported"),
    ("MAMConfig", {"lora": {}}, "unknown setting of method 'mine' 'lora'; choose one of: adapter, prefix"),
    ("MAMConfig", {"adapter": {"bottleneck": 8, "dropout": 0.1}}, "dropout=0.1 is not supported"),
])
def test_settings_that_cannot_be_kept_are_refused_by_name(load, config, settings, said):
    with pytest.raises(UserError, match=said):
        attach(load("bert"), MethodSpec("mine", "adapters", config, settings, 1e-3))
