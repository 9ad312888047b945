"""Studies of a set of three labels and of a set of pairs: trained, ported, scored and measured as by hand."""

import json
import random

import numpy as np
import pytest
import torch

from portability.analysis.answers import write_answers
from portability.analysis.context import gather
from portability.analysis.records import predictions_of
from portability.analysis.report.run_details import details
from portability.core.errors import UserError
from portability.core.measures import said
from portability.core.specs import RunSpec, from_dict
from portability.data.splits import rows as kept
from portability.execution.host_comparison import _texts, lacking
from portability.hosts.host import load_plain, load_tokenizer
from portability.planning.plan import plan
from portability.porting.similarity import compare_hosts
from portability.run import command
from portability.store import Store
from portability.store.admin.archive import pack
from support.studies import study
from support.tiny import BAD, GOOD, PLAIN, write_set

pytestmark = pytest.mark.system  # takes long

FAMILIES = ("bert", "t5", "llama")
NAMES = ("negative", "positive", "answer")
CHARGED = {"negative": BAD, "positive": GOOD, "answer": []}


def sentence(draw, label):
    words = draw.sample(PLAIN, draw.randint(3, 6))
    if CHARGED[label]:
        words.insert(draw.randint(0, len(words)), draw.choice(CHARGED[label]))
    return " ".join(words)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """`topics`: three labels by name, that of the charged word; `claims`: pairs, 1 where both texts are of
    one kind."""
    root, draw = tmp_path_factory.mktemp("sets"), random.Random(4)
    topics = [{"text": sentence(draw, NAMES[i % 3]), "label": NAMES[i % 3]} for i in range(240)]
    claims = [{"text": sentence(draw, NAMES[i % 2]), "text_pair": sentence(draw, NAMES[i // 2 % 2]),
               "label": int(i % 2 == i // 2 % 2)} for i in range(240)]
    for name, rows in (("topics", topics), ("claims", claims)):
        write_set(root / name, rows[:160], rows[160:180], rows[180:])
    return root


def composed(folders, make_host, family, *more):
    one, two = make_host(family, 32, 2, 4, 0), make_host(family, 48, 2, 4, 1)
    return study(
        f"host.nano-raw-base.path={one.source}", f"host.nano-tuned-base.path={two.source}",
        f"+data.topics.path={folders}/topics", f"+data.topics.labels=[{','.join(NAMES)}]",
        f"+data.claims.path={folders}/claims", "+data.claims.pair_column=text_pair",
        "+data.claims.task.template='{text} and {text_pair} :'", "task.template='{text} answer :'",
        "task.max_length=48", "grid.data=[topics,claims]", "grid.study_data=[topics,claims]", "method=lora",
        "grid.inits=[ported,scratch]", "grid.seeds=[0]", "grid.budgets=[30]", "eval.limit=40",
        "eval.metrics=[accuracy,f1,auc]", "tracking.wandb=disabled", "yes=true", "engine=inprocess",
        "engine.device=cpu", "similarity=false", *more)


@pytest.fixture(scope="module", params=FAMILIES)
def done(request, folders, make_host, tmp_path_factory):
    """A finished study, its plan and its store."""
    root = tmp_path_factory.mktemp(request.param)
    got = composed(folders, make_host, request.param, f"results={root}", "study=both")
    assert command(got) == 0
    return got, plan(got.grid), Store(root / "both")


def slowly(margin, label):
    """Accuracy, F1 and AUC of log-odds against label 0, with loops."""
    odds = np.concatenate([np.zeros((len(label), 1)), margin.reshape(len(label), -1)], 1).astype(float)
    shares = np.exp(odds) / np.exp(odds).sum(1, keepdims=True)
    picked, f1, areas = [row.index(max(row)) for row in shares.tolist()], [], []
    for c in range(shares.shape[1]):
        hits = sum(p == t == c for p, t in zip(picked, label, strict=True))
        f1.append(2 * hits / (picked.count(c) + list(label).count(c)))
        pairs = [(p, q) for p, t in zip(shares[:, c], label, strict=True) if t == c
                 for q, u in zip(shares[:, c], label, strict=True) if u != c]
        areas.append(sum(1.0 if p > q else 0.5 if p == q else 0.0 for p, q in pairs) / len(pairs))
    return {"eval_accuracy": np.mean(np.array(picked) == label), "eval_f1": np.mean(f1),
            "eval_auc": np.mean(areas)}


def test_both_sets_are_trained_ported_and_measured_as_by_hand(done):
    _, planned, store = done
    assert set(store.marks()) == set(planned.runs) and not store.failures()
    for run_id, run in planned.runs.items():
        record, saved = store.read(run_id), store.predictions(run_id)
        three = run.data.name == "topics"
        assert saved["margin"].shape[1:] == ((40, 2) if three else (40,))
        assert set(saved["label"].tolist()) == ({0, 1, 2} if three else {0, 1})
        for place, mark in enumerate(record["train_info"]["metrics"]):
            assert {key: mark[key] for key in ("eval_accuracy", "eval_f1", "eval_auc")} == pytest.approx(
                slowly(saved["margin"][place], saved["label"]), abs=1e-6)
            assert ("eval_positive_share" in mark, "eval_largest_share" in mark) == (not three, three)
        if run.method and run.init.kind == "scratch" and run.head == "none":
            losses = [mark["eval_loss"] for mark in record["train_info"]["metrics"]]
            assert losses[-1] < losses[0] or len(losses) == 1
        if run.init.kind == "ported":
            assert record["port_info"]["carried_fraction"] > 0


@torch.no_grad()
def test_a_bare_host_is_scored_as_plain_transformers_has_it(done, folders):
    got, planned, store = done
    for run_id, run in planned.runs.items():
        if run.method is not None:
            continue
        model, tokenizer = load_plain(run.host), load_tokenizer(run.host)
        rows = [json.loads(line) for line in (folders / run.data.name / "test.jsonl").open()]
        asked, saved = kept(got.data, run.data.name, "test", 40), store.predictions(run_id)
        assert {row["text"] for row in rows} >= {text if isinstance(text, str) else text[0]
                                                 for text, _ in asked}
        words = run.task.label_words
        for place, (text, label) in enumerate(asked):
            parts = (text,) if isinstance(text, str) else text
            assert saved["label"][place] == label
            if model.config.model_type == "bert":
                given = tokenizer(*parts, return_tensors="pt")
                assert given["token_type_ids"].sum() == (len(parts[1].split()) if parts[1:] else 0)
                head = store.tensors(run_id, "head")[0]
                state = model(**given).last_hidden_state.mean(1)
                logits = (state @ head["head.weight"].T + head["head.bias"])[0]
            else:
                question = f"{text} answer :" if isinstance(text, str) else f"{text[0]} and {text[1]} :"
                given = tokenizer(question, return_tensors="pt", return_token_type_ids=False)
                if model.config.model_type == "t5":
                    given["decoder_input_ids"] = torch.tensor([[0]])
                logits = model(**given).logits[0, -1][tokenizer.convert_tokens_to_ids(list(words))]
            margin = (logits[1:] - logits[0]).numpy()
            assert np.allclose(saved["margin"][0, place], margin, atol=2e-5), (run.host.family, place)


def test_a_published_copy_tables_page_and_export_say_the_same(done, folders, tmp_path):
    got, planned, store = done
    pack(store, tmp_path / "copy")
    copy = Store(tmp_path / "copy")
    for run_id, run in planned.runs.items():
        one, other = store.predictions(run_id), copy.predictions(run_id)
        assert one.keys() == other.keys() and copy.sound(run_id) is None
        assert all(np.array_equal(one[key], other[key]) and one[key].dtype == other[key].dtype for key in one)
        frame = predictions_of(copy, run_id)
        assert ("margin_2" in frame) == (run.data.name == "topics") and len(frame) == one["invalid"].size
        accuracy = frame.groupby("updates")["right"].mean().tolist()
        assert accuracy == [pytest.approx(mark["eval_accuracy"])
                            for mark in store.read(run_id)["train_info"]["metrics"]]
    context = gather(copy)
    assert context.study.metric == "eval_accuracy" and context.answers is not None
    assert not context.study.problems
    runs = details(copy, context).runs
    for run_id, run in planned.runs.items():
        (told,) = [part for part in runs[run_id]["sections"] if part["title"] == "Predictions"]
        assert told["rows"][0][1] in run.task.label_words
        if run.data.name == "topics":
            best = run.task.label_words[int(said(store.predictions(run_id)["margin"][0])[0])]
            assert told["rows"][0][2].startswith(f"{best} 0.") and "the likeliest label" in told["note"]
        else:
            assert "of “positive”" in told["note"]
        spec = from_dict(RunSpec, store.read(run_id)["spec"])
        out = tmp_path / f"{run_id}.jsonl"
        assert write_answers(store, spec, out, {"it": run_id}, folders / run.data.name) == 40
        first = json.loads(out.read_text().splitlines()[0])
        assert first["label"] == store.predictions(run_id)["label"][0]
        assert (" and " in first["prompt"]) if run.task.pairs and run.head == "none" else first["prompt"]


def test_hosts_are_compared_on_pairs_in_the_sets_template(folders, make_host):
    got = composed(folders, make_host, "t5", "similarity=true")
    found = plan(got.grid)
    asked = {pair.data.name: pair for pair in lacking(found, found.runs, Store(folders / "none"))}
    assert asked.keys() == {"topics", "claims"}
    texts = _texts(asked["claims"], got.data)[:16]
    one, other = (asked["claims"].task.asked(text) for text in texts[:2])
    assert one != other and all(" and " in text and text.endswith(" :") for text in (one, other))
    measured = compare_hosts(asked["claims"].one, asked["claims"].one, texts, asked["claims"].task.reading)
    assert measured["texts"] == 16 and measured["cka"] == pytest.approx(1)


def test_a_head_of_another_number_of_labels_is_refused(folders, make_host):
    words = ("grid.data=claims", "grid.relations={different: topics}")
    with pytest.raises(UserError, match="grid.relations.different: data set 'topics' has 3 labels and "
                       "'claims' 2, so encoder 'nano-raw-base' cannot begin with the origin's head"):
        composed(folders, make_host, "bert", *words)
    assert plan(composed(folders, make_host, "bert", *words, "head=fresh").grid).runs
    assert plan(composed(folders, make_host, "t5", *words).grid).runs


@pytest.mark.parametrize(("words", "says"), [
    (("data.topics.labels=[negative,positive]",), "must be one of negative, positive, .*got 'answer'"),
    (("data.claims.pair_column=claim",), "claims/train.jsonl line 1 has no 'claim'"),
    (("data.claims.task.template='{text} :'",), "data set 'claims' has pairs of texts, and its template"),
    (("+data.topics.task.label_words=[a,b]",), "'topics' has 3 labels .* and 2 label words"),
])
def test_what_a_set_does_not_say_right_is_refused_before_work(folders, make_host, words, says):
    with pytest.raises(UserError, match=says):
        composed(folders, make_host, "t5", *words)
