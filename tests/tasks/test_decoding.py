"""Losses, likelihoods and written answers of stacks, against the library's own, one example and one member at
a time."""

import pytest
import torch
from torch.func import vmap
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from portability.core.errors import UserError
from portability.data.examples import Example
from portability.data.sampling import Batch, batch
from portability.data.tokenization import encode_answers, encode_prompts
from portability.hosts.host import load_host
from portability.methods import attach
from portability.tasks.readers import Reader, _each, answer_loss, answer_scores, greedy, texts
from support.decoding import ALL, STOP, Bench
from support.tiny import tokenizer

pytestmark = pytest.mark.system  # takes long

FAMILIES = ("gpt2", "llama", "t5")


@pytest.fixture(scope="module")
def bench(load):
    made = {}

    def get(name, family):
        if (name, family) not in made:
            made[name, family] = Bench(attach(load(family), ALL[name]))
        return made[name, family]

    return get


each = pytest.mark.parametrize(("name", "family"), [(name, family) for family in FAMILIES for name in ALL])


@each
def test_written_answers_are_those_of_reading_everything_anew(bench, name, family):
    one = bench(name, family)
    written = greedy(one.reader, one.stacked(0, 1), one.ids, one.mask, 6, [STOP])
    assert written.shape == (2, 16, 6)
    compared = 0
    for member in (0, 1):
        for row in range(1, 16, 5):
            prompt, said = one.ids[row, : one.lengths[row]], []
            while len(said) < 6 and said[-1:] != [STOP]:
                logits = one.next_logits(member, prompt, said)
                best = logits.topk(2).values
                if best[0] - best[1] < 1e-4:  # rounding decides what follows
                    break
                said.append(int(logits.argmax()))
            ended = said[-1:] == [STOP]
            assert written[member, row, : len(said)].tolist() == said
            assert not ended or (written[member, row, len(said) :] == STOP).all()
            compared += len(said)
    assert compared >= 12


@pytest.mark.parametrize("family", FAMILIES)
def test_the_bare_host_writes_what_generate_writes(load, make_host, family):
    """The library's own model is loaded without adapters, whose layers of a llama pass over the cache that
    generate gives them, so that each token would see itself alone."""
    kind = AutoModelForSeq2SeqLM if family == "t5" else AutoModelForCausalLM
    plain = kind.from_pretrained(make_host(family).source, local_files_only=True).eval()
    draw = torch.Generator().manual_seed(6)
    lengths = torch.randint(1, 12, (12,), generator=draw)
    mask = (torch.arange(12) < lengths[:, None]).long()
    ids = torch.randint(3, 30, (12, 12), generator=draw) * mask
    written = greedy(Reader(load(family)), {}, ids, mask, 10, [STOP])
    assert written.shape == (1, 12, 10)
    for row, length in enumerate(lengths):
        alone = plain.generate(input_ids=ids[row : row + 1, :length],
                               attention_mask=mask[row : row + 1, :length],
                               do_sample=False, max_new_tokens=10, pad_token_id=STOP, eos_token_id=STOP)[0]
        alone = alone[1:] if family == "t5" else alone[length:]
        assert written[0, row].tolist() == alone.tolist() + [STOP] * (10 - len(alone))
    assert len({tuple(row) for row in written[0].tolist()}) > 3


@each
def test_how_members_were_stacked_changes_no_bit(bench, name, family):
    one = bench(name, family)

    def read(*which):
        with torch.inference_mode():
            run = _each(one.reader, one.stacked(*which))
            first, past = run("begin", (one.ids, one.mask))
            second, past = run("follow", (one.mask, 1), (first.argmax(-1), past))
            third, _ = run("follow", (one.mask, 2), (second.argmax(-1), past))
        return torch.stack([first, second, third], 1)

    whole = read(0, 1, 2, 3)
    assert len({tuple(member.flatten().tolist()) for member in whole}) == 4
    for which in ((0,), (3,), (1, 0), (3, 1, 0, 2)):
        for place, index in enumerate(which):
            assert torch.equal(read(*which)[place], whole[index])
    scores = answer_scores(one.reader, one.stacked(0, 1, 2, 3), rows_of(one))
    for which in ((0,), (3, 1)):
        assert torch.equal(answer_scores(one.reader, one.stacked(*which), rows_of(one)), scores[list(which)])


def rows_of(one):
    """Prompts with answers of 1 to 4 tokens, the last row without any."""
    draw = torch.Generator().manual_seed(7)
    lengths = torch.randint(1, 5, (16,), generator=draw)
    lengths[-1] = 0
    answers = torch.randint(3, 30, (16, 4), generator=draw)
    answer_mask = (torch.arange(4) < lengths[:, None]).long()
    answers = answers * answer_mask
    if one.family == "t5":
        return Batch(one.ids, one.mask, torch.zeros(16, dtype=torch.int64), answers, answer_mask)
    ids = torch.zeros(16, 13, dtype=torch.int64)
    for row in range(16):
        both = [*one.ids[row, : one.lengths[row]].tolist(), *answers[row, : lengths[row]].tolist()]
        ids[row, : len(both)] = torch.tensor(both)
    mask = (torch.arange(13) < (one.lengths + lengths)[:, None]).long()
    return Batch(ids, mask, one.lengths, answers, answer_mask)


def slow_scores(one, member, rows):
    """Log-probability of each answer, token by token, everything read anew; (B,)."""
    found = []
    for row in range(len(rows.ids)):
        answer, total = rows.answers[row, : rows.answer_mask[row].sum()].tolist(), 0.0
        for at, token in enumerate(answer):
            logits = one.next_logits(member, one.ids[row, : one.lengths[row]], answer[:at])
            total += float(logits.log_softmax(-1)[token])
        found.append(total)
    return torch.tensor(found)


@each
def test_scores_and_losses_of_answers_are_those_token_by_token(bench, name, family):
    one = bench(name, family)
    rows = rows_of(one)
    expected = slow_scores(one, 2, rows)
    assert torch.allclose(answer_scores(one.reader, one.stacked(0, 2), rows)[1], expected, atol=1e-4)
    lengths = rows.answer_mask.sum(1)
    loss = answer_loss(one.reader, one.members[2], rows)
    assert float(loss) == pytest.approx(float((-expected / lengths)[lengths > 0].mean()), abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_and_gradients_of_a_stack_are_those_of_its_members(bench, family):
    one = bench("own", family)
    rows = rows_of(one)
    trained = {f"model.{name}" for name in one.attached.shapes}
    stack = {name: value.clone().requires_grad_(name in trained) for name, value in one.stacked(0, 1).items()}
    twice = Batch(*(torch.stack([part, part.flip(0)]) for part in rows))
    losses = vmap(lambda given, part: answer_loss(one.reader, given, part))(stack, twice)
    losses.sum().backward()
    for index, part in ((0, rows), (1, Batch(*(value.flip(0) for value in rows)))):
        alone = {name: value.clone().requires_grad_(name in trained)
                 for name, value in one.members[index].items()}
        loss = answer_loss(one.reader, alone, part)
        loss.backward()
        assert losses[index].item() == pytest.approx(loss.item(), abs=1e-5)
        for name in trained:
            assert torch.allclose(stack[name].grad[index], alone[name].grad, atol=1e-5), name


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_changes_nothing_and_its_ids_do_not_count(bench, family):
    one = bench("lora", family)
    rows, stack = rows_of(one), one.stacked(0)
    wide = Batch(F.pad(rows.ids, (0, 3), value=7), F.pad(rows.mask, (0, 3)), rows.starts,
                 F.pad(rows.answers, (0, 2), value=9), F.pad(rows.answer_mask, (0, 2)))
    assert torch.allclose(answer_scores(one.reader, stack, rows), answer_scores(one.reader, stack, wide),
                          atol=1e-4)
    dirty = torch.where(one.mask > 0, one.ids, 11)
    found = [greedy(one.reader, stack, ids, one.mask, 5, [STOP]) for ids in (dirty, one.ids)]
    assert torch.equal(*found)


def test_a_loss_of_known_numbers(load):
    """Uniform logits: every token costs log V, whatever the lengths; one sure token costs nothing."""
    host = load("gpt2")
    read = Reader(host)
    rows = Batch(torch.tensor([[3, 4, 5], [3, 4, 0]]), torch.tensor([[1, 1, 1], [1, 1, 0]]),
                 torch.tensor([1, 1]), torch.tensor([[4, 5], [4, 0]]), torch.tensor([[1, 1], [1, 0]]))
    vocabulary = host.model.config.vocab_size
    even = {"model.lm_head.weight": torch.zeros(vocabulary, host.spec.shape.hidden)}
    cost = float(torch.tensor(float(vocabulary)).log())
    assert float(answer_loss(read, even, rows)) == pytest.approx(cost, abs=1e-5)
    stack = {name: value[None] for name, value in even.items()}
    assert answer_scores(read, stack, rows)[0].tolist() == pytest.approx([-2 * cost, -cost], abs=1e-5)
    filled = rows._replace(answer_mask=torch.tensor([[1, 1], [0, 0]]))
    assert float(answer_loss(read, even, filled)) == pytest.approx(cost, abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_any_of_several_stops_ends_an_answer(bench, family):
    one = bench("lora", family)
    free = greedy(one.reader, one.stacked(0), one.ids, one.mask, 6, [STOP])[0]
    other = int(free[:, 1].mode().values)
    assert other != STOP and (free == other).any()
    stopped = greedy(one.reader, one.stacked(0), one.ids, one.mask, 6, [STOP, other])[0]
    for before, after in zip(free.tolist(), stopped.tolist(), strict=True):
        end = next((at for at, token in enumerate(before) if token in (STOP, other)), 5)
        assert after == before[: end + 1] + [STOP] * (5 - end)


def test_written_tokens_become_texts_up_to_their_stop():
    tok = tokenizer()
    written = torch.tensor([[tok("fine film")["input_ids"] + [1, 1], tok("a very great plot")["input_ids"]],
                            [[1, 1, 1, 1], tok("dull")["input_ids"] + [9, 1, 1]]])
    second = tok.decode([9])
    assert texts(written, tok, [1]) == [["fine film", "a very great plot"], ["", f"dull {second}"]]
    assert texts(written, tok, [1, 9])[1] == ["", "dull"]


def test_from_examples_to_texts(load):
    host = load("llama")
    asked = encode_prompts([Example("the film was", "fine"), Example("a story", "dull")], host.tokenizer,
                           "llama", 32, 4)
    rows = batch(asked, torch.arange(2).numpy(), 4, 1)
    found = texts(greedy(Reader(host), {}, rows.ids, rows.mask, 4, [STOP]), host.tokenizer, [STOP])
    assert len(found) == 1 and len(found[0]) == 2 and all(isinstance(text, str) for text in found[0])
    examples = [Example("the film was", "fine"), Example("a story", "dull and cold")]
    encoded = encode_answers(examples, host.tokenizer, "llama", 32)
    both = batch(encoded, torch.arange(2).numpy(), int(encoded.lengths.max()),
                 int(encoded.answer_lengths.max()))
    scores = answer_scores(Reader(host), {}, both)
    assert scores.shape == (1, 2) and (scores < 0).all()


def test_a_host_with_less_positions_is_named(load):
    with pytest.raises(UserError, match="max_length is 65, but host .* has 64 positions"):
        Reader(load("gpt2"), 65)


@pytest.mark.parametrize("family", FAMILIES)
def test_bf16_writes_and_scores_too(bench, make_host, family):
    one, narrow = bench("own", family), Reader(load_host(make_host(family), precision="bf16"))
    scores, plain = (answer_scores(read, {}, rows_of(one)) for read in (narrow,
                                                                        Reader(load_host(make_host(family)))))
    assert scores.dtype == torch.float32 and not torch.equal(scores, plain)
    assert torch.allclose(scores, plain, rtol=0.05, atol=0.1)
    written = greedy(narrow, {}, one.ids, one.mask, 3, [STOP])
    assert written.shape == (1, 16, 3) and (written >= 0).all()


def test_onednn_is_as_it_was_afterwards(bench):
    one = bench("lora", "gpt2")
    for enabled in (False, True):
        before = torch.backends.mkldnn.set_flags(enabled)[0]
        greedy(one.reader, one.stacked(0), one.ids, one.mask, 3, [STOP])
        assert torch.backends.mkldnn.enabled is enabled
        torch.backends.mkldnn.set_flags(before)
