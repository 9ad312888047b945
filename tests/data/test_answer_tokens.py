"""Token ids of prompts and answers: what follows on what, what is cut, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from portability.core.errors import UserError
from portability.core.paths import EMBEDDED
from portability.data.examples import Example
from portability.data.sampling import batch
from portability.data.tokenization import encode_answers, encode_choices, encode_prompts
from support.tiny import tokenizer
from support.tokenizers import gpt2_like

NANO = sorted((EMBEDDED / "hosts").iterdir())
GIVEN = Path(__file__).parents[3] / "shared" / "hosts"  # real llama tokenizers, where they are there
EXAMPLES = [
    Example("the film was very fine", "a story with a plot"), Example("the plot : ", "dull"),
    Example("a film\nanswer :\n", "fine"),
    Example("12 + 3 =", "15"), Example("user: the story ?\nassistant:", " great music. "),
    Example("é ñ 日", "bright ü"),
]


def merging():
    """A BPE without words, which merges a line break with the letter behind it."""
    words = ["</s>", "\n", "f", "i", "n", "e", ":", " ", "\nf"]
    tok = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [("\n", "f")]))
    return PreTrainedTokenizerFast(tokenizer_object=tok, eos_token="</s>")


def llama_like(folder):
    """A copy of the layout of a llama tokenizer: begin token in front, bytes for what has no piece."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{byte:02X}>": byte + 3 for byte in range(256)}
    for piece in "▁ a d e f i l m n o p r s t u w".split():
        vocabulary[piece] = len(vocabulary)
    merges = [("▁", "f"), ("i", "n"), ("▁f", "in"), ("▁", "a")]
    for pair in merges:
        vocabulary["".join(pair)] = len(vocabulary)
    whole = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [
            {"id": i, "content": word, "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": True} for i, word in enumerate(("<unk>", "<s>", "</s>"))],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "},
                                                  "content": "▁"}]},
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                                                     {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
            {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True,
                  "vocab": vocabulary, "merges": [" ".join(pair) for pair in merges]},
    }
    (folder / "tokenizer.json").write_text(json.dumps(whole), encoding="utf-8")
    return PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), bos_token="<s>",
                                   eos_token="</s>", unk_token="<unk>")


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """Name -> (tokenizer, family): of decoder-only kinds, of the shipped hosts, and of those given beside the
    project."""
    found = {"words": (tokenizer(), "gpt2"), "gpt2": (gpt2_like(), "gpt2"),
             "llama": (llama_like(tmp_path_factory.mktemp("llama")), "llama")}
    family = {path: json.loads((path / "config.json").read_text())["model_type"] for path in NANO}
    found |= {path.name: (AutoTokenizer.from_pretrained(path), family[path]) for path in NANO}
    for name in ("stories260k", "aidreams260k"):
        if (GIVEN / name).is_dir():
            found[name] = (AutoTokenizer.from_pretrained(GIVEN / name), "llama")
    return found


def rows(encoded):
    return [encoded.ids[a:b].tolist() for a, b in zip(encoded.offsets, encoded.offsets[1:], strict=False)]


def answers(encoded):
    flat, begins = encoded.answer_ids, encoded.answer_begins
    return [flat[at : at + length].tolist() for at, length in zip(begins, encoded.answer_lengths,
                                                                  strict=True)]


def knows(tok, text):
    return tok.unk_token_id not in tok(text, add_special_tokens=False)["input_ids"]


def test_what_is_trained_on_begins_with_what_is_continued(known):
    for name, (tok, family) in known.items():
        plain = (Example("the film was", "great"), Example("12 + 3 =", "15"))  # for hosts of few words
        examples = [one for one in EXAMPLES if knows(tok, one.prompt + one.answer)] or [
            next(one for one in plain if knows(tok, f"{one.prompt} {one.answer}"))]
        trained, asked = (f(examples, tok, family, 64, *more)
                          for f, more in ((encode_answers, ()), (encode_prompts, (16,))))
        assert trained.cut == asked.cut == 0 and len(trained) == len(examples), name
        for one, row, start, prompt, answer in zip(
                examples, rows(trained), trained.starts, rows(asked), answers(trained), strict=True):
            assert answer[-1] == tok.eos_token_id and tok.eos_token_id not in answer[:-1], name
            assert tok.decode(answer, skip_special_tokens=True).split() == one.answer.split(), name
            if family == "t5":
                assert row == prompt == tok(one.prompt)["input_ids"] and start == 0, name
                assert answer == tok(one.answer)["input_ids"], name
            else:
                assert row == prompt + answer and start == len(prompt) >= 1, name
                assert prompt == tok(one.prompt.rstrip(" "))["input_ids"], name
                whole = one.prompt.rstrip(" ") + ("" if one.prompt.endswith("\n")
                                                  else " ") + one.answer.strip()
                assert row[:-1] == tok(whole)["input_ids"], name


def test_every_kind_of_tokenizer_was_seen(known):
    assert {family for _, family in known.values()} == {"gpt2", "llama", "t5"} and len(known) >= 8


def test_a_blank_goes_to_the_answer_of_a_gpt2():
    examples = [Example(prompt, "fine") for prompt in ("the", "the ", "the\n")]
    encoded = encode_answers(examples, gpt2_like(), "gpt2", 9)
    words = [gpt2_like().convert_ids_to_tokens(row) for row in rows(encoded)]
    assert words[0] == words[1] == ["t", "he", "Ġfine", "<|endoftext|>"]
    assert words[2] == ["t", "he", "Ċ", "f", "in", "e", "<|endoftext|>"]


def test_an_answer_is_tokenised_by_itself_where_the_tokenizer_merges_across_the_border():
    tok = merging()
    assert tok.tokenize("e\nfine") == ["e", "\nf", "i", "n", "e"]
    encoded = encode_answers([Example("e\n", "fine")], tok, "llama", 9)
    assert tok.convert_ids_to_tokens(rows(encoded)[0]) == ["e", "\n", "f", "i", "n", "e", "</s>"]
    assert rows(encode_prompts([Example("e\n", "fine")], tok, "llama", 9,
                               3))[0] == rows(encoded)[0][: encoded.starts[0]]


def test_prompts_lose_their_beginning_and_answers_nothing(known):
    long = Example("the film was very fine and the plot was dull", "a story")
    for name in ("words", "llama", "gpt2", NANO[0].name):
        tok, family = known[name]
        one = long if knows(tok, long.prompt + long.answer) else Example("great film and great film",
                                                                         "great film")
        whole, answer = encode_prompts([one], tok, family, 99,
                                       1), answers(encode_answers([one], tok, family, 99))[0]
        body = rows(whole)[0]
        front, back = [1] * (name == "llama"), [tok.eos_token_id] * (family == "t5")
        body = body[len(front) : len(body) - len(back)]
        for lost in (1, 3):
            kept = front + body[lost:] + back
            limit = len(kept) + (0 if family == "t5" else len(answer))
            encoded = encode_answers([one], tok, family, limit)
            assert rows(encoded)[0] == (kept if family == "t5" else kept + answer), name
            assert answers(encoded) == [answer] and encoded.cut == 1, name
            asked = encode_prompts([one], tok, family, len(kept) + (0 if family == "t5" else 5), 5)
            assert rows(asked)[0] == kept and asked.cut == 1 and answers(asked) == [[]], name


def test_choices_of_an_example_share_their_prompt_also_where_it_is_cut():
    tok = tokenizer()
    examples = [Example("the film was very", "fine", ("fine", "dull and grim and cold"), 0),
                Example("a plot", "grim", ("great", "lovely", "grim"), 2)]
    encoded = encode_choices(examples, tok, "llama", 64)
    assert encoded.group.tolist() == [0, 0, 1, 1, 1] and encoded.right.tolist() == [True, False, False, False,
                                                                                    True]
    assert [tok.decode(ids) for ids in answers(encoded)] == [
        "fine </s>", "dull and grim and cold </s>", "great </s>", "lovely </s>", "grim </s>"]
    cut = encode_choices(examples, tok, "llama", 8)
    heads = [tok.decode(row[:start]) for row, start in zip(rows(cut), cut.starts, strict=True)]
    assert heads == ["was very", "was very", "a plot", "a plot", "a plot"] and cut.cut == 2
    seq = encode_choices(examples, tok, "t5", 64)
    assert len(set(map(tuple, rows(seq)[:2]))) == 1 and seq.starts.tolist() == [0] * 5
    assert [len(ids) for ids in answers(seq)] == [2, 6, 2, 2, 2]


CHAT = Example("user: the film ?\nassistant:", "fine", turns=(("user", "the film ?"),))


def test_a_chat_goes_through_the_hosts_template_if_there_is_one():
    tok = tokenizer()
    plain = rows(encode_answers([CHAT], tok, "llama", 64))[0]
    assert plain == tok("user: the film ?\nassistant: fine </s>")["input_ids"]
    tok.chat_template = ("{% for m in messages %}{{ m.role }} : {{ m.content }} </s>{% endfor %}"
                         "{% if add_generation_prompt %} answer : {% endif %}")
    templated = encode_answers([CHAT, Example("the plot", "dull")], tok, "llama", 64)
    assert rows(templated)[0] == tok("user : the film ? </s> answer : fine </s>")["input_ids"]
    assert rows(templated)[1] == tok("the plot dull </s>")["input_ids"]
    assert rows(encode_prompts([CHAT], tok, "llama", 64, 8))[0] == rows(templated)[0][: templated.starts[0]]


def test_a_template_brings_its_own_begin_token(tmp_path):
    tok = llama_like(tmp_path)
    tok.chat_template = "<s>{% for m in messages %}{{ m.content }}\n{% endfor %}"
    chat, prompt = rows(encode_prompts([CHAT, Example("film", "fine")], tok, "llama", 64, 8))
    assert chat.count(1) == prompt.count(1) == 1 and chat[0] == prompt[0] == 1


def test_a_chat_that_the_template_refuses_is_named():
    tok = tokenizer()
    tok.chat_template = "{{ raise_exception('only system turns') }}"
    with pytest.raises(UserError, match="chat template refuses the chat 'user: the film .*only system turns"):
        encode_answers([CHAT], tok, "llama", 64)


@pytest.mark.parametrize("encode", [encode_answers, encode_choices])
@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_an_answer_that_leaves_no_room_is_named(encode, family):
    tok = tokenizer()
    good, bad = (Example("the plot", text, ("fine", text), 1) for text in ("dull", "dull and grim and cold"))
    encode([good, bad], tok, family, 7)
    says = r"example 1 \(from 0, of those used\): 5 tokens are too few .* answer of 6 with its end token"
    with pytest.raises(UserError, match=says):
        encode([good, bad], tok, family, 5)


LONG = "dull and grim and cold and warm"  # 7 tokens, 8 with the end token


def test_how_many_answers_are_too_long_is_said():
    found = [Example("the plot", text) for text in ("fine", LONG, LONG)]
    with pytest.raises(UserError, match="2 of 3 answers are too long, first in example 1 .* set too_long .* "
                       "drop or truncate"):
        encode_answers(found, tokenizer(), "gpt2", 8)


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_dropped_answers_leave_the_others_as_they_are(family):
    tok = tokenizer()
    short = [Example("the plot", "fine"), Example("a story", "dull")]
    mixed = encode_answers([short[0], Example("the film", LONG), short[1]], tok, family, 7, "drop", 2)
    alone = encode_answers(short, tok, family, 7)
    assert (mixed.dropped, mixed.truncated, mixed.group.tolist()) == (1, 0, [0, 2])
    assert (alone.dropped, alone.truncated) == (0, 0)
    assert rows(mixed) == rows(alone) and answers(mixed) == answers(alone)
    with pytest.raises(UserError, match="1 of 1 answers are too long"):  # nothing would be left
        encode_answers([Example("the film", LONG)], tok, family, 7, "drop")


@pytest.mark.parametrize(("family", "limit", "least", "prompt", "answer"), [
    ("gpt2", 8, 2, "the film", "dull and grim and cold and"),  # the whole prompt leaves room for six tokens
    ("gpt2", 6, 2, "a the film plot story", "dull and"),  # two at least, and the prompt's last four
    ("gpt2", 4, 9, "the film", "dull and grim"),  # as many as its last one leaves
    ("t5", 4, 2, "the film", "dull and grim and"),
])
def test_a_truncated_answer_keeps_its_beginning_and_does_not_end(family, limit, least, prompt, answer):
    tok = tokenizer()
    found = encode_answers([Example(prompt, LONG), Example("the plot", "fine")], tok, family, limit,
                           "truncate", least)
    assert (found.dropped, found.truncated) == (0, 1)
    assert [tok.decode(ids) for ids in answers(found)] == [answer, "fine </s>"]
    head = rows(found)[0] if family == "t5" else rows(found)[0][: found.starts[0]]
    assert prompt.endswith(tok.decode([token for token in head if token != tok.eos_token_id]))
    if family == "gpt2":
        assert found.lengths.max() <= limit
        assert found.starts[0] == min(len(prompt.split()), max(1, limit - least))


def test_what_cannot_be_encoded_is_named():
    tok, one = tokenizer(), Example("the plot", "fine")
    for family in ("bert", "roberta"):
        for encode, more in ((encode_answers, ()), (encode_choices, ()), (encode_prompts, (8,))):
            with pytest.raises(UserError, match=f"a {family} host can neither write"):
                encode([one], tok, family, 64, *more)
    with pytest.raises(UserError, match=r"example 1 \(from 0\) has no choices"):
        encode_choices([Example("a", "fine", ("fine", "dull"), 0), one], tok, "gpt2", 64)
    with pytest.raises(UserError, match="answer 'xyz' is unknown to the host's tokenizer"):
        encode_answers([one, Example("the plot", "xyz")], tok, "gpt2", 64)
    with pytest.raises(UserError, match="64 new tokens leave no room for a prompt"):
        encode_prompts([one], tok, "gpt2", 64, 64)
    tok.eos_token = None
    with pytest.raises(UserError, match="no end token"):
        encode_answers([one], tok, "gpt2", 64)


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_a_batch_holds_the_rows_and_nothing_of_their_neighbours(family):
    tok = tokenizer()
    examples = [Example("the plot", "fine and dull"), Example("great", "cold"),
                Example("the film was", "great")]
    encoded = encode_answers(examples, tok, family, 64)
    picks = np.array([[2, 0], [1, 1]])
    found = batch(encoded, picks, 9, 5)
    assert found.ids.shape == found.mask.shape == (2, 2,
                                                   9) and found.answers.shape == found.answer_mask.shape == (
                                                       2, 2, 5)
    for place in np.ndindex(2, 2):
        row, answer = rows(encoded)[picks[place]], answers(encoded)[picks[place]]
        assert found.ids[place].tolist() == row + [0] * (9 - len(row))
        assert found.mask[place].tolist() == [1] * len(row) + [0] * (9 - len(row))
        assert found.answers[place].tolist() == answer + [0] * (5 - len(answer))
        assert found.answer_mask[place].tolist() == [1] * len(answer) + [0] * (5 - len(answer))
        assert found.starts[place] == encoded.starts[picks[place]]
