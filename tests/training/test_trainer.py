"""How runs are stacked never shows in a result; and the engine equals the plain libraries."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from portability.core.architectures import FAMILIES
from portability.core.specs import MethodSpec, TrainSpec
from portability.data.sampling import BatchSampler, buckets, pad
from portability.data.tokenization import Encoded
from portability.hosts import host as hosts
from portability.hosts.host import load_host
from portability.methods import attach
from portability.training import trainer as engine
from portability.training.trainer import Member, Trainer
from support.lora import method
from support.pairs import over, representatives
from support.tiny import FAMILIES as TINY
from support.tiny import METHODS
from support.training import SPEC, Bench, plain_loop


@pytest.fixture(scope="module")
def bench(mount):
    made = {}

    def get(method, family="t5", shape=(32, 2, 4)):
        if (method, family, shape) not in made:
            made[method, family, shape] = Bench(mount(method, family, *shape))
        return made[method, family, shape]

    return get


@pytest.mark.parametrize("family", ["t5", "bert", "llama"])
@pytest.mark.parametrize("method", METHODS)
def test_stacks_of_1_2_4_and_a_permuted_one_are_bit_equal(bench, method, family):
    table = bench(method, family)
    four = table.rows(table.train([0, 1, 2, 3]))
    assert four.isfinite().all() and not torch.equal(four[0], four[1])
    two = table.rows(table.train([2, 3]))
    permuted = table.rows(table.train([3, 0, 2, 1]))
    for seed in range(4):
        assert torch.equal(table.rows(table.train([seed]))[0], four[seed]), f"K = 1, seed {seed}"
    assert torch.equal(two, four[2:])
    assert torch.equal(permuted, four[[3, 0, 2, 1]])


@pytest.mark.parametrize("method", METHODS)
def test_a_wider_and_deeper_host_is_bit_equal_too(bench, method):
    table = bench(method, "t5", (96, 3, 4))
    stacked = table.rows(table.train([0, 1, 2, 3, 4]))
    assert torch.equal(table.rows(table.train([4]))[0], stacked[4])


@pytest.mark.parametrize("family", representatives(TINY, "t5", "bert", "llama"))
@pytest.mark.parametrize("method", METHODS)
def test_thirty_updates_equal_a_plain_one_at_a_time_loop(bench, method, family):
    """An ordinary loop: the library's own module, torch's AdamW and clip_grad_norm_, one run at a time."""
    table, spec = bench(method, family), TrainSpec(**{**vars(SPEC), "updates": 30})
    trainer = table.train([5, 6], spec)
    for index, seed in enumerate((5, 6)):
        plain = plain_loop(table, seed, spec)
        ours = trainer.bank.member(trainer.bank.theta, index)
        for name, value in plain.items():
            assert torch.allclose(ours[name], value, atol=1e-4, rtol=0), (name,
                                                                          (ours[name] - value).abs().max())


@pytest.mark.parametrize("method", METHODS)
def test_a_member_gone_wrong_leaves_its_neighbours_bit_equal(bench, method):
    table = bench(method)
    starts = [table.start(seed) for seed in (0, 1, 2)]
    good = table.rows(table.train([0, 1, 2], starts=starts))
    broken = [starts[0], {name: torch.full_like(v, torch.nan) for name, v in starts[1].items()}, starts[2]]
    trainer = table.train([0, 1, 2], starts=broken)
    assert [outcome.failed_at for outcome in trainer.outcomes] == [None, 1, None]
    assert torch.equal(table.rows(trainer)[[0, 2]], good[[0, 2]])


def test_a_member_that_diverges_later_is_frozen_at_that_update(bench):
    table = bench("lora")
    trainer = table.train([0, 1], rates=[3e-3, 1e25])
    bad = trainer.outcomes[1].failed_at
    assert bad is not None and 1 < bad <= SPEC.updates
    assert torch.equal(table.rows(trainer)[0], table.rows(table.train([0]))[0])


def test_each_member_has_its_own_learning_rate(bench):
    table = bench("adapter")
    one = table.rows(table.train([0, 1], rates=[3e-3, 3e-3]))
    other = table.rows(table.train([0, 1], rates=[3e-3, 6e-3]))
    assert torch.equal(one[0], other[0]) and not torch.equal(one[1], other[1])


def test_a_head_whose_rate_is_0_stays_as_it_was(bench):
    table = bench("adapter", "bert")
    trainer = table.train([0, 1], TrainSpec(**{**vars(SPEC), "head_learning_rate": 0.0, "weight_decay": 0.0}))
    for index, seed in enumerate((0, 1)):
        start, end = table.start(seed), trainer.bank.member(trainer.bank.theta, index)
        assert all(torch.equal(end[name], start[name]) == name.startswith("head.") for name in start
                   if "down.0.weight" in name
                   or name.startswith("head."))


def test_the_host_is_never_changed(bench):
    table = bench("compacter")
    before = {n: p.clone() for n, p in table.host.model.named_parameters() if "module" not in n}
    table.train([0, 1])
    after = dict(table.host.model.named_parameters())
    assert all(torch.equal(value, after[name]) for name, value in before.items() if name in after)


def test_marks_see_the_mean_of_their_last_iterates_and_nothing_of_the_start(bench):
    table, seen, last, iterates = bench("lora"), {}, {}, []
    start = table.start(0)
    trainer = Trainer(table.scorer, [Member(start, 0, 3e-3)], SPEC)

    def mark(updates, averages, iterate):
        seen[updates], last[updates] = bank(averages), bank(iterate)

    engine.train(trainer, table.schedule, table.data, (0, 1, 8, 10, 12), mark,
                 lambda: iterates.append(trainer.bank.theta.detach()[0].clone()))
    assert sorted(seen) == [0, 1, 8, 10, 12] and not trainer.tails
    assert torch.equal(seen[0], torch.cat([v.reshape(-1) for v in start.values()])) and torch.equal(seen[0],
                                                                                                    last[0])
    # a quarter of the updates, rounded up; windows may overlap
    for updates, size in ((1, 1), (8, 2), (10, 3), (12, 3)):
        assert torch.equal(last[updates], iterates[updates - 1])
        wanted = torch.stack(iterates[updates - size : updates]).double().mean(0)
        assert torch.allclose(seen[updates].double(), wanted, rtol=0, atol=1e-7), updates
    assert torch.equal(trainer.averages[0], seen[12])


@pytest.mark.parametrize(("mark", "size"), [(1, 1), (5, 1), (6, 2), (10, 2), (50, 10), (100, 20), (200, 40),
                                            (2000, 400)])
def test_the_start_and_the_first_fifth_of_the_updates_weigh_nothing_at_a_mark(mark, size):
    assert engine.window(mark, 0.2) == size and mark - size >= mark // 5 * (mark > 1)


def bank(parameters):
    return torch.cat([value[0].reshape(-1) for value in parameters.values()]).clone()


def test_predictions_do_not_depend_on_the_stack_or_the_order_of_examples(bench):
    table = bench("adapter")
    trainer = table.train([0, 1, 2])
    views = trainer.bank.views(trainer.averages)
    three = table.scorer.predict(views, table.data, 32)
    one = table.scorer.predict({name: v[1:2] for name, v in views.items()}, table.data, 32)
    assert np.array_equal(three.margin[1], one.margin[0]) and np.array_equal(three.nll[1], one.nll[0])
    plain = table.scorer.logits({n: v[1] for n, v in views.items()},
                             *pad(table.data, np.array([7]), 30))
    scores = plain.log_softmax(-1)[0]
    negative, positive = table.scorer.label_ids
    assert one.margin[0, 7] == pytest.approx(float(scores[positive] - scores[negative]), abs=1e-5)


@over(kind=[*METHODS.values(), method()], family=[name for name in TINY if FAMILIES[name].sdpa],
      precision=["fp32", "bf16"])
def test_scaled_dot_product_attention_gives_the_same_losses(make_host, monkeypatch, kind, family, precision):
    near = {"fp32": 1e-4, "bf16": 1e-2}[precision]

    def losses():
        table = Bench(attach(load_host(make_host(family), precision=precision), kind))
        trainer = table.train([0, 1])
        return table.host.model.config._attn_implementation, trainer.losses

    eager = losses()
    monkeypatch.setattr(hosts, "attention_of", lambda family, device: "sdpa")
    sdpa = losses()
    assert (eager[0], sdpa[0]) == ("eager", "sdpa") and torch.allclose(eager[1], sdpa[1], atol=near)


def test_what_stands_before_the_first_site_is_done_once_for_all_members(bench):
    table, batched = bench("adapter"), {}
    layer = table.host.model.encoder.block[0].layer
    parts = {"query of the first layer": layer[0].SelfAttention.q,
             "feed-forward of the first layer": layer[1].DenseReluDense}
    hooks = [part.register_forward_hook(lambda m, i, out, name=name: batched.update(
        {name: torch._C._functorch.is_batchedtensor(out)})) for name, part in parts.items()]
    trainer = table.train([0, 1, 2])
    table.scorer.predict(trainer.bank.views(trainer.averages), table.data, 32)
    for hook in hooks:
        hook.remove()
    assert batched == {"query of the first layer": False, "feed-forward of the first layer": True}


# ---- bf16


@pytest.mark.parametrize("family", representatives(["t5", "bert", "llama"], "t5"))
@pytest.mark.parametrize("method", METHODS)
def test_bf16_keeps_module_optimizer_and_loss_in_fp32(make_host, method, family):
    full = Bench(attach(load_host(make_host(family)), METHODS[method]))
    half = Bench(attach(load_host(make_host(family), precision="bf16"), METHODS[method]))
    start = half.start(0)
    assert all(torch.equal(value, full.start(0)[name]) and value.dtype == torch.float32
               for name, value in start.items())
    trainer, other = half.train([0, 1]), full.train([0, 1])
    assert trainer.bank.theta.dtype == trainer.losses.dtype == torch.float32
    assert {state["exp_avg"].dtype for state in trainer.optimizer.state.values()} == {torch.float32}
    logits = half.scorer.logits(start, *pad(half.data, np.array([0, 1]),
                                                       int(half.data.lengths.max())))
    assert logits.dtype == torch.float32
    assert not torch.equal(trainer.losses, other.losses) and torch.allclose(trainer.losses, other.losses,
                                                                            atol=0.3)
    assert torch.equal(half.rows(half.train([1]))[0], half.rows(trainer)[1])


def test_modules_of_peft_are_fp32_beside_frozen_weights_in_bf16(make_host):
    spec = MethodSpec("lora_peft", "peft", "LoraConfig", {"r": 4, "sites": ["query", "value"]}, 3e-3)
    full, half = (Bench(attach(load_host(make_host("t5"), precision=precision), spec))
                  for precision in ("fp32", "bf16"))
    assert {value.dtype for value in half.start(0).values()} == {torch.float32}
    trainer, other = half.train([0, 1]), full.train([0, 1])
    assert trainer.bank.theta.dtype == torch.float32
    assert not torch.equal(trainer.losses, other.losses)
    assert torch.allclose(trainer.losses, other.losses, atol=0.3)


def test_frozen_weights_in_bf16_are_what_autocast_makes_of_them(make_host, monkeypatch):
    kept = Bench(attach(load_host(make_host("t5"), precision="bf16"), METHODS["adapter"]))
    monkeypatch.setattr(hosts, "narrow", lambda model: None)
    cast = Bench(attach(load_host(make_host("t5"), precision="bf16"), METHODS["adapter"]))
    assert torch.equal(kept.rows(kept.train([0])), cast.rows(cast.train([0])))


@pytest.mark.parametrize("count", [1, 3])
def test_logits_of_a_tied_head_are_no_coarser_under_bf16(make_host, count):
    """bf16 has 8 bits: logits of it would tie labels (D-151)."""
    table = Bench(attach(load_host(make_host("gpt2"), precision="bf16"), METHODS["lora"]))
    rows = pad(table.data, np.array([0, 1]), int(table.data.lengths.max()))
    members = [table.start(seed) for seed in range(count)]
    stacked = {name: torch.stack([member[name] for member in members]) for name in members[0]}
    logits = table.scorer.stacked_logits(stacked, *rows)
    assert (logits.bfloat16().float() != logits).float().mean() > 0.9


# ---- going on after a kill


@pytest.mark.parametrize(("method", "family", "stop"), [("lora", "t5", 5), ("compacter", "bert", 11)])
def test_a_restored_stack_goes_on_to_the_same_bits(bench, method, family, stop):
    table = bench(method, family)
    reference = table.train([0, 1, 2], rates=[3e-3] * 3)
    half = Trainer(table.scorer, [Member(table.start(seed), seed, 3e-3) for seed in (0, 1, 2)], SPEC)
    half.marks = (12,)
    for step in range(stop):
        half.update(step, table.schedule, table.data)
    kept = {seed: half.snapshot(seed) for seed in (0, 1, 2)}
    again = Trainer(table.scorer, [Member(table.start(9), seed, 3e-3) for seed in (2, 0)], SPEC)
    again.restore([kept[2], kept[0]])
    assert again.done == stop and list(again.tails) == [12] * (stop == 11)
    engine.train(again, table.schedule, table.data, (12,), lambda *_: None)
    assert torch.equal(table.rows(again), table.rows(reference)[[2, 0]])
    assert [again.outcomes[i] for i in (0, 1)] == [reference.outcomes[i] for i in (2, 0)]


# ---- batches of few or of an odd number of examples: products of few rows take other kernels


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", representatives([1, 2, 3, 5, 6, 7], 1, 3, 6))
def test_stacks_are_bit_equal_at_any_batch_size(bench, method, size):
    table, spec = bench(method), TrainSpec(**{**vars(SPEC), "batch_size": size, "updates": 6})
    schedule = BatchSampler(table.data, size, 3, "data")

    def train(seeds):
        trainer = Trainer(table.scorer, [Member(table.start(seed), seed, 3e-3) for seed in seeds], spec)
        engine.train(trainer, schedule, table.data, (6,), lambda *_: None)
        return trainer

    five, one = train([0, 1, 2, 3, 4]), train([3])
    assert torch.equal(table.rows(one)[0], table.rows(five)[3])
    assert one.outcomes[0] == five.outcomes[3]  # tokens of the examples alone
    picks = schedule.examples(0, 3)
    assert train([3]).losses[0, 0] == pytest.approx(float(F.cross_entropy(
        table.scorer.logits(table.start(3), *pad(table.data, picks, schedule.length(0))),
        torch.tensor([table.scorer.label_ids[table.data.labels[i]] for i in picks]))), abs=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_predictions_are_bit_equal_whatever_is_left_for_the_last_batch(bench, method):
    table = bench(method)
    views = {name: torch.stack([table.start(seed)[name] + 0.05 for seed in range(5)])
             for name in table.start(0)}
    for size in range(1, 18):
        rows = [table.data.row(i) for i in range(size)]
        some = Encoded(np.concatenate(rows), np.cumsum([0, *map(len, rows)]), table.data.labels[:size], 0)
        five = table.scorer.predict(views, some, 64)
        assert five.margin.shape == (5, size)
        for i in (0, 4):
            one = table.scorer.predict({name: v[i : i + 1] for name, v in views.items()}, some, 64)
            assert np.array_equal(one.margin[0], five.margin[i]) and np.array_equal(one.nll[0],
                                                                                    five.nll[i]), size


# ---- the schedule of batches


def test_arms_see_the_same_batches_and_steps_share_a_bucket(bench):
    table = bench("lora")
    schedule = BatchSampler(table.data, 8, 3, "data")
    for step in range(40):
        index, _ = schedule.bucket(step)
        members = set(schedule.buckets[index].members.tolist())
        one, other = schedule.examples(step, 1), schedule.examples(step, 2)
        assert set(one) <= members and set(other) <= members and len(set(one.tolist())) == 8
        again = BatchSampler(table.data, 8, 3, "data").examples(step, 1)
        assert np.array_equal(one, again)
    assert any(not np.array_equal(schedule.examples(s, 1), schedule.examples(s, 2)) for s in range(5))


def test_an_epoch_shows_every_example_about_once(bench):
    table = bench("lora")
    schedule = BatchSampler(table.data, 8, 3, "data")
    steps = len(schedule.turns)
    seen = np.concatenate([schedule.examples(step, 0) for step in range(steps)])
    assert len(set(seen.tolist())) == len(seen) and len(seen) >= 0.85 * len(table.data)


def test_padding_stays_near_the_real_tokens():
    lengths = np.clip(np.random.default_rng(0).lognormal(2.9, 0.5, 4000).astype(int), 3, 60)
    found = buckets(lengths, 4 * 16)
    padded = sum(bucket.length * len(bucket.members) for bucket in found)
    assert padded / lengths.sum() < 1.05
    assert min(len(bucket.members) for bucket in found) >= 64
    assert sorted(np.concatenate([b.members for b in found]).tolist()) == list(range(4000))
