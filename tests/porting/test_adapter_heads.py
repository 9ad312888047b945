"""Heads that peft keeps beside an adapter: carried where coordinates stay, else said."""

import peft
import pytest
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file, save_file

from portability.core.errors import UserError
from portability.core.specs import PortSpec
from portability.methods.files import module_of, read_folder
from portability.methods.peft_backend import WEIGHTS
from portability.porting.adapter import port_folder
from portability.porting.convert import to_lora

pytestmark = pytest.mark.filterwarnings("ignore")
IDS = torch.randint(3, 20, (4, 7), generator=torch.Generator().manual_seed(0))
TARGETS = {"llama": ["q_proj"], "distilbert": ["q_lin"]}
HEADS = {"bert": ["classifier"], "roberta": ["classifier"], "distilbert": ["pre_classifier", "classifier"],
         "llama": ["score"]}


def classifier(host):
    """A host with a fresh head of three classes."""
    torch.manual_seed(1)
    kind = transformers.AutoModelForSequenceClassification
    return kind.from_pretrained(host.source, num_labels=3, pad_token_id=0).eval()


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits


def trained(folder, host, family):
    """A folder of peft alone with a LoRA and a head that is not the fresh one; and what it says."""
    more = {"modules_to_save": ["pre_classifier"]} if family == "distilbert" else {}
    made = peft.get_peft_model(classifier(host), peft.LoraConfig(
        r=4, task_type="SEQ_CLS", target_modules=TARGETS.get(family, ["query"]), **more))
    for parameter in made.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    made.eval().save_pretrained(folder)
    return logits(made)


@pytest.mark.parametrize("family", HEADS)
def test_a_head_goes_along_between_hosts_of_one_width(make_host, tmp_path, family):
    host = make_host(family, 32, 2, 4)
    said = trained(tmp_path / "in", host, family)
    done = port_folder(read_folder(tmp_path / "in"), host, host)
    done.write(tmp_path / "same", host.source)
    assert torch.equal(logits(PeftModel.from_pretrained(classifier(host), tmp_path / "same")), said)
    before, after = (load_file(tmp_path / side / WEIGHTS) for side in ("in", "same"))
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    assert {key.split(".")[2] for key in done.head} == set(HEADS[family])
    assert any("carried as it is" in note for note in done.report.notes)

    deeper = make_host(family, 32, 4, 4)
    port_folder(read_folder(tmp_path / "in"), host, deeper).write(tmp_path / "deeper", deeper.source)
    found = PeftModel.from_pretrained(classifier(deeper), tmp_path / "deeper")
    named = dict(found.named_parameters())
    for key, value in done.head.items():
        module, _, leaf = key.removeprefix("base_model.model.").partition(".")
        assert torch.equal(named[f"base_model.model.{module}.modules_to_save.default.{leaf}"], value)


@pytest.mark.parametrize(("to", "strategy"), [(("bert", 48, 2, 4), "pad"), (("roberta", 32, 2, 4), "pad"),
                                              (("bert", 32, 2, 4), "rebasin")])
def test_a_head_of_other_coordinates_is_left_out_only_when_asked(make_host, tmp_path, to, strategy):
    host = make_host("bert", 32, 2, 4)
    trained(tmp_path / "in", host, "bert")
    adapter, there = read_folder(tmp_path / "in"), make_host(*to)
    with pytest.raises(UserError, match=r"\(classifier.bias, classifier.weight\) reads the coordinates of"):
        port_folder(adapter, host, there, PortSpec(strategy, strategy, "stretch"))
    done = port_folder(adapter, host, there, PortSpec(strategy, strategy, "stretch", partial=True))
    assert not done.head and any("is left out" in note for note in done.report.notes)
    done.write(tmp_path / "out", "me/other")
    assert read_folder(tmp_path / "out").config["modules_to_save"] is None
    assert not any("classifier" in key for key in load_file(tmp_path / "out" / WEIGHTS))


def test_where_a_head_cannot_go_it_is_said(make_host, tmp_path):
    host = make_host("bert", 32, 2, 4)
    trained(tmp_path / "in", host, "bert")
    adapter = read_folder(tmp_path / "in")
    with pytest.raises(UserError, match="whole matrix of the host"):
        module_of(adapter, host.shape)
    with pytest.raises(UserError, match="modules_to_save=.* cannot be ported"):
        to_lora(adapter, host, 4)
    with pytest.raises(UserError, match="a merged host is written without a head"):
        port_folder(adapter, host, host).save(tmp_path / "merged", merge=True)
    assert not (tmp_path / "merged").exists()
    values = load_file(tmp_path / "in" / WEIGHTS)
    save_file({key: value for key, value in values.items() if "classifier" not in key},
              tmp_path / "in" / WEIGHTS)
    with pytest.raises(UserError, match=r"holds none of the modules .* it saves \(classifier, score\)"):
        port_folder(read_folder(tmp_path / "in"), host, host)
