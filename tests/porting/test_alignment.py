"""Tokens of unlike tokenizers that end at the same character."""

import re

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from portability.core.errors import UserError
from portability.hosts.host import load_host
from portability.hosts.sources import HostSource, describe
from portability.porting.activations import moments
from portability.porting.alignment import align
from portability.porting.calibration import calibration
from portability.porting.layer_similarity import alike_in_states
from portability.porting.spaces import Space
from support.tiny import model
from support.tokenizers import gpt2_like

WORDS = ["<pad>", "<unk>", "[CLS]", "[SEP]", "the", "film", "was", "fine", "and", "is", "café"]
KNOWN = ["the film was fine", "café fine  was", " the film", "fine"]  # of letters that the pieces have
SOME = ["the film was fine", "naïve café — 東京 is fine", "  the   film\nwas 🙂 and fine ", "fine", "東🙂é"]


def words(special=True):
    """One token a word, between [CLS] and [SEP]; blanks belong to no token."""
    tok = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="<unk>"))
    tok.pre_tokenizer = pre_tokenizers.Whitespace()
    if special:
        tok.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return PreTrainedTokenizerFast(tokenizer_object=tok, pad_token="<pad>", unk_token="<unk>",
                                   cls_token="[CLS]", sep_token="[SEP]")


def unigram():
    """Pieces with a blank put before the text, as T5's."""
    pieces = [("<unk>", -10.0), ("▁", -3.0), ("▁the", -1.0), ("▁fi", -2.0), ("lm", -2.0), ("ne", -2.0),
              ("▁was", -1.5), ("▁caf", -2.0), ("é", -5.0), *((one, -6.0) for one in "abcdefghiklmnoprstuvw")]
    tok = Tokenizer(models.Unigram(pieces, unk_id=0))
    tok.pre_tokenizer, tok.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tok, unk_token="<unk>")


KINDS = {"words": words, "bytes": gpt2_like, "pieces": unigram}
PAIRS = [("words", "bytes"), ("bytes", "words"), ("words", "pieces"), ("pieces", "bytes"),
         ("bytes", "pieces")]


def ends_by_hand(kind, text):
    """Character at which a token ends -> its place, by counting the letters or bytes of the tokens' names."""
    if kind == "words":
        return {found.end(): place for place, found in enumerate(re.finditer(r"\w+|[^\w\s]+", text), 1)}
    tokenizer = KINDS[kind]()
    ends, read = {}, 0
    for place, token in enumerate(tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])):
        read += len(token)
        if kind == "pieces":  # a blank is put before the text
            ends[read - (text[0] != " ")] = place
        else:  # a letter of the name is a byte
            ends |= {end: place for end in range(len(text) + 1) if len(text[:end].encode()) == read}
    ends.pop(0, None)
    return ends


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_aligned_tokens_are_those_that_end_at_one_character(one, other):
    texts = KNOWN if "pieces" in (one, other) else SOME
    aligned = align(KINDS[one](), KINDS[other](), texts, 64)
    for row, text in enumerate(texts):
        picks = [read[2][1][read[2][0] == row].tolist() for read in (aligned.origin, aligned.receiving)]
        ends = ends_by_hand(one, text), ends_by_hand(other, text)
        common = sorted(ends[0].keys() & ends[1].keys())
        assert len(common) > 0 and picks == [[side[end] for end in common] for side in ends]


def test_a_sentence_of_words_and_bytes_by_hand():
    first, second = words(), gpt2_like()
    aligned = align(first, second, ["the film was fine"], 64)
    rows, places = aligned.origin[2]
    assert rows.tolist() == [0] * 4 and places.tolist() == [1, 2, 3, 4]  # [CLS] is 0, [SEP] 5
    bytes_ = second.convert_ids_to_tokens(aligned.receiving[0][0].tolist())
    assert bytes_ == ["t", "he", "Ġf", "i", "l", "m", "Ġ", "w", "a", "s", "Ġfine"]
    assert [bytes_[place] for place in aligned.receiving[2][1]] == ["he", "m", "s", "Ġfine"]


def test_of_the_bytes_of_a_letter_the_last_one_counts():
    second = gpt2_like()
    aligned = align(words(), second, ["café is 東"], 64)
    read = second.convert_ids_to_tokens(aligned.receiving[0][0].tolist())
    assert [read[place] for place in aligned.receiving[2][1]] == ["©", "s", "±"]
    assert read.count("Ã") == 1 and aligned.origin[2][1].tolist() == [1, 2, 3]


def test_leading_and_trailing_blanks_change_no_pick_of_a_word():
    for text in ("  the film", "the film  ", "\nthe\tfilm"):
        aligned = align(words(), unigram(), [text], 64)
        assert aligned.origin[2][1].tolist() == [1, 2]


def test_equal_tokenizers_give_every_token_special_ones_too():
    aligned = align(words(), words(), SOME, 64)
    assert aligned.tokens == int(aligned.origin[1].sum()) == sum(map(len, words()(SOME)["input_ids"]))
    for one, other in zip(aligned.origin[2], aligned.receiving[2], strict=True):
        assert torch.equal(one, other)


def test_one_vocabulary_read_with_and_without_special_tokens_is_aligned_by_characters():
    aligned = align(words(), words(special=False), ["the film was fine", "fine"], 64)
    assert (aligned.origin[2][1] - aligned.receiving[2][1]).tolist() == [1] * 5
    ids = [read[0][read[2]] for read in (aligned.origin, aligned.receiving)]
    assert torch.equal(*ids)


def test_of_a_text_that_is_cut_only_what_both_read_counts():
    text = "the film was fine and is fine"
    aligned = align(words(), gpt2_like(), [text], 9)
    assert aligned.receiving[0].shape == (1, 9) and aligned.origin[0].shape == (1, 9)
    assert aligned.receiving[2][1].tolist() == [1, 5]  # "the film" + " wa"
    assert aligned.origin[2][1].tolist() == [1, 2]


def test_a_letter_that_is_cut_in_two_does_not_count():
    second = gpt2_like()
    assert second.convert_ids_to_tokens(second("is é")["input_ids"]) == ["i", "s", "Ġ", "Ã", "©"]
    assert align(words(), second, ["is é"], 4).receiving[2][1].tolist() == [1]
    assert align(words(), second, ["is é"], 6).receiving[2][1].tolist() == [1, 4]


def test_rows_are_padded_on_the_right_and_the_order_is_that_of_the_texts():
    aligned = align(words(), gpt2_like(), SOME, 64)
    for ids, mask, (rows, places) in (aligned.origin, aligned.receiving):
        assert ids.shape == mask.shape and rows.tolist() == sorted(rows.tolist())
        assert mask[rows, places].all()
        assert (mask.diff(dim=1) <= 0).all()


def test_a_slow_tokenizer_is_refused_in_one_sentence_and_taken_where_both_read_the_same():
    class Slow:
        is_fast, pad_token_id = False, 0

        def __init__(self, made):
            self.made = made

        def get_vocab(self):
            return self.made.get_vocab()

        def __call__(self, texts, **options):
            assert "return_offsets_mapping" not in options
            return self.made(texts, **options)

    with pytest.raises(UserError, match="tokenizers differ, and Slow does not say .* as a fast") as error:
        align(gpt2_like(), Slow(words()), SOME, 64)
    assert "\n" not in str(error.value)
    assert align(Slow(words()), Slow(words()), SOME, 64).tokens == align(words(), words(), SOME, 64).tokens


@pytest.fixture
def hosts(tmp_path):
    """Two hosts whose tokenizers are not one another's."""
    made = []
    for name, tokenizer in (("one", words()), ("other", gpt2_like())):
        torch.manual_seed(0)
        folder = tmp_path / name
        host = model("llama", 32, 2, 4)
        host.resize_token_embeddings(300)
        host.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        made.append(load_host(describe(HostSource(name, path=str(folder)))))
    return tuple(made)


def test_texts_without_a_common_token_are_refused_in_one_sentence(hosts):
    blanks = calibration("long", ["fine" * 200])  # cut by both before any character at which both end
    space = Space("decoder", 0, "query", "in")
    with pytest.raises(UserError, match="texts 'long' give 0 tokens that both hosts have") as error:
        moments(*hosts, [(space, space)], blanks)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="'long' give 0 tokens that hosts 'one' and 'other' both have"):
        alike_in_states(hosts, ("decoder", "decoder"), blanks)


def test_hosts_of_unlike_tokenizers_are_compared_at_the_same_characters(hosts):
    """The embeddings' moments are those of the tokens, added up by hand."""
    text = "the film was fine"
    texts = calibration("texts", [text, "fine film", *(f"the film is fine {'and fine ' * count}"
                                                       for count in range(1, 14))], tokens=70)
    space = Space("shared", 0, "embedding", "out")
    found = moments(*hosts, [(space, space)], texts)[space, space]
    tables = [host.model.get_input_embeddings().weight.double() for host in hosts]
    cross = torch.zeros(32, 32, dtype=torch.float64)
    tokens = 0
    for one in texts.texts:
        first, second = ({end: number for (_, end), number in zip(read["offset_mapping"], read["input_ids"],
                                                                  strict=True)}
                         for read in (host.tokenizer(one, return_offsets_mapping=True) for host in hosts))
        for end in (first.keys() & second.keys()) - {0}:
            cross += torch.outer(tables[0][first[end]], tables[1][second[end]])
            tokens += 1
    assert found.tokens == tokens and torch.allclose(found.cross, cross, atol=1e-5)
