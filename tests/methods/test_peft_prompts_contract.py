"""What peft's prompts owe on every family: the library's own numbers, in folders and in stacks."""

import json
from dataclasses import replace

import peft
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from portability.core.architectures import FAMILIES, Slot
from portability.core.errors import UserError
from portability.core.specs import MethodSpec
from portability.data.sampling import Batch
from portability.methods import attach
from portability.methods.adapters_backend import prepare
from portability.methods.files import module_of, read_folder
from portability.methods.module import equal
from portability.methods.peft_prompts import WITHOUT_CACHE
from portability.porting.adapter import port_folder
from portability.tasks.classification import Scorer
from portability.tasks.members import member_map, one_at_a_time
from portability.tasks.readers import answer_scores, greedy
from support.tiny import TASK, noisy

pytestmark = pytest.mark.filterwarnings("ignore")
IDS = torch.randint(3, 20, (4, 7), generator=torch.Generator().manual_seed(0))
REAL = torch.ones_like(IDS)
REAL[1, 5:] = 0
CONFIGS = {"prompt": "PromptTuningConfig", "prefix": "PrefixTuningConfig"}
EVERY = [(kind, family) for kind in CONFIGS for family in FAMILIES
         if kind == "prompt" or family not in WITHOUT_CACHE]
FEW = [(kind, family) for kind in CONFIGS for family in ("llama", "gpt2", "qwen3", "bert", "t5", "bart")]
ANSWERS = torch.randint(3, 20, (4, 4), generator=torch.Generator().manual_seed(1))


def spec(kind, **settings):
    return MethodSpec(kind, "peft", CONFIGS[kind], {"num_virtual_tokens": 5, **settings}, 1e-2)


def plain(folder, host, kind):
    """A folder that peft alone wrote."""
    task = "FEATURE_EXTRACTION" if host.scoring == "head" else "CAUSAL_LM"
    task = "SEQ_2_SEQ_LM" if FAMILIES[host.family].seq2seq else task
    unread = {"token_dim": 32, "num_layers": 2, "num_attention_heads": 4}  # by peft of a distilbert
    sizes = unread if host.family == "distilbert" else {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = peft.get_peft_model(host.model, getattr(peft, CONFIGS[kind])(
            num_virtual_tokens=5, task_type=task, **sizes))
        for parameter in made.prompt_encoder.parameters():
            parameter.data = torch.randn_like(parameter)
    made.eval().save_pretrained(folder)


def peft_logits(host, model):
    """What peft's own class of model says of the texts."""
    scorer = Scorer(host, TASK)
    if FAMILIES[host.family].seq2seq:
        return peft_answers(host, model, ANSWERS[:, :1])[:, 0]
    with torch.no_grad():
        out = model(input_ids=IDS, attention_mask=REAL)
        if host.scoring == "label":
            return out.logits[torch.arange(4), REAL.sum(1) - 1 - IDS.shape[1]]
        states = out.last_hidden_state[:, -IDS.shape[1]:] * REAL[..., None]
        head = scorer.fresh_head(0)
        return states.sum(1) / REAL.sum(1, keepdim=True) @ head["head.weight"].T


def peft_answers(host, model, answers):
    """Logits that peft's own class of model guesses each token of an answer from."""
    start = torch.full_like(answers[:, :1], host.model.config.decoder_start_token_id)
    with torch.no_grad():
        return model(input_ids=IDS, attention_mask=REAL,
                     decoder_input_ids=torch.cat([start, answers[:, :-1]], 1)).logits


def our_answers(host, values, ids, real, answers):
    """The same by the path of studies."""
    rows = Batch(ids, torch.ones_like(ids) if real is None else real, torch.full((len(ids),), 7), answers,
                 torch.ones_like(answers))
    with torch.no_grad():
        return torch.func.functional_call(Scorer(host, TASK), values, ("answer_logits", rows),
                                          tie_weights=False)


@pytest.mark.parametrize("layers", [2, 3, 4])
@pytest.mark.parametrize("family", ["t5", "bart"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_a_decoder_reads_what_peft_gives_it(load, tmp_path, kind, family, layers):
    """Of any depth, over several tokens."""
    size = family, 32, layers, 4
    plain(tmp_path / "in", load(*size), kind)
    theirs = peft_answers(load(*size), PeftModel.from_pretrained(load(*size).model, tmp_path / "in"), ANSWERS)
    found, host = read_folder(tmp_path / "in"), load(*size)
    values = attach(host, found.spec).to_parameters(module_of(found, host.spec.shape))
    ours = our_answers(host, {f"model.{key}": value for key, value in values.items()}, IDS, REAL, ANSWERS)
    assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize(("kind", "family"), EVERY)
def test_a_folder_comes_in_and_goes_out_unchanged_and_means_what_it_means_to_peft(
        load, tmp_path, kind, family):
    plain(tmp_path / "in", load(family), kind)
    theirs = peft_logits(load(family), PeftModel.from_pretrained(load(family).model, tmp_path / "in"))
    found, host = read_folder(tmp_path / "in"), load(family)
    attached = attach(host, found.spec)
    values = attached.to_parameters(module_of(found, host.spec.shape))
    scorer = Scorer(host, TASK)
    given = {f"model.{key}": value for key, value in values.items()} | scorer.fresh_head(0)
    ours = scorer.logits(given, IDS, REAL)
    assert torch.allclose(ours, theirs, atol=1e-5)
    with attached.disabled():
        assert (scorer.logits(scorer.fresh_head(0), IDS, REAL) - ours).abs().max() > 1e-4
    attached.save(values, tmp_path / "out", {"base_model_name_or_path": None})
    one, other = (load_file(tmp_path / side / "adapter_model.safetensors") for side in ("in", "out"))
    assert one.keys() == other.keys() == {"prompt_embeddings"}
    assert torch.equal(one["prompt_embeddings"], other["prompt_embeddings"])
    one, other = (json.loads((tmp_path / side / "adapter_config.json").read_text()) for side in ("in", "out"))
    differs = {key for key in one if one[key] != other[key]}
    assert differs <= {"base_model_name_or_path", "encoder_hidden_size"}
    again = PeftModel.from_pretrained(load(family).model, tmp_path / "out")
    assert torch.equal(peft_logits(host, again), theirs)


def test_each_slot_of_a_prefix_is_what_peft_hands_that_layer(load, tmp_path):
    plain(tmp_path / "in", load("llama"), "prefix")
    module = module_of(read_folder(tmp_path / "in"), load("llama").spec.shape)
    handed = PeftModel.from_pretrained(load("llama").model, tmp_path / "in").get_prompt(1)
    for layer, kept in enumerate(handed.layers):
        for role, theirs in (("prefix_key", kept.keys), ("prefix_value", kept.values)):
            ours = module.tensors[Slot("decoder", layer, "self_prefix", role)]
            assert torch.equal(ours.transpose(0, 1), theirs[0])  # (heads, prefix, head size)


@pytest.mark.parametrize(("kind", "family"), EVERY)
def test_a_prompt_keeps_its_contract(load, kind, family):
    host = load(family)
    scorer, own = Scorer(host, TASK), {key: value.clone() for key, value in host.model.state_dict().items()}
    head = scorer.fresh_head(0)
    bare = scorer.logits(head, IDS, REAL)
    attached = attach(host, spec(kind))
    fresh = attached.init_parameters(5)
    assert equal(attached.init_parameters(5), fresh)
    module = noisy(attached, 1)
    values = attached.to_parameters(module)
    assert equal(attached.to_state(values), module)
    with attached.disabled():
        assert torch.equal(scorer.logits(head, IDS, REAL), bare)
    given = {f"model.{key}": torch.stack([value, 0.5 * value]) for key, value in values.items()}
    given |= {key: value.expand(2, *value.shape) for key, value in head.items()}
    together = scorer.stacked_logits(given, IDS, REAL)
    for member in range(2):  # bit for bit what it is without the other
        alone = {key: value[member : member + 1] for key, value in given.items()}
        assert torch.equal(together[member], scorer.stacked_logits(alone, IDS, REAL)[0])
    scorer.each = one_at_a_time
    assert torch.allclose(together, scorer.stacked_logits(given, IDS, REAL), atol=1e-6)
    assert (together[0] - bare).abs().max() > 1e-4
    attached.detach()
    left = host.model.state_dict()
    assert left.keys() == own.keys() and all(torch.equal(left[key], own[key]) for key in own)
    assert torch.equal(scorer.logits(head, IDS, REAL), bare)


@pytest.mark.parametrize(("kind", "family"), FEW)
def test_prompts_train_in_stacks_on_hosts_as_studies_have_them(load, kind, family):
    host = prepare(load(family))
    bare = Scorer(host, TASK)
    attached = attach(host, spec(kind))
    values, head = attached.to_parameters(noisy(attached, 1)), bare.fresh_head(0)
    one = {f"model.{key}": value for key, value in values.items()} | head
    _, reason = member_map(bare, one, (IDS, REAL, torch.tensor(bare.label_ids * 2)))
    assert reason is None
    plain_host = load(family)
    there = attach(plain_host, spec(kind))
    assert torch.allclose(bare.logits(one, IDS, REAL), Scorer(plain_host, TASK).logits(one, IDS, REAL),
                          atol=1e-5)
    there.detach()


@pytest.mark.parametrize(("kind", "family"), [one for one in FEW if one[1] != "bert"])
def test_answers_are_written_with_the_prompt_before_them(load, kind, family):
    """A greedy answer is the one whose every token is the likeliest after all before it, read anew."""
    host = load(family)
    scorer, attached = Scorer(host, TASK), attach(host, spec(kind))
    given = {f"model.{key}": value[None] for key, value in attached.to_parameters(noisy(attached, 1)).items()}
    written = greedy(scorer, given, IDS, REAL, 4, [-1])[0]
    for row, real in zip(range(4), REAL.sum(1).tolist(), strict=True):
        text = IDS[row, :real]
        if FAMILIES[family].seq2seq:
            one = {key: value[0] for key, value in given.items()}
            read = our_answers(host, one, text[None], None, written[row : row + 1])
            assert torch.equal(read.argmax(-1)[0], written[row])
            continue
        for token in written[row]:
            likeliest = scorer.stacked_logits(given, text[None], torch.ones_like(text)[None])[0, 0].argmax()
            assert likeliest == token
            text = torch.cat([text, token[None]])
    ids = IDS if FAMILIES[family].seq2seq else torch.cat([IDS, written], 1)
    rows = Batch(ids, torch.ones_like(ids), torch.full((4,), 7), written, torch.ones_like(written))
    assert answer_scores(scorer, given, rows).shape == (1, 4)


def test_a_prompt_fits_another_host(load, make_host, tmp_path):
    for kind in CONFIGS:
        plain(tmp_path / kind, load("llama", 32, 2, 4), kind)
        done = port_folder(read_folder(tmp_path / kind), make_host("llama", 32, 2, 4),
                           make_host("llama", 48, 3, 4))
        assert done.port.report.carried_fraction == 1.0
        done.write(tmp_path / f"{kind}-out", "me/larger")
        PeftModel.from_pretrained(load("llama", 48, 3, 4).model, tmp_path / f"{kind}-out")
        before, after = (load_file(tmp_path / name / "adapter_model.safetensors")["prompt_embeddings"]
                         for name in (kind, f"{kind}-out"))
        if kind == "prompt":
            assert after.shape == (5, 48) and torch.equal(after[:, :32], before) and not after[:, 32:].any()
        else:
            narrow, wide = before.view(5, 2, 2, 2, 8), after.view(5, 3, 2, 2, 12)  # layer, key | value
            assert torch.equal(wide[:, 0, 1, :, :8], narrow[:, 0, 1]) and not wide[..., 8:].any()


@pytest.mark.parametrize(("settings", "family", "said"), [
    ({"config": "PromptEncoderConfig"}, "llama", "PromptTuningConfig and PrefixTuningConfig can be used"),
    ({"num_virtual_tokens": None}, "llama", "num_virtual_tokens must be a whole number from 1 on"),
    ({"num_virtual_tokens": 60}, "gpt2", "a text with its prompt of 60 tokens is too long for it"),
    ({"token_dim": 7}, "llama", "token_dim is 16 on host .*, and not 7; leave it out"),
    ({"prefix_projection": True}, "llama", "prefix_projection=True cannot be ported, only with false"),
    ({}, "distilbert", "which a distilbert host does not"),
])
def test_what_cannot_be_done_is_said(load, settings, family, said):
    host, config = load(family), settings.pop("config", CONFIGS["prefix"])
    given = MethodSpec("mine", "peft", config, {"num_virtual_tokens": 5, **settings}, 1e-2)
    with pytest.raises(UserError, match=said):
        drawn = attach(host, given).draw(0)
        Scorer(host, TASK).logits({f"model.{key}": value for key, value in drawn.items()}, IDS, REAL)


def test_a_prefix_needs_stacks_of_one_depth_as_peft_takes_it(load):
    host = load("t5")
    shape = replace(host.spec.shape, layers={"encoder": 2, "decoder": 3})
    with pytest.raises(UserError, match=r"takes the depth of the encoder of host .* \(2\) for .* which is 3"):
        attach(replace(host, spec=replace(host.spec, shape=shape)), spec("prefix"))


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_prompts_of_two_stacks_are_ported_between_widths(load, make_host, tmp_path, family):
    hosts = make_host(family, 32, 2, 4), make_host(family, 48, 2, 4)
    for kind in CONFIGS:
        plain(tmp_path / kind, load(family, 32, 2, 4), kind)
        done = port_folder(read_folder(tmp_path / kind), *hosts)
        assert done.port.report.carried_fraction == 1.0
        done.write(tmp_path / f"{kind}-out", "me/larger")
        PeftModel.from_pretrained(load(family, 48, 2, 4).model, tmp_path / f"{kind}-out")
    with pytest.raises(UserError, match="shared.0.2_prefix.prefix_key has no counterpart"):
        port_folder(read_folder(tmp_path / "prefix"), hosts[0], make_host(family, 32, 4, 4))


def test_a_text_as_start_is_read_by_the_hosts_own_tokenizer(load):
    host = load("llama")
    settings = {"prompt_tuning_init": "TEXT", "prompt_tuning_init_text": "film was great",
                "tokenizer_name_or_path": "nobody/nothing"}
    attached = attach(host, spec("prompt", **settings))
    (drawn,) = attached.draw(0).values()
    ids = host.tokenizer("film was great")["input_ids"]
    wanted = host.model.get_input_embeddings().weight[torch.tensor((ids * 5)[:5])]
    assert torch.equal(drawn, wanted)


def test_a_prompt_of_another_base_is_seen(load, tmp_path):
    for kind in CONFIGS:
        plain(tmp_path / kind, load("llama"), kind)
        with pytest.raises(UserError, match="made on another base"):
            module_of(read_folder(tmp_path / kind), load("llama", 48, 3, 4).spec.shape)
    config = json.loads((tmp_path / "prefix/adapter_config.json").read_text())
    (tmp_path / "prefix/adapter_config.json").write_text(json.dumps(config | {"prefix_projection": True}))
    save_file(load_file(tmp_path / "prefix/adapter_model.safetensors"),
              tmp_path / "prefix/adapter_model.safetensors")
    assert not read_folder(tmp_path / "prefix").spec.settings["prefix_projection"]
