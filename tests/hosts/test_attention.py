"""Masks that are handed to hosts, against those that the libraries make of 1 and 0; and bf16 under vmap."""

import math

import pytest
import torch
from torch.func import functional_call
from torch.overrides import TorchFunctionMode
from transformers import AutoModel

from portability.data.sampling import Batch
from portability.hosts import attention
from portability.hosts import host as hosts
from portability.hosts.attention import causal_mask, padding_mask, text_mask
from portability.hosts.host import load_host
from portability.methods import attach
from portability.porting import similarity
from portability.tasks.classification import Scorer
from portability.tasks.readers import answer_scores, greedy
from support.decoding import STOP
from support.decoding import Bench as Answers
from support.lora import method
from support.tiny import FAMILIES, METHODS, TASK, noisy

ALL = [*METHODS.values(), method()]
REAL = torch.tensor([[1] * 7, [1] * 4 + [0] * 3, [1] + [0] * 6])
IDS = (torch.arange(21).reshape(3, 7) % 17 + 7) * REAL
every_family = pytest.mark.parametrize("family", FAMILIES)
every_method = pytest.mark.parametrize("kind", ALL, ids=lambda spec: spec.name)


def test_masks_by_hand():
    real, no = torch.tensor([[1, 1, 0]]), attention.LEAST
    assert padding_mask(real).tolist() == [[[[0, 0, no]]]]
    assert causal_mask(real).tolist() == [[[[0, no, no], [0, 0, no], [0, 0, no]]]]
    assert torch.equal(padding_mask(real.float()), padding_mask(real))


def test_the_least_number_is_finite_in_every_format_and_hides_a_token():
    assert all(math.isfinite(torch.tensor(attention.LEAST).to(kind))
               for kind in (torch.bfloat16, torch.float32))
    scores = torch.full((4,), 1e4) + torch.tensor([0, attention.LEAST, 0, attention.LEAST])
    assert scores.softmax(0).tolist() == [0.5, 0, 0.5, 0]


@every_family
@pytest.mark.parametrize("ready", [False, True])
def test_transformers_5_is_handed_ready_masks_alone(monkeypatch, family, ready):
    monkeypatch.setattr(attention, "TAKES_READY", ready)
    mask, causal = text_mask(family, REAL), family in ("gpt2", "llama")
    assert mask.dtype == torch.float32
    if causal or ready:
        assert torch.equal(mask, causal_mask(REAL) if causal else padding_mask(REAL))
    else:
        assert torch.equal(mask, (REAL if family == "t5" else REAL[:, None]).float())


class Noted(TorchFunctionMode):
    """Notes steps that look at a tensor's values."""

    def __init__(self):
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        if name in ("all", "any", "__bool__", "item", "nonzero", "is_nonzero"):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


@every_family
@pytest.mark.parametrize("kind", ["eager", "sdpa"])
def test_no_mask_looks_at_its_values(make_host, monkeypatch, family, kind):
    if not hosts.FAMILIES[family].sdpa and kind == "sdpa":
        pytest.skip("transformers has no such attention for it")
    monkeypatch.setattr(hosts, "attention_of", lambda family, device: kind)
    host = load_host(make_host(family))
    with Noted() as noted:
        Scorer(host, TASK)("label_logits", IDS, REAL)
        similarity._states(host, IDS, REAL)
        if host.scoring == "label":
            answers = Answers(attach(host, METHODS["prefix"]))
            answers.reader("follow", REAL, 1, IDS[:, 0], answers.reader("begin", IDS, REAL)[1])
            answers.reader("answer_logits", Batch(IDS, REAL, REAL.sum(1), IDS[:, :2], REAL[:, :2]))
    assert not noted.seen


class Scored:
    """A noisy member of a method on a host, with its head."""

    def __init__(self, host, kind):
        self.attached = attach(host, kind)
        self.scorer, state = Scorer(host, TASK), noisy(self.attached, 3)
        self.own = {f"model.{name}": value for name, value in self.attached.to_parameters(state).items()}
        self.own |= self.scorer.fresh_head(3)

    def __call__(self, ids, real):
        with torch.no_grad():
            return functional_call(self.scorer, self.own, ("label_logits", ids, real), tie_weights=False)

    def plain(self, ids, real):
        """The library's own call with its mask of 1 and 0."""
        model, own = self.scorer.model, self.own.items()
        given = {name.removeprefix("model."): value for name, value in own if name.startswith("model.")}

        def call(**inputs):
            with torch.no_grad():
                inputs |= {"input_ids": ids, "attention_mask": real}
                return functional_call(model, given, (), inputs, tie_weights=False)

        if self.scorer.family == "t5":
            return call(decoder_input_ids=torch.zeros_like(ids[:, :1])).logits[:, 0]
        if self.scorer.has_head:
            states, weights = call().last_hidden_state, real[..., None].float()
            pooled = (states * weights).sum(1) / weights.sum(1)
            return pooled @ self.own["head.weight"].T + self.own["head.bias"]
        return call().logits[torch.arange(len(ids)), real.sum(1) - 1]


@every_family
@every_method
def test_logits_are_those_of_the_library_with_its_own_mask(load, family, kind):
    scored = Scored(load(family), kind)
    ours = scored(IDS, REAL)
    assert torch.allclose(ours, scored.plain(IDS, REAL), atol=1e-5, rtol=0)
    assert not torch.allclose(ours, scored.plain(IDS, torch.ones_like(REAL)), atol=1e-4)  # padding would show


@every_family
@every_method
def test_padding_changes_nothing(load, family, kind):
    scored = Scored(load(family), kind)
    together = scored(IDS, REAL)
    for row, length in enumerate(REAL.sum(1).tolist()):
        # of tokens that are no padding
        wide = torch.nn.functional.pad(IDS[row : row + 1, :length], (0, 20), value=5)
        real = (torch.arange(length + 20) < length).long()[None]
        alone = scored(IDS[row : row + 1, :length], REAL[row : row + 1, :length])
        assert torch.allclose(alone, together[row : row + 1], atol=1e-5, rtol=0)
        assert torch.allclose(alone, scored(wide, real), atol=1e-5, rtol=0)


@every_family
def test_a_prefix_is_seen_by_every_token(load, family):
    scored = Scored(load(family), METHODS["prefix"])
    one = scored(IDS, REAL)
    scored.own = {name: value if name.startswith("head.") else 2 * value
                  for name, value in scored.own.items()}
    assert ((scored(IDS, REAL) - one).abs().amax(-1) > 1e-4).all()


@pytest.mark.parametrize("family", ["t5", "gpt2", "llama"])
@every_method
def test_answers_in_bf16_are_as_near_to_fp32_as_those_of_eager_attention(make_host, monkeypatch, family,
                                                                         kind):
    def found(precision, wanted):
        monkeypatch.setattr(hosts, "attention_of", lambda family, device: wanted)
        of = Answers(attach(load_host(make_host(family), precision=precision), kind))
        rows = Batch(of.ids, of.mask, of.lengths.clamp(min=2) - 1, of.ids[:, :2], of.mask[:, :2])
        greedy(of.reader, of.stacked(0, 1), of.ids, of.mask, 3, [STOP])
        return answer_scores(of.reader, of.stacked(0, 1), rows)

    full, eager = found("fp32", "eager"), found("bf16", "eager")
    sdpa = found("bf16", "sdpa") if hosts.FAMILIES[family].sdpa else eager
    wrong = [(one - full).abs().mean() for one in (eager, sdpa)]
    assert 0 < wrong[1] < 1.5 * wrong[0] < 0.3


def test_states_of_hosts_are_those_of_the_library_with_its_own_mask(make_host):
    for family in ("bert", "roberta"):
        host = load_host(make_host(family))
        plain = AutoModel.from_pretrained(make_host(family).source, attn_implementation="eager",
                                          dtype=torch.float32)
        weights = REAL[..., None].float()
        with torch.no_grad():
            layers = plain(input_ids=IDS, attention_mask=REAL, output_hidden_states=True).hidden_states[1:]
        wanted = torch.stack([(layer * weights).sum(1) / weights.sum(1) for layer in layers])
        assert torch.allclose(similarity._states(host, IDS, REAL)["text"], wanted, atol=1e-5)
