"""Sets of more than two labels, and of pairs of texts: read, refused, asked about and cut."""

from dataclasses import replace

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from portability.core.errors import UserError
from portability.core.specs import TaskSpec
from portability.data.sources import DataSource, check, read_split, task_spec
from portability.data.splits import guard, key_of, rows_digest
from portability.data.tokenization import encode
from support.tiny import write_set

NAMES = ("world", "sports", "business")
TASK = TaskSpec("{text} ?", ("negative", "positive"), 32)
TWICE = replace(TASK, template="if {text} then {text_pair} ?")
TOPICS = [{"text": f"text {i}", "label": NAMES[i % 3]} for i in range(6)]
CLAIMS = [{"premise": f"one {i}", "claim": f"two {i}", "label": i % 2} for i in range(6)]


def topics(folder, rows=TOPICS, **fields):
    source = DataSource("topics", path=str(write_set(folder, rows, rows, rows)), labels=NAMES)
    return replace(source, **fields)


def claims(folder, rows=CLAIMS, **fields):
    source = DataSource("claims", path=str(write_set(folder, rows, rows, rows)), text_column="premise",
                        pair_column="claim")
    return replace(source, **fields)


def test_labels_are_read_by_name_or_number_and_pairs_in_their_order(tmp_path):
    found = read_split(topics(tmp_path / "a"), "train")
    assert found == [(f"text {i}", i % 3) for i in range(6)]
    numbered = [row | {"label": NAMES.index(row["label"])} for row in TOPICS]
    assert read_split(topics(tmp_path / "b", numbered), "train") == found
    stars = [row | {"label": 3 + NAMES.index(row["label"])} for row in TOPICS]  # whole numbers are names, too
    assert read_split(topics(tmp_path / "c", stars, labels=(3, 4, 5)), "train") == found
    assert read_split(claims(tmp_path / "d"), "test") == [((f"one {i}", f"two {i}"), i % 2) for i in range(6)]


def test_a_figure_that_is_a_name_is_no_place_among_the_names(tmp_path):
    rows = [{"text": f"a {stars}", "label": stars} for stars in (1, 2, "3", 1)]
    found = read_split(topics(tmp_path / "a", rows, labels=("1", "2", "3")), "train")
    assert [label for _, label in found] == [0, 1, 2, 0]
    with pytest.raises(UserError, match="label must be one of 1, 2, 3, got 0"):
        read_split(topics(tmp_path / "b", [*rows, rows[0] | {"label": 0}], labels=("1", "2", "3")), "train")
    with pytest.raises(UserError, match="label must be one of 3, 4, got '3'"):
        read_split(topics(tmp_path / "c", [{"text": "a", "label": "3"}], labels=(3, 4)), "train")


@pytest.mark.parametrize(("row", "says"), [
    ({"text": "a", "label": "weather"}, "label must be one of world, sports, business, or a number from 0 to "
     "2, got 'weather'"),
    ({"text": "a", "label": 3}, "number from 0 to 2, got 3"), ({"text": "a", "label": -1}, "got -1"),
    ({"text": "a", "label": True}, "got True"), ({"text": "a", "label": ["world"]}, r"got \['world'\]"),
])
def test_a_label_that_is_none_of_the_names_is_one_sentence(tmp_path, row, says):
    with pytest.raises(UserError, match=f"train.jsonl line 7: .*{says}") as caught:
        read_split(topics(tmp_path, [*TOPICS, row]), "train")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("row", "says"), [
    ({"premise": "a", "label": 0}, "has no 'claim'"),
    ({"premise": "a", "claim": None, "label": 0}, "the second text must be a text that is not blank, got N"),
    ({"premise": "a", "claim": " ", "label": 0}, "the second text must be a text that is not blank"),
    ({"claim": "a", "label": 0}, "has no 'premise'"),
])
def test_a_missing_text_of_a_pair_is_one_sentence(tmp_path, row, says):
    with pytest.raises(UserError, match=f"train.jsonl line 7:? {says}|line 7: {says}"):
        read_split(claims(tmp_path, [*CLAIMS, row]), "train")


def test_a_split_of_one_label_is_refused_by_its_name(tmp_path):
    with pytest.raises(UserError, match="holds only examples of label sports; another one is needed"):
        read_split(topics(tmp_path, [TOPICS[1], TOPICS[4]]), "train")


@pytest.mark.parametrize(("fields", "says"), [
    ({"labels": ("a",)}, r"labels must name from 2 to 128 labels, none twice and none blank, got \['a'\]"),
    ({"labels": ("1", 1)}, "none twice"), ({"labels": ("a", " ")}, "none blank"),
    ({"labels": tuple(range(129))}, "from 2 to 128"),
    ({"answers": {"scoring": "choice"}, "pair_column": "x"}, "of texts with labels, and answers of prompts"),
])
def test_a_source_that_contradicts_itself_is_refused(fields, says):
    with pytest.raises(UserError, match=f"data set 'mine': .*{says}"):
        check(DataSource("mine", path="x", **fields))


def test_a_set_is_asked_about_as_it_says_and_else_as_the_study():
    plain = DataSource("films", path="x")
    assert task_spec(plain, TASK) == TASK
    assert task_spec(replace(plain, labels=NAMES), TASK) == replace(TASK, label_words=NAMES)
    own = {"label_words": ["w", "s", "b"], "max_length": 8}
    assert task_spec(replace(plain, labels=NAMES, task=own), TASK) == TaskSpec("{text} ?", ("w", "s", "b"), 8)
    pairs = replace(plain, pair_column="claim", task={"template": TWICE.template})
    assert task_spec(pairs, TASK) == TWICE and TWICE.pairs and not TASK.pairs


@pytest.mark.parametrize(("fields", "task", "says"), [
    ({}, replace(TASK, label_words=("a", "b", "c")), r"has 2 labels \(0, 1\) and 3 label words \(a, b, c\); "
     "name the labels in data.mine.labels, or as many words in data.mine.task.label_words"),
    ({"labels": NAMES, "task": {"label_words": ["a", "b"]}}, TASK, "has 3 labels .* and 2 label words"),
    ({"labels": NAMES, "task": {"label_words": ["a"]}}, TASK, "data.mine.task.label_words must name from 2"),
    ({"pair_column": "b"}, TASK, "has no place for the second one; put {text_pair} into data.mine.task.t"),
    ({}, TWICE, "has single texts, and its template .* asks about pairs; name .* data.mine.pair_column"),
    ({"task": {"template": "{text_pair} ?"}}, TASK, "data.mine.task.template must hold {text} exactly once"),
    ({"task": {"words": ["a", "b"]}}, TASK, "unknown key in data.mine.task 'words'"),
])
def test_a_set_that_cannot_be_asked_about_is_one_sentence(fields, task, says):
    with pytest.raises(UserError, match=says):
        task_spec(DataSource("mine", path="x", **fields), task)


def test_pairs_leak_where_both_texts_do_and_are_named_by_both():
    same, turned = (("its good", "So!"), 0), (("so", "its good"), 0)
    assert key_of((("It 's GOOD .", "so"), 1)) == key_of(same) != key_of(turned)
    train, test = [(("a", "b"), 0), (("a", "c"), 1), (("b", "a"), 0)], [(("A", "B!"), 1), (("x", "y"), 0)]
    assert guard({"one": {"train": train, "test": test}}, "drop")["one"].dropped == (0,)
    digests = {rows_digest([row]) for row in [*train, ("a b", 0), (("a", "b"), 1)]}
    assert len(digests) == 5


# ---- as hosts read them


@pytest.fixture
def bert():
    """A tokenizer that puts pairs together as BERT's does."""
    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *"abcdefghijkl", "if", "then", "?"]
    tok = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tok.pre_tokenizer = pre_tokenizers.Whitespace()
    tok.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=tok, unk_token="[UNK]", pad_token="[PAD]")


def words(tokenizer, encoded):
    return [" ".join(tokenizer.convert_ids_to_tokens(encoded.row(i))) for i in range(len(encoded))]


def test_encoders_get_the_tokenizers_own_pair_and_the_second_texts_types(bert):
    found = encode([(("a b", "c"), 0), (("d", "e f g"), 2)], bert, TWICE, False)
    assert words(bert, found) == ["[CLS] a b [SEP] c [SEP]", "[CLS] d [SEP] e f g [SEP]"]
    assert found.types.tolist() == [0, 0, 0, 0, 1, 1, 0, 0, 0, 1, 1, 1, 1] and found.labels.tolist() == [0, 2]
    assert encode([("a b", 0)], bert, TASK, False).types is None


def test_language_models_get_both_texts_in_the_template(bert):
    found = encode([(("a {text_pair}", "c"), 0)], bert, TWICE, True)
    assert found.types is None and words(bert, found) == [
        "[CLS] if a [UNK] [UNK] [UNK] then c ? [SEP]"]  # braces of a text are text


def test_a_long_pair_loses_the_end_of_its_longer_text_first(bert):
    pairs = [(("a b c d e f", "g h"), 0), (("a b", "c d e f g h i"), 1), (("a b c d", "e f g h"), 0),
             (("a", "b"), 1)]
    found = encode(pairs, bert, replace(TWICE, max_length=8), False)
    assert words(bert, found) == [
        "[CLS] a b c [SEP] g h [SEP]", "[CLS] a b [SEP] c d e [SEP]", "[CLS] a b [SEP] e f [SEP]",
        "[CLS] a [SEP] b [SEP]"]
    assert found.truncated == 3 and len(found.types) == len(found.ids)
    with pytest.raises(UserError, match="max_length 3 leaves no room for the text: the question alone takes "
                       "3"):
        encode(pairs, bert, replace(TWICE, max_length=3), False)


@pytest.mark.parametrize(("task", "text"), [(TASK, ("a", "b")), (TWICE, "a")])
def test_a_question_about_other_texts_is_refused(bert, task, text):
    with pytest.raises(UserError, match="is about (single texts, and this is a pair|pairs of texts, and this "
                       "is a single one)"):
        encode([(text, 0)], bert, task, True)


def test_the_types_are_padded_as_the_ids_are_and_only_for_hosts_that_know_segments(load, bert):
    from portability.data.sampling import Bucket
    from portability.tasks.classification import Scorer

    found = encode([(("a b", "c"), 0), (("d", "e f g"), 1)], bert, TWICE, False)
    picks, bucket = np.array([[1, 0]]), Bucket(np.arange(2), 7)
    ids, mask, target, types = Scorer(load("bert", 32, 2, 4), TWICE).rows(found, picks, 2, bucket)
    assert types.tolist() == [[[0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1, 0]]] and types.shape == ids.shape
    assert target.tolist() == [[1, 0]] and mask.sum().item() == 13
    assert len(Scorer(load("distilbert", 32, 2, 4), TWICE).rows(found, picks, 2, bucket)) == 3


@pytest.mark.parametrize("config", ["PromptTuningConfig", "PrefixTuningConfig"])
def test_what_stands_before_a_pair_leaves_it_its_types(load, bert, config):
    import torch

    from portability.core.specs import MethodSpec
    from portability.data.sampling import Bucket
    from portability.methods import attach
    from portability.tasks.classification import Scorer

    method = MethodSpec("p", "peft", config, {"num_virtual_tokens": 3}, 1e-3)
    attached = attach(load("bert", 32, 2, 4), method)
    scorer = Scorer(attached.host, TWICE)
    found = encode([(("a b", "c d"), 0), (("a", "e f"), 1)], bert, TWICE, False)
    ids, mask, target, types = scorer.rows(found, np.arange(2), 2, Bucket(np.arange(2), 7))
    values = {f"model.{name}": value for name, value in attached.to_parameters(
        attached.init_parameters(0)).items()} | scorer.fresh_head(0)
    with torch.no_grad():
        told, same = (scorer.logits(values, ids, mask, target, one)
                      for one in (types, torch.zeros_like(types)))
        assert told.shape == (2, 2) and not torch.allclose(told, same)
        assert torch.equal(same, scorer.logits(values, ids, mask, target))  # one text is of the first kind
