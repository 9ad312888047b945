"""Tasks of prompts and answers as data sets of a study: scored as by hand, shared by stacks, kept,
refused."""

import json

import numpy as np
import pytest
import torch

from portability.analysis.answers import write_answers
from portability.analysis.context import gather
from portability.analysis.load import read
from portability.analysis.tables.registry import build
from portability.core.specs import EXTRACTION, RunSpec, from_dict
from portability.data.examples import Example
from portability.data.splits import guard, rows
from portability.hosts.host import load_plain, load_tokenizer
from portability.inits.start import seed_examples
from portability.planning.plan import plan
from portability.run import command
from portability.store import Store
from portability.store.admin.archive import pack
from support.answers import of_data, tasks
from support.lora import KINDS
from support.tiny import GOOD

pytestmark = pytest.mark.system  # takes long

FAMILIES = ("gpt2", "llama", "t5")


@pytest.fixture(scope="module")
def done(sets, make_host, tmp_path_factory):
    """family -> a finished study and its store."""
    made = {}

    def get(family):
        if family not in made:
            root = tmp_path_factory.mktemp(family)
            got = tasks(sets, make_host, family, f"results={root}", "study=two")
            assert command(got) == 0
            made[family] = got, Store(root / "two")
        return made[family]

    return get


@torch.no_grad()
def written_by(model, tokenizer, family, prompt, limit):
    """What a host writes after a prompt, token by token without any cache, and whether it ended."""
    ids, out = tokenizer(prompt, add_special_tokens=False)["input_ids"], []
    for _ in range(limit):
        if family == "t5":
            logits = model(input_ids=torch.tensor([[*ids, 1]]),
                           decoder_input_ids=torch.tensor([[0, *out]])).logits
        else:
            logits = model(input_ids=torch.tensor([[*ids, *out]])).logits
        out.append(int(logits[0, -1].argmax()))
        if out[-1] == 1:
            return tokenizer.decode(out[:-1]), True
    return tokenizer.decode(out), False


@torch.no_grad()
def likelihood(model, tokenizer, family, prompt, answer):
    """Log-probability of an answer with its end token after a prompt, and its number of tokens."""
    ids, tail = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, answer))
    tail = [*tail, 1]
    if family == "t5":
        logits = model(input_ids=torch.tensor([[*ids, 1]]),
                       decoder_input_ids=torch.tensor([[0, *tail[:-1]]])).logits[0]
    else:
        logits = model(input_ids=torch.tensor([[*ids, *tail]])).logits[0, len(ids) - 1 : -1]
    return float(logits.log_softmax(-1)[range(len(tail)), tail].sum()), len(tail)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_bare_host_is_scored_as_by_hand(family, done):
    got, store = done(family)
    for name in ("sums", "quiz"):
        (run,) = of_data(plan(got.grid), name, "bare")
        model, tokenizer = load_plain(run.host).eval(), load_tokenizer(run.host)
        assert isinstance(model, KINDS[family]._model_mapping[type(model.config)])
        found, record = store.predictions(run.run_id), store.read(run.run_id)
        scores, losses, open_ = [], [], []
        for example in rows(got.data, name, "test", 0):
            total, length = likelihood(model, tokenizer, family, example.prompt, example.answer)
            losses.append(-total / length)
            if name == "sums":
                text, ended = written_by(model, tokenizer, family, example.prompt, 4)
                scores.append(float(text.split() == example.answer.split()))
                open_.append(not ended)
            else:
                each = [likelihood(model, tokenizer, family, example.prompt, choice)[0]
                        for choice in example.choices]
                best = max(value for place, value in enumerate(each) if place != example.right)
                np.testing.assert_allclose(found["margin"][0][len(scores)], each[example.right] - best,
                                           atol=1e-4)
                scores.append(float(each[example.right] > best))
                open_.append(False)
        assert found["score"][0].tolist() == scores and found["invalid"][
            0].tolist() == open_ and "label" not in found
        (mark,) = record["train_info"]["metrics"]
        expected = {"accuracy": np.mean(scores), "loss": pytest.approx(np.mean(losses), abs=1e-5),
                    "invalid_rate": pytest.approx(np.mean(open_))}
        assert mark == {"updates": 0} | {f"{iterate}_{key}": value for iterate in ("eval", "last")
                                         for key, value in expected.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_start_is_the_bare_student_and_both_relations_share_what_has_no_origin(family, done):
    got, store = done(family)
    planned = plan(got.grid)
    assert len(planned.cells) == 2 * 2 * (1 + 5 * 2)
    cells = {(cell.data, cell.relation, cell.init): cell for cell in planned.cells if cell.budget}
    for name, other in (("sums", "quiz"), ("quiz", "sums")):
        (bare,) = of_data(planned, name, "bare")
        start, modules = store.read(bare.run_id)["train_info"]["metrics"][0], set()
        for init in ("extracted", "scratch", "extracted_noise", "extracted_random", "pissa"):
            same, different = (cells[name, relation, init] for relation in ("same", "different"))
            assert (same.origin_data, different.origin_data) == (name, other)
            assert (same.run_id == different.run_id) == (init in ("scratch", "extracted_random", "pissa"))
            first, last = store.read(same.run_id)["train_info"]["metrics"]
            assert first == pytest.approx(start, abs=1e-5) and last["eval_loss"] != pytest.approx(
                start["eval_loss"], abs=1e-3)
            modules.add(next(iter(store.tensors(same.run_id, "module")[0].values())).numpy().tobytes())
        assert len(modules) == 5


@pytest.mark.parametrize("family", FAMILIES)
def test_how_runs_are_stacked_changes_no_bit(family, done, sets, make_host, tmp_path):
    got, store = done(family)
    again = tasks(sets, make_host, family, f"results={tmp_path}", "study=one", "engine.stack=1")
    assert command(again) == 0
    alone = Store(tmp_path / "one")
    for run_id, run in plan(got.grid).runs.items():
        for name, value in store.predictions(run_id).items():
            assert np.array_equal(alone.predictions(run_id)[name], value), (run.init.name, name)
        if run.train.updates:
            one, two = (place.tensors(run_id, "module")[0] for place in (store, alone))
            assert all(torch.equal(one[key], two[key]) for key in one)


def test_answers_are_learnt(done, sets, make_host, tmp_path):
    got = tasks(sets, make_host, "llama", f"results={tmp_path}", "study=long", "grid.inits=[scratch,pissa]",
                "grid.budgets=[120]", "~grid.relations.different")
    assert command(got) == 0
    for name in ("sums", "quiz"):
        (run,) = of_data(plan(got.grid), name, "scratch")
        first, last = Store(tmp_path / "long").read(run.run_id)["train_info"]["metrics"]
        assert first["eval_accuracy"] < 0.6 < last["eval_accuracy"] and last["eval_invalid_rate"] < 0.2


@pytest.mark.parametrize("family", FAMILIES)
def test_seed_examples_are_prompts_with_whole_answers(family, done):
    got, _ = done(family)
    for name in ("sums", "quiz"):
        cut = of_data(plan(got.grid), name, EXTRACTION)[0]
        known = {(example.prompt, example.answer) for example in rows(got.data, name, "train", 0)}
        tokenizer, seeds = load_tokenizer(cut.teacher), seed_examples(cut, cut.teacher, got.data)
        assert len(seeds) == 8
        for seed in seeds:
            whole = seed.ids[:-1], seed.target
            question, answer = whole if family == "t5" else (seed.ids[: seed.start], seed.ids[seed.start :])
            assert answer[-1] == 1 and (tokenizer.decode(question), tokenizer.decode(answer[:-1])) in known


def test_a_published_copy_holds_the_same(done, tmp_path):
    got, store = done("llama")
    pack(store, tmp_path / "copy")
    copy = Store(tmp_path / "copy")
    for run_id in plan(got.grid).runs:
        one, two = store.predictions(run_id), copy.predictions(run_id)
        assert one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in one)


def test_a_run_of_answers_is_what_its_record_says(done):
    got, store = done("gpt2")
    for run_id in plan(got.grid).runs:
        spec = from_dict(RunSpec, json.loads(json.dumps(store.read(run_id)["spec"])))
        assert spec.run_id == run_id and spec.task.scoring in ("exact_match", "choice")


def test_rouge_counts_parts_of_answers(sets, make_host, tmp_path):
    got = tasks(sets, make_host, "llama", f"results={tmp_path}", "study=rouge", "grid.inits=[scratch,pissa]",
                "grid.data=[sums]", "grid.study_data=[sums]", "~grid.relations.different",
                "grid.budgets=[20,30,40,60]",
                "data.sums.answers={scoring: rouge_l, new_tokens: 4}", "~data.sums.answers.normaliser")
    assert command(got) == 0
    (run,) = of_data(plan(got.grid), "sums", "scratch")
    store = Store(tmp_path / "rouge")
    marks, scores = store.read(run.run_id)["train_info"]["metrics"], store.predictions(run.run_id)["score"]
    for mark, score in zip(marks, scores, strict=True):
        assert mark["eval_rougeL"] == pytest.approx(score.mean()) and "eval_accuracy" not in mark
    assert set(np.round(scores, 3).ravel().tolist()) - {0.0, 1.0}, "some answers are right in part"


def test_prompts_that_ask_the_same_are_dropped_from_training():
    again = Example("12+3 =", "15")
    found = {"train": [again, Example("1 + 23 =", "24")], "test": [Example("12 + 3 =", "15")]}
    assert guard({"sums": found}, "drop")["sums"].dropped == (0,)
    asked = [Example("which ?", "a", ("a", "b"), 0), Example("which ?", "c", ("c", "d"), 0)]
    assert guard({"quiz": {"train": asked, "test": [Example("which ?", "b", ("b", "a"), 0)]}},
                 "drop")["quiz"].dropped == (0,)


@pytest.mark.parametrize("how", ["drop", "truncate"])
def test_answers_that_are_too_long_are_counted_and_every_test_example_is_scored(sets, make_host, tmp_path,
                                                                                capsys, how):
    """A training set with three long answers, a test set with one: what is trained on differs, what is scored
    does not."""
    folder = tmp_path / "long"
    folder.mkdir()
    for split, count in (("train", 3), ("validation", 0), ("test", 1)):
        lines = [json.loads(line) for line in (sets / "written" / f"{split}.jsonl").read_text().splitlines()]
        for row in lines[:count]:
            row["answer"] = " ".join([GOOD[0]] * 30)
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    words = (f"data.sums.path={folder}", f"+data.sums.answers.too_long={how}", f"results={tmp_path}",
             "study=long",
             "grid.data=[sums]", "grid.study_data=[sums]", "~grid.relations.different",
             "grid.inits=[extracted,scratch]")
    assert command(tasks(sets, make_host, "gpt2", *words, "mode=plan")) == 0
    said = {"drop": "3 training examples left out, 0 training answers cut", "truncate": "0 training examples "
            "left out, 3"}[how]
    assert f"answers of sums too long for nano-raw-base: {said}" in capsys.readouterr().out
    got = tasks(sets, make_host, "gpt2", *words)
    assert command(got) == 0
    store, planned = Store(tmp_path / "long"), plan(got.grid)
    counts = {"train_dropped": 3 * (how == "drop"), "train_truncated": 3 * (how == "truncate"),
              "test_truncated": 1}
    for run_id, run in planned.runs.items():
        if run.init.kind == EXTRACTION:
            continue
        record = store.read(run_id)
        trained = run.method is not None
        assert record["train_info"]["too_long"] == (counts if trained else {"test_truncated": 1})
        assert store.predictions(run_id)["score"].shape[1] == run.data.counts["eval"] == 30
        assert from_dict(RunSpec, record["spec"]).run_id == run_id
    found = read(store)
    (table,) = build(gather(store, found.metric), ["completeness"])
    assert f"Answers too long for a host: sums on nano-raw-base {said}" in table.caption
    assert found.parts["too_long"] == [{"host": "nano-raw-base", "data": "sums", **counts}]
    pack(store, tmp_path / "copy")
    assert read(Store(tmp_path / "copy")).parts["too_long"] == found.parts["too_long"]


@pytest.mark.parametrize(("name", "folder"), [("sums", "written"), ("quiz", "chosen")])
def test_answers_are_written_beside_their_prompts(done, sets, tmp_path, name, folder):
    got, store = done("gpt2")
    run = of_data(plan(got.grid), name, "extracted")[0]
    count = write_answers(store, run, tmp_path / "answers.jsonl", {"extracted": run.run_id}, sets / folder)
    lines = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    asked = rows(got.data, name, "test", 0)
    assert len(lines) == count == len(asked)
    saved = store.predictions(run.run_id)
    for place, (line, example) in enumerate(zip(lines, asked, strict=True)):
        assert (line["prompt"], line["answer"]) == (example.prompt, example.answer)
        assert line.get("choices") == (None if example.choices is None else list(example.choices))
        scores = [mark["score"] for mark in line["arms"]["extracted"]["marks"]]
        assert scores == pytest.approx(saved["score"][:, place].tolist())
        assert ("margin" in line["arms"]["extracted"]["marks"][0]) == (name == "quiz")
