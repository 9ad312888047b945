"""The protocol of the second paper (Zhong et al. 2024: accumulated gradients, warm-up and linear decay, the
mean over a batch's tokens), as `protocol=paper` composes it, update by update against a plain loop of
transformers and peft."""

import re
from dataclasses import replace

import numpy as np
import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from portability.core.specs import AnswerSpec, MethodSpec
from portability.data.examples import Example
from portability.data.sampling import BatchSampler
from portability.hosts.host import load_host
from portability.methods import attach
from portability.tasks.generation import AnswerScorer, Generation
from portability.training.trainer import Member, Trainer
from support.answers import rows
from support.studies import study

LORA = {"r": 4, "lora_alpha": 8}
UPDATES = 6
TASK = AnswerSpec("exact_match", normaliser="squad", likelihood=None, new_tokens=4, max_length=24)


@pytest.fixture(scope="module")
def paper():
    """The preset, of six updates."""
    got = study("+sweep=extract", "protocol=paper", f"grid.budgets=[{UPDATES}]").grid.train
    assert (got.batch_size, got.updates, got.warmup, got.schedule) == (64, UPDATES, 2, "linear")
    return got


@pytest.fixture
def case(make_host):
    """A Llama, its training set of prompts with answers, and the batches of a seed."""
    host = load_host(make_host("llama", 32, 2, 4, 1))
    examples = [Example(row["prompt"], row["answer"]) for row in rows("written", 192, 0)]
    encoded = Generation(TASK)._encoded(examples, host.tokenizer, "llama", "refuse")
    return host, encoded, BatchSampler(encoded, 64, 2, "data")


def spec():
    return MethodSpec("lora", "peft", "LoraConfig", {"sites": ["query", "value", "ffn_up"], **LORA}, 2e-2)


def trained(case, protocol, passes):
    """The iterate after each update, of the second of two members, by its name."""
    host, encoded, schedule = case
    attached, scorer = attach(host, spec()), AnswerScorer(host, TASK)
    starts = [{f"model.{name}": value for name, value in attached.to_parameters(
        attached.init_parameters(seed)).items()} for seed in (1, 2)]
    stack = Trainer(scorer, [Member(start, seed, 2e-2) for start, seed in zip(starts, (1, 2), strict=True)],
                    protocol, passes)
    found = [stack.bank.member(stack.bank.theta, 1)]
    for step in range(protocol.updates):
        stack.update(step, schedule, encoded)
        found.append(stack.bank.member(stack.bank.theta, 1))
    attached.detach()
    return found, stack.losses[:, 1]


def named(name):
    """A LoRA's parameter without the beginnings and the module's name that are each side's own."""
    return re.sub(r"^.*?(layers\.)", r"\1", re.sub(r"(lora_[AB])\.[^.]+", r"\1", name))


def share(step):
    """Of the rate, after so many updates: two of warm-up, and then down to 0 after the last one."""
    return [1 / 2, 1, 1, 3 / 4, 2 / 4, 1 / 4, 0][step]


def test_every_update_is_that_of_a_plain_loop(case, paper):
    ours, losses = trained(case, paper, 4)
    host, encoded, schedule = case
    model = AutoModelForCausalLM.from_pretrained(host.spec.source, dtype=torch.float32,
                                                 attn_implementation="eager")
    targets = ["q_proj", "v_proj", "up_proj"]
    plain = peft.get_peft_model(model, peft.LoraConfig(target_modules=targets, **LORA))
    own = {named(name): value for name, value in plain.named_parameters() if value.requires_grad}
    start = {named(name): value for name, value in ours[0].items()}
    assert own.keys() == start.keys()
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(start[name])
    # the optimiser of transformers' Trainer as it comes
    adam = torch.optim.AdamW(own.values(), lr=2e-2, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    rate = torch.optim.lr_scheduler.LambdaLR(adam, share)
    plain.eval()  # no dropout
    for step in range(UPDATES):
        picks = schedule.examples(step, 2)
        tokens = sum(int(encoded.answer_lengths[i]) for i in picks)
        total = 0.0
        for part in np.split(picks, 4):
            longest = max(len(encoded.row(i)) for i in part)
            ids, labels, mask = (torch.full((16, longest), fill) for fill in (0, -100, 0))
            for place, i in enumerate(part):
                row = torch.tensor(encoded.row(i).astype(np.int64))
                ids[place, : len(row)], mask[place, : len(row)] = row, 1
                labels[place, encoded.starts[i] : len(row)] = row[encoded.starts[i] :]
            loss = plain(input_ids=ids, attention_mask=mask, labels=labels, num_items_in_batch=tokens).loss
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(own.values(), 1.0)
        adam.step()
        rate.step()
        adam.zero_grad()
        assert float(losses[step]) == pytest.approx(total, abs=1e-5)
        for name, value in own.items():
            there = {named(key): one for key, one in ours[step + 1].items()}[name]
            assert torch.allclose(there, value, atol=1e-5), (step, name)


@pytest.mark.parametrize("change", [{}, {"loss": "example"}, {"schedule": "constant"}],
                         ids=["token", "example", "constant"])
def test_parts_of_a_batch_add_up_to_the_batch(case, paper, change):
    protocol = replace(paper, updates=3, **change)
    whole, losses = trained(case, protocol, 1)
    for passes in (4, 64):
        parts, found = trained(case, protocol, passes)
        assert torch.allclose(found, losses, atol=1e-5)
        for name, value in whole[-1].items():
            assert torch.allclose(parts[-1][name], value, atol=1e-5)


def test_the_mean_over_tokens_is_another_than_that_over_examples(case, paper):
    token, example = (trained(case, replace(paper, loss=loss), 1)[1][0] for loss in ("token", "example"))
    assert abs(float(token - example)) > 1e-3
