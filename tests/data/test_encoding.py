"""Questions are cut in their text, never in the words that ask."""

from dataclasses import replace

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from portability.core.errors import UserError
from portability.core.specs import TaskSpec
from portability.data.tokenization import Encoded, encode

LETTERS = ["</s>", "<unk>", *"abcdefghijklmnopqrstuvwxyz?:"]
TEXTS = ["abc de", "a", "ab cd ef gh ij", "abcdefghijklmnopqrst"]
TASK = TaskSpec("q: {text} is? ", ("no", "yes"), 12)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    tok = Tokenizer(models.WordLevel({letter: i for i, letter in enumerate(LETTERS)}, unk_token="<unk>"))
    tok.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(),
                                                 pre_tokenizers.Split("", "isolated")])
    tok.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tok, eos_token="</s>", unk_token="<unk>")


def dataset(texts: list[str] = TEXTS) -> list[tuple[str, int]]:
    return [(text, i % 2) for i, text in enumerate(texts)]


def words(encoded: Encoded) -> list[str]:
    return ["".join(LETTERS[i] for i in encoded.row(index)) for index in range(len(encoded))]


def test_the_tail_of_the_question_is_never_cut(tokenizer):
    found = encode(dataset(), tokenizer, TASK, True)
    assert words(found) == ["q:abcdeis?</s>", "q:ais?</s>", "q:abcdefis?</s>", "q:abcdefis?</s>"]
    assert found.truncated == 2
    assert max(found.lengths) == TASK.max_length


def test_a_text_loses_whole_words_and_letters_only_where_its_first_word_is_too_long(tokenizer):
    found = encode(dataset(["abcd efgh", "abcdefgh ij"]), tokenizer, TASK, True)
    assert words(found) == ["q:abcdis?</s>", "q:abcdefis?</s>"]


def test_a_host_with_a_head_sees_the_text_alone(tokenizer):
    found = encode(dataset(), tokenizer, TASK, False)
    assert words(found) == ["abcde</s>", "a</s>", "abcdefghij</s>", "abcdefghijk</s>"]
    assert found.truncated == 1


def test_labels_lengths_and_ids_agree(tokenizer):
    found = encode(dataset(), tokenizer, TASK, True)
    assert found.labels.tolist() == [0, 1, 0, 1] and len(found) == 4
    assert found.lengths.tolist() == [len(found.row(i)) for i in range(4)]
    assert found.ids.dtype == np.int32 and len(found.ids) == found.offsets[-1]


def test_braces_in_a_text_are_text(tokenizer):
    found = encode(dataset(["a {text} b", "b"]), tokenizer, replace(TASK, max_length=20), True)
    assert words(found)[0] == "q:a<unk>text<unk>bis?</s>"


def test_a_limit_without_room_is_refused(tokenizer):
    task = replace(TASK, max_length=6)
    with pytest.raises(UserError, match="max_length 6 leaves no room for the text: the question alone takes "
                       "6"):
        encode(dataset(), tokenizer, task, True)


def test_a_text_without_tokens_is_refused(tokenizer):
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    with pytest.raises(UserError, match="finds no token in '\\\\u200b'"):
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split("\u200b", "removed")
        encode(dataset(["\u200b", "a"]), tokenizer, TASK, False)
