"""Questions are cut in their text, never in the words that ask; the same texts are tokenised once."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from portability.core.errors import UserError
from portability.core.specs import TaskSpec
from portability.data import tokenization as encoding
from portability.data.tokenization import Encoded, encode

LETTERS = ["</s>", "<unk>", *"abcdefghijklmnopqrstuvwxyz?:"]
TEXTS = ["abc de", "a", "ab cd ef gh ij", "abcdefghijklmnopqrst"]
TASK = TaskSpec("q: {text} is? ", ("no", "yes"), 12)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("PORTABILITY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "encoded"


class Counting(PreTrainedTokenizerFast):
    """One token a letter and </s> at the end, as T5 adds it; counts its calls."""

    calls = 0

    def __call__(self, *args, **kwargs):
        self.calls += 1
        return super().__call__(*args, **kwargs)


@pytest.fixture
def tokenizer() -> Counting:
    tok = Tokenizer(models.WordLevel({letter: i for i, letter in enumerate(LETTERS)}, unk_token="<unk>"))
    tok.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(),
                                                 pre_tokenizers.Split("", "isolated")])
    tok.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 0)])
    return Counting(tokenizer_object=tok, eos_token="</s>", unk_token="<unk>")


def dataset(texts: list[str] = TEXTS) -> Dataset:
    return Dataset.from_dict({"text": texts, "label": [i % 2 for i in range(len(texts))]})


def words(encoded: Encoded) -> list[str]:
    return ["".join(LETTERS[i] for i in encoded.row(index)) for index in range(len(encoded))]


def test_the_tail_of_the_question_is_never_cut(tokenizer):
    found = encode(dataset(), tokenizer, TASK, True, "letters")
    assert words(found) == ["q:abcdeis?</s>", "q:ais?</s>", "q:abcdefis?</s>", "q:abcdefis?</s>"]
    assert found.truncated == 2
    assert max(found.lengths) == TASK.max_length


def test_a_text_loses_whole_words_and_letters_only_where_its_first_word_is_too_long(tokenizer):
    found = encode(dataset(["abcd efgh", "abcdefgh ij"]), tokenizer, TASK, True, "letters")
    assert words(found) == ["q:abcdis?</s>", "q:abcdefis?</s>"]


def test_a_host_with_a_head_sees_the_text_alone(tokenizer):
    found = encode(dataset(), tokenizer, TASK, False, "letters")
    assert words(found) == ["abcde</s>", "a</s>", "abcdefghij</s>", "abcdefghijk</s>"]
    assert found.truncated == 1


def test_labels_lengths_and_ids_agree(tokenizer):
    found = encode(dataset(), tokenizer, TASK, True, "letters")
    assert found.labels.tolist() == [0, 1, 0, 1] and len(found) == 4
    assert found.lengths.tolist() == [len(found.row(i)) for i in range(4)]
    assert found.ids.dtype == np.int32 and len(found.ids) == found.offsets[-1]


def test_braces_in_a_text_are_text(tokenizer):
    found = encode(dataset(["a {text} b", "b"]), tokenizer, replace(TASK, max_length=20), True, "letters")
    assert words(found)[0] == "q:a<unk>text<unk>bis?</s>"


def test_a_limit_without_room_is_refused(tokenizer):
    task = replace(TASK, max_length=6)
    with pytest.raises(UserError, match="max_length 6 leaves no room for the text: the question alone takes "
                       "6"):
        encode(dataset(), tokenizer, task, True, "letters")


def test_a_text_without_tokens_is_refused(tokenizer):
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    with pytest.raises(UserError, match="finds no token in '\\\\u200b'"):
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split("\u200b", "removed")
        encode(dataset(["\u200b", "a"]), tokenizer, TASK, False, "letters")


# ---- the kept files


def same(one: Encoded, other: Encoded) -> bool:
    parts = ((one.ids, other.ids), (one.offsets, other.offsets), (one.labels, other.labels))
    return all(np.array_equal(a, b) for a, b in parts) and one.truncated == other.truncated


def test_the_same_texts_are_tokenised_once(tokenizer, cache):
    first = encode(dataset(), tokenizer, TASK, True, "letters")
    calls = tokenizer.calls
    second = encode(dataset(), tokenizer, TASK, True, "letters")
    assert tokenizer.calls == calls and same(first, second)
    assert isinstance(second.ids.base, np.memmap) or isinstance(second.ids.base.base, np.memmap)
    assert not second.ids.flags.writeable and [path.suffix for path in cache.iterdir()] == [".npy"]


@pytest.mark.parametrize("change", ["text", "label", "template", "limit", "tokenizer", "head"])
def test_anything_that_changes_the_ids_or_labels_is_tokenised_anew(tokenizer, cache, change):
    given = [dataset(), tokenizer, TASK, True, "letters"]
    encode(*given)
    if change == "text":
        given[0] = dataset(["abc df", *TEXTS[1:]])
    elif change == "label":
        given[0] = Dataset.from_dict({"text": TEXTS, "label": [1, 1, 0, 1]})
    elif change in ("template", "limit"):
        given[2] = TaskSpec("x {text}", TASK.label_words, 12) if change == "template" else replace(TASK,
                                                                                                   max_length=13)
    else:
        given[3:] = [False, "letters"] if change == "head" else [True, "other"]
    encode(*given)
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY", b"text", "cut", "other"])
def test_a_broken_file_is_tokenised_anew(tokenizer, cache, damage):
    first = encode(dataset(), tokenizer, TASK, True, "letters")
    (path,) = cache.iterdir()
    whole = path.read_bytes()
    if damage == "other":
        np.save(path, np.arange(40, dtype=np.int32))
    else:
        path.write_bytes(whole[:-4] if damage == "cut" else damage)
    assert same(encode(dataset(), tokenizer, TASK, True, "letters"), first)
    assert path.read_bytes() == whole


def test_a_write_that_fails_leaves_nothing_behind(tokenizer, cache, monkeypatch, caplog):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(encoding.np, "save", full)
    assert encode(dataset(), tokenizer, TASK, True, "letters").truncated == 2
    assert list(cache.iterdir()) == [] and "No space left" in caplog.text
