"""What is wrong with a task of prompts is said in one sentence, and costs nobody else."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from portability.core.errors import UserError
from portability.data.examples import Example
from portability.data.sampling import Bucket, pad_rows
from portability.data.sources import DataSource, answer_spec, read_split
from portability.data.splits import rows
from portability.data.tokenization import encode_answers
from portability.execution import execute
from portability.execution.execute import WorkerContext
from portability.hosts.host import load_host
from portability.hosts.sources import HostSource, describe
from portability.methods import attach
from portability.planning.plan import plan
from portability.run import command
from portability.store import Store
from portability.tasks.generation import AnswerScorer, Generation
from support.answers import of_data, tasks
from support.lora import method

SPECS = {
    "scoring: exact": "unknown data.set.answers.scoring",
    "scoring: exact_match": "new_tokens must be a whole number of tokens",
    "scoring: exact_match, new_tokens: 0": "new_tokens must be a whole number of tokens",
    "scoring: exact_match, new_tokens: 4, normaliser: none": "unknown data.set.answers.normaliser",
    "scoring: choice, new_tokens: 4": "unknown key in data.set.answers, scored by choice",
    "scoring: choice, likelihood: product": "unknown data.set.answers.likelihood",
    "scoring: choice, max_length: many": "max_length must be a whole number of tokens",
}


@pytest.mark.parametrize("text", SPECS)
def test_a_type_of_task_that_is_not_known_is_one_sentence(text):
    given = dict(part.split(": ") for part in text.split(", "))
    answers = {key: int(value) if value.isdigit() else value for key, value in given.items()}
    with pytest.raises(UserError, match=SPECS[text]) as error:
        answer_spec(DataSource("set", path="x", answers=answers), 64)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("lines", "says"), [
    ("", "holds no examples"), ('{"prompt": "a"}\n', "line 1 must be .* exactly "
                                                          "the keys"),
    ('{"prompt": "a", "choices": ["b", "c"], "answer": 0}\n', "has choices, but .*scoring is exact_match"),
])
def test_a_bad_file_is_one_sentence(lines, says, tmp_path):
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text(lines)
    source = DataSource("set", path=str(tmp_path), splits={"train": "train", "test": "test"},
                        answers={"scoring": "exact_match", "new_tokens": 4})
    with pytest.raises(UserError, match=says):
        read_split(source, "train")


def test_columns_of_other_names_are_read_and_others_passed_over(tmp_path):
    line = {"question": "1 + 1 ?", "answer": "2", "level": 3}
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps(line) + "\n")
    source = DataSource("set", path=str(tmp_path), splits={"train": "train", "test": "test"},
                        answers={"scoring": "exact_match", "new_tokens": 4},
                        columns={"prompt": "question", "answer": "answer"})
    assert read_split(source, "train") == [Example("1 + 1 ?", "2")]


@pytest.mark.parametrize(("words", "says"), [
    (("grid.data=[sums]",), "names one set only"),
    (("grid.relations.different=films",), "unknown data set of grid.study_data 'films'"),
    (("task.max_length=3",), "too few for a prompt|leave no room"),
])
def test_what_cannot_be_planned_or_asked_is_one_sentence(words, says, sets, make_host, tmp_path):
    with pytest.raises(UserError, match=says):
        command(tasks(sets, make_host, "llama", f"results={tmp_path}", "study=bad", *words))
    assert list(tmp_path.iterdir()) == []


def test_an_encoder_cannot_answer(sets, make_host):
    with pytest.raises(UserError, match="is an encoder and can neither write an answer"):
        tasks(sets, make_host, "bert")


def test_a_member_that_diverged_leaves_its_neighbours_scores(sets, make_host):
    got = tasks(sets, make_host, "llama")
    for name in ("sums", "quiz"):
        (run,) = of_data(plan(got.grid), name, "bare")
        host = load_host(run.host)
        attached, scorer = attach(host, method()), AnswerScorer(host, run.task)
        fresh = attached.to_parameters(attached.init_parameters(0))
        stacked = {f"model.{key}": torch.stack([value, torch.full_like(value, float("nan"))])
                   for key, value in fresh.items()}
        test = Generation(run.task).prompts(rows(got.data, name, "test", 0), host.tokenizer, "llama")
        both = scorer.predict(stacked, test, 64)
        alone = scorer.predict({key: value[:1] for key, value in stacked.items()}, test, 64)
        for column, value in alone.columns.items():
            assert (both.columns[column][0] == value[0]).all(), column
        assert torch.from_numpy(both.nll[1]).isnan().all()


def test_what_fills_a_batch_up_has_no_loss(sets, make_host):
    got = tasks(sets, make_host, "llama")
    for name in ("sums", "quiz"):
        (run,) = of_data(plan(got.grid), name, "bare")
        host, context = load_host(run.host), WorkerContext(Store("."), got.data)
        scorer, training = AnswerScorer(host, run.task), context.training(host, run)
        bucket, picks = Bucket(np.arange(len(training)), int(training.lengths.max())), np.array([3, 1, 2])
        plain, filled = (scorer.loss({}, *scorer.rows(training, part, 3, bucket))
                         for part in (picks, pad_rows(picks, 4)))
        each = [scorer.loss({}, *scorer.rows(training, picks[i : i + 1], 1, bucket)) for i in range(3)]
        assert float(plain) == pytest.approx(float(filled), abs=1e-6) == pytest.approx(float(sum(each)) / 3,
                                                                                       abs=1e-6)


def test_a_stack_is_cut_to_what_scoring_takes(sets, make_host, tmp_path, monkeypatch):
    got = tasks(sets, make_host, "llama", "grid.inits=[scratch,pissa]", "~grid.relations.different")
    planned, asked = plan(got.grid), []
    runs = [run for run in planned.runs.values() if run.data.name == "sums" and run.method]
    monkeypatch.setattr(execute, "stack_size", lambda one, wanted, device, share: asked.append(one) or 8)
    for batch in (1, 100_000):
        monkeypatch.setattr(AnswerScorer, "scoring_bytes", lambda self, test, size, batch=batch: 1_000_000
                            * batch)
        execute.execute(runs, {run.run_id: [0, 3] for run in runs},
                        WorkerContext(Store(tmp_path / str(batch)), got.data))
    training = asked[0]
    assert training > 1_000_000 and asked == [training, training, 1_000_000 * 100_000]
    scorer = AnswerScorer(load_host(runs[0].host), runs[0].task)
    monkeypatch.undo()
    test = WorkerContext(Store("."), got.data).test(load_host(runs[0].host), runs[0])
    assert scorer.scoring_bytes(test, 16) < scorer.scoring_bytes(test, 1000), "it grows with the batch"


def test_what_no_run_of_a_stack_can_do_fails_each_once(sets, make_host, tmp_path, caplog):
    words = ("grid.inits=[scratch,pissa]", "grid.seeds=[0,1]", "~grid.relations.different",
             "+data.sums.answers.max_length=3", "data.sums.answers.new_tokens=2")
    got, store = tasks(sets, make_host, "llama", *words), Store(tmp_path / "bad")
    runs = [run for run in plan(got.grid).runs.values() if run.data.name == "sums" and run.method]
    execute.execute(runs, {run.run_id: [0, 3] for run in runs}, WorkerContext(store, got.data))
    assert set(store.failures()) == {run.run_id for run in runs} and len(runs) == 4
    assert "halving" not in caplog.text, "no smaller stack could do it"
    errors = {failure["error"] for failure in store.failures().values()}
    assert len(errors) == 1 and "raise max_length of the data set's answers" in errors.pop()
    assert {failure["attempt"] for failure in store.failures().values()} == {1}


def test_two_relations_to_one_set_are_refused(sets, make_host):
    with pytest.raises(UserError, match="takes the seed examples of 'sums' twice from the same set"):
        tasks(sets, make_host, "llama", "grid.relations.different=sums")


def test_a_chat_template_is_part_of_the_host_and_must_not_tell_the_date(make_host, tmp_path):
    spec = make_host("llama")
    found = []
    for text in ("", "{{ messages[0].content }}", "{{ strftime_now('%d') }}{{ messages[0].content }}"):
        folder = tmp_path / str(len(found))
        folder.mkdir()
        for path in Path(spec.source).iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        if text:
            (folder / "chat_template.jinja").write_text(text)
        found.append(describe(HostSource("a", path=str(folder))))
    assert found[0].fingerprint == spec.fingerprint and len({host.fingerprint for host in found}) == 3
    chat = [Example("user: fine\nassistant:", "dull", turns=(("user", "fine"),))]
    plain, templated = (encode_answers(chat, load_host(host).tokenizer, "llama", 16) for host in found[:2])
    assert len(templated.ids) < len(plain.ids)
    with pytest.raises(UserError, match="writes today's date"):
        encode_answers(chat, load_host(found[2]).tokenizer, "llama", 16)


def test_a_normaliser_that_leaves_nothing_is_found_before_anything_runs(tmp_path):
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text('{"prompt": "1 + 1", "answer": "2"}\n{"prompt": "so ?", '
                                                 '"answer": "yes"}\n')
    source = DataSource("set", path=str(tmp_path), splits={"train": "train", "test": "test"},
                        answers={"scoring": "exact_match", "new_tokens": 4, "normaliser": "last_number"})
    with pytest.raises(UserError, match="example 2: the normaliser leaves nothing of the answer 'yes'"):
        read_split(source, "test")


class Killed(BaseException):
    """What a kill is to the code: nothing catches it."""


@pytest.mark.parametrize("name", ["sums", "quiz"])
def test_a_killed_run_of_answers_goes_on_to_the_same_bits(name, sets, make_host, tmp_path):
    got = tasks(sets, make_host, "llama", "grid.inits=[scratch,pissa]", "grid.budgets=[2,4,6]",
                "~grid.relations.different")
    planned, done = plan(got.grid), []
    runs = [run for run in planned.runs.values() if run.data.name == name and run.method]
    marks = {run.run_id: sorted(planned.marks[run.run_id]) for run in runs}
    whole, again = Store(tmp_path / "whole"), Store(tmp_path / "again")
    execute.execute(runs, marks, WorkerContext(whole, got.data))

    def dies(stage):
        done.append(stage.updates)
        if done[-1] == 5:
            raise Killed

    with pytest.raises(Killed):
        execute.execute(runs, marks, WorkerContext(again, got.data, dies, checkpoint_seconds=0))
    told = []
    execute.execute(runs, marks, WorkerContext(again, got.data, told.append))
    begun = (told[0].updates, set(told[0].runs))
    ids = {run.run_id for run in runs}
    assert begun == (4, ids), "what was kept at the mark of four updates is not done again"
    for run in runs:
        one, two = whole.predictions(run.run_id), again.predictions(run.run_id)
        assert one.keys() == two.keys() and all((one[key] == two[key]).all() for key in one)
