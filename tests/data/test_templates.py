"""Choices behind letters, words around prompts, published files of chats, prompts as chats, and a fixed draw
of the training examples."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from portability.config.compose import composed, options
from portability.config.schema import Config
from portability.config.study import checked
from portability.core.errors import UserError
from portability.core.specs import AnswerSpec
from portability.data.examples import Example
from portability.data.sources import DataSource, answer_spec, read_split
from portability.data.splits import rows, study_data
from portability.data.tokenization import encode_answers, encode_choices, encode_prompts
from portability.hosts.host import load_host
from portability.hosts.sources import HostSource, describe
from portability.planning.plan import plan
from portability.tasks.generation import AnswerScorer, Generation
from support.studies import study
from support.tokenizers import gpt2_like

MMLU = {"question": "Which of these is a virus?", "subject": "high_school_biology", "answer": 2,
        "choices": ["Yeast", "E. coli", "HIV ", "Yeast"], "split": "dev"}
# their file data/mmlu/mmlu_data_1000.jsonl has its lines in this form
PUBLISHED = {"dataset": "mmlu", "category": "high_school_biology", "id": "biology_7", "messages": [
    {"role": "user", "content": "The following are multiple choice questions (with answers) about high "
     "school biology.\n\nWhich of these is a virus?\nA. Yeast\nB. E. coli\nC. HIV\nD. Yeast\nAnswer:"},
    {"role": "assistant", "content": "The answer is: C"}]}
OTHER = {**PUBLISHED, "messages": [{"role": "user", "content": "Who is who?"}, PUBLISHED["messages"][1]]}
NAMES = {"prompt": "question", "choices": "choices", "answer": "answer"}
CHOICE = {"scoring": "choice"}


def written(folder, **splits):
    for split, lines in splits.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder)


@pytest.fixture
def source(tmp_path):
    """Their file to train on, and a test split of another form, put into their words by conf/data."""
    conf = study_conf("zhong_mmlu")
    return DataSource("mmlu", path=written(tmp_path, test=[MMLU], mine=[PUBLISHED, OTHER]),
                      splits={"train": f"{tmp_path}/mine.jsonl", "test": "test"}, columns=NAMES,
                      lettered=True, templates=conf["templates"], answers=conf["answers"])


def study_conf(name):
    """What conf/data says of a set."""
    conf: Config = checked(composed(options(["data_root=/d"])))
    return conf.data[name]


def test_a_published_file_of_chats_is_read_as_it_is_and_the_test_is_put_in_its_words(source):
    train, (test,) = read_split(source, "train"), read_split(source, "test")
    asked, answer = (turn["content"] for turn in PUBLISHED["messages"])
    assert [(one.turns, one.answer) for one in train] == [((("user", asked),), answer),
                                                         ((("user", "Who is who?"),), answer)]
    assert test == Example(asked, answer, tuple(f"The answer is: {letter}" for letter in "ABCD"), 2)


def test_a_question_of_the_test_in_a_file_of_chats_is_found_by_the_leak_guard(source):
    found = study_data([source], "drop")
    assert found.counts["mmlu"]["train"] == 1 and found.dropped["mmlu"] == [0]
    assert rows(found, "mmlu", "train", 0)[0].turns == (("user", "Who is who?"),)


def test_letters_are_those_of_all_choices_even_where_two_are_alike(tmp_path):
    plain = DataSource("a", path=written(tmp_path, train=[MMLU], test=[MMLU]), columns=NAMES,
                       splits={"train": "train", "test": "test"}, answers=CHOICE)
    assert read_split(plain, "test")[0].choices == ("Yeast", "E. coli", "HIV ")
    found = read_split(DataSource(**{**vars(plain), "lettered": True}), "test")[0]
    asked = "Which of these is a virus?\nA. Yeast\nB. E. coli\nC. HIV\nD. Yeast\nAnswer:"
    assert found == Example(asked, "C", ("A", "B", "C", "D"), 2)


def test_both_splits_may_be_files_without_a_folder(tmp_path):
    written(tmp_path, one=[PUBLISHED], two=[OTHER])
    alone = DataSource("a", splits={"train": f"{tmp_path}/one.jsonl", "test": f"{tmp_path}/two.jsonl"},
                       answers={"scoring": "rouge_l", "new_tokens": 4})
    assert study_data([alone], "drop").counts["a"]["test"] == 1
    with pytest.raises(UserError, match="give either a path or a hub id"):
        read_split(DataSource("a", splits={"train": f"{tmp_path}/one.jsonl", "test": "two"}), "train")


@pytest.mark.parametrize(("fields", "message"), [
    ({"templates": {"promt": "{{ prompt }}"}}, "templates are of prompt and answer, got one of 'promt'"),
    ({"templates": {"prompt": "{{ prompt"}}, "data set 'a': the template of prompt cannot be read"),
    ({"templates": {"prompt": "{{ topic }} {{ prompt }}"}}, "test.jsonl line 1: .*'topic' is undefined"),
    ({"templates": {"prompt": " {% if 0 %}{% endif %}"}}, "line 1: the prompt must be a text that"),
    ({"templates": {"prompt": "{{ prompt | batch }}"}}, "line 1: the template of prompt cannot be filled"),
    ({"templates": {"answer": "same"}}, "line 1: the template of answer makes one text of two choices"),
    ({"templates": {"prompt": "{{ prompt.__class__.__mro__ }}"}}, "line 1: .*unsafe"),
    ({"templates": {"prompt": "{{ prompt }}"}, "answers": None, "columns": {}}, "texts with labels have"),
    ({"lettered": True, "answers": {"scoring": "rouge_l", "new_tokens": 4}}, "lettered is of answers"),
    ({"answers": CHOICE | {"chat": "hots"}}, r"data.a.answers.chat must be 'host', .* got 'hots'"),
    ({"answers": CHOICE | {"chat": 3}}, r"data.a.answers.chat must be 'host', .* got 3"),
])
def test_what_cannot_be_put_into_words_is_refused(tmp_path, fields, message):
    given = {"columns": NAMES, "answers": CHOICE, "splits": {"train": "test", "test": "other"}}
    path = written(tmp_path, test=[MMLU], other=[MMLU])
    with pytest.raises(UserError, match=message):
        found = DataSource("a", path=path, **{**given, **fields})
        read_split(found, "train")
        answer_spec(found, 32)


def test_more_choices_than_letters_are_refused(tmp_path):
    many = MMLU | {"choices": [f"{number}" for number in range(27)]}
    found = DataSource("a", path=written(tmp_path, train=[many], test=[many]), columns=NAMES, answers=CHOICE,
                       lettered=True, splits={"train": "train", "test": "test"})
    with pytest.raises(UserError, match="line 1: 27 choices are more than there are letters"):
        read_split(found, "train")


# ---- prompts as chats

CHAT = Example("user: a\nassistant: b\nuser: the fine\nassistant:", "fine",
               turns=(("user", " a "), ("assistant", "b"), ("user", "the fine")))


def ids(encoded, row=0):
    return encoded.row(row).tolist()


def test_a_given_template_writes_prompts_and_chats_for_every_host():
    tok, given = gpt2_like(), study_conf("zhong_lima")["answers"]["chat"]
    tok.chat_template, tok.bos_token = "{{ raise_exception('its own') }}", tok.eos_token

    def plain(text):
        return tok(text, add_special_tokens=False)["input_ids"]

    end, head = tok.eos_token, "<|user|>\na\n\n<|assistant|>\nb\n\n<|user|>\nthe fine\n\n<|assistant|>\n"
    examples = [CHAT, Example("the fine", "fine", ("fine", "in"), 0)]
    texts = [f"{end}{head}", f"{end}<|user|>\nthe fine\n\n<|assistant|>\n"]
    trained = encode_answers(examples, tok, "gpt2", 999, chat=given)
    asked = encode_prompts(examples, tok, "gpt2", 999, 4, chat=given)
    for row, text in enumerate(texts):
        assert ids(trained, row) == plain(f"{text}fine{end}") and ids(asked, row) == plain(text)
    chosen = encode_choices(examples[1:], tok, "gpt2", 999, chat=given)
    assert [ids(chosen, row) for row in (0, 1)] == [plain(f"{texts[1]}{one}{end}") for one in ("fine", "in")]


def test_the_hosts_own_template_is_asked_for_by_name_and_one_without_is_refused():
    tok, prompt = gpt2_like(), [Example("the fine", "fine")]
    with pytest.raises(UserError, match="has no chat template, as data.NAME.answers.chat=host asks"):
        encode_answers(prompt, tok, "gpt2", 99, chat="host")
    tok.chat_template = "{% for m in messages %}{{ m.role }}> {{ m.content }}\n{% endfor %}"
    templated = encode_answers(prompt, tok, "gpt2", 99, chat="host")
    assert tok.decode(ids(templated)) == f"user> the fine\nfine{tok.eos_token}"
    assert tok.decode(ids(encode_answers(prompt, tok, "gpt2", 99))) == f"the fine fine{tok.eos_token}"


def test_a_given_template_that_cannot_be_filled_is_refused():
    with pytest.raises(UserError, match="the given chat template refuses the chat 'the fine'"):
        encode_answers([Example("the fine", "fine")], gpt2_like(), "gpt2", 99, chat="{{ messages[0].content")


def test_a_chat_is_part_of_a_runs_identity_only_where_it_is_asked_for():
    older = {"scoring": "choice", "normaliser": None, "likelihood": "sum", "new_tokens": None,
             "max_length": 9, "too_long": "refuse"}
    spec = AnswerSpec("choice", None, "sum", None, 9)
    assert spec.identity() == older
    assert AnswerSpec("choice", None, "sum", None, 9, chat="host").identity() == older | {"chat": "host"}


def test_letters_are_scored_as_a_plain_loop_does(tmp_path):
    """On a tiny Llama: log-probability of the letter behind the question, and of the end behind it."""
    tok = gpt2_like()
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tok), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        initializer_range=0.4, eos_token_id=0, bos_token_id=0)).save_pretrained(tmp_path)
    tok.save_pretrained(tmp_path)
    host = load_host(describe(HostSource("a", path=str(tmp_path))))
    data = tmp_path / "data"
    data.mkdir()
    asked = [MMLU, MMLU | {"answer": 0, "question": "What is it?"}, MMLU | {"answer": 1, "question": "Why?"}]
    found = DataSource("a", path=written(data, train=asked, test=asked), columns=NAMES, lettered=True,
                       answers=CHOICE, splits={"train": "train", "test": "test"})
    task = Generation(answer_spec(found, 256))
    test = task.prompts(read_split(found, "test"), host.tokenizer, "llama")
    scored = AnswerScorer(host, task.spec).predict({}, test, 4)
    for place, question in enumerate(asked):
        text = "\n".join([question["question"], "A. Yeast", "B. E. coli", "C. HIV", "D. Yeast", "Answer:"])
        sums = []
        for letter in "ABCD":
            row = torch.tensor([[*tok(text)["input_ids"], *tok(f" {letter}")["input_ids"], 0]])
            count = row.shape[1] - len(tok(text)["input_ids"])
            with torch.no_grad():
                logits = host.model(input_ids=row).logits.log_softmax(-1)[0, -count - 1 : -1]
            sums.append(float(logits.gather(1, row[0, -count:, None]).sum()))
        right = question["answer"]
        best = max(value for letter, value in enumerate(sums) if letter != right)
        assert float(scored.margin[0, place]) == pytest.approx(sums[right] - best, abs=1e-4)
        assert float(scored.score[0, place]) == (int(np.argmax(sums)) == right)


# ---- the same examples for all seeds


def test_a_fixed_draw_of_the_training_examples_is_the_same_for_every_seed(sets):
    got = study("+sweep=extract", "grid.seeds=[0,1]", "grid.train_examples=20", "+data.quiz.train_examples=9",
                f"data.sums.path={sets}/written")
    assert [got.data.counts[name]["train"] for name in ("sums", "quiz")] == [20, 9]
    runs = [run for run in plan(got.grid).runs.values() if run.data.name == "sums"]
    assert {run.seed for run in runs if run.method} == {0, 1} and runs[0].data.counts["train"] == 20
    sums = {count: study_data([replace(source, train_examples=count)], "drop")
            for source in got.sources if source.name == "sums" for count in (20, 30, None)}
    keys = {count: [one.prompt for one in rows(found, "sums", "train", 0)] for count, found in sums.items()}
    assert [len(found) for found in keys.values()] == [20, 30, 80]
    assert set(keys[20]) < set(keys[30]) and keys[20] != keys[None][:20]
    assert keys[20] == [prompt for prompt in keys[None] if prompt in set(keys[20])], "in the set's order"
    digests = {count: found.digests["sums"]["train"] for count, found in sums.items()}
    assert {run.data.train_digest for run in runs} == {digests[20]} and len({*digests.values()}) == 3


def test_what_the_leak_guard_drops_is_not_drawn(tmp_path):
    lines = [{"prompt": f"{n} + 1", "answer": str(n + 1)} for n in range(12)]
    found = DataSource("a", path=written(tmp_path, train=lines, test=lines[:9]), train_examples=3,
                       splits={"train": "train", "test": "test"},
                       answers={"scoring": "exact_match", "new_tokens": 4})
    data = study_data([found], "drop")
    assert [one.prompt for one in rows(data, "a", "train", 0)] == ["9 + 1", "10 + 1", "11 + 1"]
    assert (data.counts["a"]["train"], data.counts["a"]["dropped"]) == (3, 9)


def test_a_draw_of_one_label_is_refused(tmp_path):
    lines = [{"text": f"film {n}", "label": n % 2} for n in range(6)]
    test = [{"text": "x", "label": 0}, {"text": "y", "label": 1}]
    found = DataSource("a", path=written(tmp_path, train=lines, test=test), train_examples=1,
                       splits={"train": "train", "test": "test"})
    with pytest.raises(UserError, match="data set 'a': train_examples 1 leaves examples of one label only"):
        study_data([found], "drop")


def test_a_split_is_read_where_the_file_of_another_is_elsewhere(source, tmp_path):
    (tmp_path / "mine.jsonl").unlink()
    assert read_split(source, "test")[0].answer == "The answer is: C"
    with pytest.raises(UserError, match="no file .*mine.jsonl for its train split"):
        study_data([source], "drop")
