"""ReFT of adapters: the library's own numbers on every family, orthonormal rows, texts that are being
written."""

import json
from dataclasses import replace

import adapters
import pytest
import torch
from safetensors.torch import load_file, save_file

from portability.core.errors import UserError
from portability.core.specs import PortSpec
from portability.data.sampling import Batch
from portability.methods import attach
from portability.methods.adapters_backend import prepare
from portability.methods.adapters_places import BOTTLENECKS
from portability.methods.drawn import orthonormal
from portability.methods.files import module_of, read_folder
from portability.methods.module import ROTATION, equal
from portability.porting.adapter import port_folder
from portability.tasks.classification import Scorer
from portability.tasks.members import member_map
from portability.tasks.readers import greedy
from support.adapters_methods import REFT, method, write_plain
from support.tiny import TASK, noisy

pytestmark = pytest.mark.filterwarnings("ignore")
IDS = torch.randint(3, 20, (4, 7), generator=torch.Generator().manual_seed(0))
REAL = torch.ones_like(IDS)
REAL[1, 5:] = 0
ANSWERS = torch.randint(3, 20, (4, 4), generator=torch.Generator().manual_seed(1))
AVERAGE = PortSpec("pad", "pad", "average")
SEQ2SEQ = ("t5", "mt5", "bart")
FEW = ("t5", "bert", "roberta", "gpt2", "llama", "bart")
EVERY = [pytest.param(name, family, id=f"{name}-{family}",
                      marks=() if family in FEW or place % 3 == turn else pytest.mark.full)
         for place, family in enumerate(BOTTLENECKS) for turn, name in enumerate(REFT)
         if not (name == "loreft_ends" and family in SEQ2SEQ)]


def plain_logits(host, model):
    """What the library alone says of the texts, given masks of 1 and 0; of answers as long as the places that
    it edits, where a decoder writes them."""
    with torch.no_grad():
        if host.family in SEQ2SEQ:
            start = torch.full_like(ANSWERS[:, :1], model.config.decoder_start_token_id)
            return model(input_ids=IDS, attention_mask=REAL,
                         decoder_input_ids=torch.cat([start, ANSWERS[:, :-1]], 1)).logits
        out = model(input_ids=IDS, attention_mask=REAL)
        if host.scoring == "label":
            return out.logits[torch.arange(4), REAL.sum(1) - 1]
        states = (out.last_hidden_state * REAL[..., None]).sum(1) / REAL.sum(1, keepdim=True)
        return states @ Scorer(host, TASK).fresh_head(0)["head.weight"].T


def our_logits(host, values):
    """The same by the path of studies."""
    scorer = Scorer(host, TASK)
    given = {f"model.{key}": value for key, value in values.items()} | scorer.fresh_head(0)
    if host.family not in SEQ2SEQ:
        return scorer.logits(given, IDS, REAL)
    rows = Batch(IDS, REAL, REAL.sum(1), ANSWERS, torch.ones_like(ANSWERS))
    with torch.no_grad():
        return torch.func.functional_call(scorer, given, ("answer_logits", rows), tie_weights=False)


@pytest.mark.parametrize(("name", "family"), EVERY)
def test_a_folder_means_what_it_means_to_the_library(load, tmp_path, name, family):
    theirs = plain_logits(load(family), write_plain(tmp_path / "in", load(family), name))
    host, found = load(family), read_folder(tmp_path / "in")
    attached = attach(host, found.spec)
    module = module_of(found, host.spec.shape)
    values = attached.to_parameters(module)
    assert torch.allclose(our_logits(host, values), theirs, atol=1e-5)
    attached.save(values, tmp_path / "out", {"base_model_name_or_path": "me/base", "name": "mine"})

    before = torch.load(tmp_path / "in/pytorch_adapter.bin", weights_only=True)
    after = load_file(tmp_path / "out/adapter.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in after if "parametrizations" not in key)
    assert equal(module_of(read_folder(tmp_path / "out"), host.spec.shape), module)
    one, other = (json.loads((tmp_path / side / "adapter_config.json").read_text()) for side in ("in", "out"))
    assert other == {**one, "model_name": "me/base"}

    again = read_folder(tmp_path / "out")  # what we wrote comes back to the bit, the basis, too
    attached.save(attached.to_parameters(module_of(again, host.spec.shape)), tmp_path / "third",
                  {"name": "mine"})
    third = load_file(tmp_path / "third/adapter.safetensors")
    assert all(torch.equal(after[key], third[key]) for key in after)

    alone = load(family)
    adapters.init(alone.model)
    alone.model.load_adapter(str(tmp_path / "out"), use_safetensors=True, set_active=True)
    assert torch.allclose(plain_logits(alone, alone.model.eval()), theirs, atol=1e-5)


def test_the_rows_of_a_fresh_projection_are_the_librarys(load):
    host = load("llama")
    module = attach(host, method("loreft")).init_parameters(3)
    for slot, tensor in module.tensors.items():
        if slot.role == ROTATION:
            assert torch.allclose(tensor @ tensor.T, torch.eye(4), atol=1e-5)
    other = load("llama")
    adapters.init(other.model)
    torch.manual_seed(3)
    other.model.add_adapter("module", config=adapters.LoReftConfig(r=4, dropout=0.0, tied_weights=True))
    layer = other.model.model.layers[1].reft_layer.refts["module"].units[0]
    found = {slot.role: tensor for slot, tensor in module.tensors.items() if slot.layer == 1}
    assert torch.equal(found[ROTATION], layer.projection.weight.detach())
    assert torch.equal(found["source_weight"], layer.learned_source.weight.detach())


@pytest.mark.parametrize("name", REFT)
@pytest.mark.parametrize("family", FEW)
def test_members_stack_bit_for_bit_and_rows_stay_orthonormal_in_training(load, family, name):
    host = prepare(load(family))
    scorer, attached = Scorer(host, TASK), attach(host, method(name))
    head = scorer.fresh_head(0)
    members = [{f"model.{key}": value for key, value in attached.to_parameters(noisy(attached, seed)).items()}
               | head for seed in (1, 2)]
    rows = IDS, REAL, torch.tensor(scorer.label_ids * 2)
    scorer.each, reason = member_map(scorer, members[0], rows)
    assert reason is None

    def trained(starts):
        held = {key: torch.stack([one[key] for one in starts]).requires_grad_() for key in starts[0]}
        adam = torch.optim.AdamW(held.values(), lr=0.05, weight_decay=0.1)
        for _ in range(3):
            losses = scorer.each(scorer.loss, in_dims=(0, None, None, None))(held, *rows)
            losses.sum().backward()
            adam.step()
            adam.zero_grad()
        return {key: value.detach() for key, value in held.items()}

    both, alone = trained(members), trained(members[1:])
    assert all(torch.equal(both[key][1], alone[key][0]) for key in both)
    turned = [orthonormal(alone[key][0]) - orthonormal(members[1][key]) for key in both
              if key.endswith("original")]
    assert not turned or max(one.abs().max() for one in turned) > 1e-3
    own = {name: value for name, value in host.model.named_parameters() if name.endswith("original")}
    with torch.no_grad():
        for key, value in own.items():
            value.copy_(alone[f"model.{key}"][0])
            rows = host.model.get_submodule(key.partition(".parametrizations")[0]).weight
            assert torch.allclose(rows @ rows.T, torch.eye(4), atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3", "t5", "bart"])
def test_a_written_answer_is_the_one_that_is_likeliest_when_read(load, family):
    """The first tokens of a text are edited and no others, those that are being written among them."""
    host = load(family)
    scorer, attached = Scorer(host, TASK), attach(host, method("loreft"))
    values = {f"model.{key}": value for key, value in attached.to_parameters(noisy(attached, 1)).items()}
    short = REAL.clone()
    short[2, 2:] = 0  # the first answer's token is among the first three of the text
    written = greedy(scorer, {key: value[None] for key, value in values.items()}, IDS, short, 4, [-1])[0]
    for row, real in enumerate(short.sum(1).tolist()):
        text, answer = IDS[row, :real], written[row : row + 1]
        ids = text[None] if host.family in SEQ2SEQ else torch.cat([text, answer[0]])[None]
        rows = Batch(ids, torch.ones_like(ids), torch.tensor([real]), answer, torch.ones_like(answer))
        with torch.no_grad():
            logits = torch.func.functional_call(scorer, values, ("answer_logits", rows), tie_weights=False)
        assert torch.equal(logits.argmax(-1), answer)


def test_a_text_that_is_written_has_no_last_tokens(load):
    host = load("llama")
    scorer, attached = Scorer(host, TASK), attach(host, method("loreft_ends"))
    values = {f"model.{key}": value[None] for key, value in
              attached.to_parameters(noisy(attached, 1)).items()}
    with pytest.raises(UserError, match="still being written has no last states"):
        greedy(scorer, values, IDS, REAL, 4, [-1])


@pytest.mark.parametrize(("hidden", "said"), [(48, False), (16, True)])
def test_rows_are_orthonormal_on_another_host(load, make_host, tmp_path, hidden, said):
    """Filled up with zeros they stay so; cut, they are made so again, and the report says so."""
    write_plain(tmp_path / "in", load("llama", 32, 2, 4), "loreft")
    there = make_host("llama", hidden, 3, 4)
    done = port_folder(read_folder(tmp_path / "in"), make_host("llama", 32, 2, 4), there)
    before = module_of(read_folder(tmp_path / "in"), load("llama", 32, 2, 4).spec.shape)
    for slot, tensor in done.port.module.tensors.items():
        if slot.role == ROTATION:
            assert torch.allclose(tensor @ tensor.T, torch.eye(4), atol=1e-5)
            own = before.tensors[slot._replace(layer=[0, 0, 1][slot.layer])]
            wanted = torch.cat([own, torch.zeros(4, 16)], 1) if hidden == 48 else orthonormal(own[:, :16])
            assert torch.allclose(tensor, wanted, atol=1e-6)
    assert any("orthonormal rows again" in note for note in done.report.notes) == said
    done.write(tmp_path / "out", "me/other")
    alone = load("llama", hidden, 3, 4)
    adapters.init(alone.model)
    alone.model.load_adapter(str(tmp_path / "out"), use_safetensors=True, set_active=True)
    host = load("llama", hidden, 3, 4)
    attached = attach(host, done.spec)
    assert torch.allclose(our_logits(host, attached.to_parameters(done.port.module)),
                          plain_logits(alone, alone.model.eval()), atol=1e-5)


@pytest.mark.parametrize(("layers", "wanted"), [([1], [2, 3]), ([0, 1], [0, 1, 2, 3])])
def test_layers_without_a_unit_stay_without(load, make_host, tmp_path, layers, wanted):
    host = load("llama", 32, 2, 4)
    attached = attach(host, replace(method("loreft"), settings={"r": 4, "dropout": 0.0, "layers": layers}))
    values = attached.to_parameters(noisy(attached, 1))
    attached.save(values, tmp_path / "in", {"name": "mine"})
    done = port_folder(read_folder(tmp_path / "in"), make_host("llama", 32, 2, 4),
                       make_host("llama", 32, 4, 4))
    assert sorted({slot.layer for slot in done.port.module.tensors}) == wanted


def test_what_cannot_be_carried_is_said(load, make_host, tmp_path):
    write_plain(tmp_path / "in", load("llama", 32, 4, 4), "loreft")
    hosts = make_host("llama", 32, 4, 4), make_host("llama", 32, 2, 4)
    with pytest.raises(UserError, match="no mean of several layers' rotation is defined"):
        port_folder(read_folder(tmp_path / "in"), *hosts, how=AVERAGE)
    tensors = torch.load(tmp_path / "in/pytorch_adapter.bin", weights_only=True)
    (tmp_path / "in/pytorch_adapter.bin").unlink()
    key = next(key for key in tensors if key.endswith("original"))
    for changed, words in (
            ({key: torch.zeros(4, 32)}, "rows of the projection are not orthonormal"),
            ({key: torch.zeros(4, 31)}, r"are no turn \(rank, hidden\) and basis")):
        save_file(tensors | changed, tmp_path / "in/adapter.safetensors")
        with pytest.raises(UserError, match=words):
            module_of(read_folder(tmp_path / "in"), hosts[0].shape)
    save_file({one.replace("units.0.learned", "units.9.learned"): value for one, value in tensors.items()},
              tmp_path / "in/adapter.safetensors")
    with pytest.raises(UserError, match="no meaning is known for parameter .*units.9"):
        module_of(read_folder(tmp_path / "in"), hosts[0].shape)
    save_file({one: value for one, value in tensors.items() if not one.endswith("base")},
              tmp_path / "in/adapter.safetensors")
    with pytest.raises(UserError, match="basis"):
        module_of(read_folder(tmp_path / "in"), hosts[0].shape)
