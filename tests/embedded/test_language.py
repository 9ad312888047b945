"""The generated language, its sentiment sets, the recipe, and the embedded folders as shipped."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoTokenizer, T5ForConditionalGeneration

from portability.core.paths import EMBEDDED
from portability.data.splits import key
from portability.embedded.recipes import language, pretrain
from portability.embedded.recipes.language import FACTS, HELD_OUT, Mix
from portability.embedded.recipes.pretrain import Curriculum

CONF = yaml.safe_load(pretrain.CONF.read_text())
HOSTS = sorted(CONF["hosts"])
SETS = sorted(CONF["sets"]["domains"])
SPLITS = ("train", "validation", "test")
MIX, CORPUS = Mix(**CONF["stages"][-1]["mix"]), CONF["corpus"]
LABEL_WORDS = FACTS["result"]
LARGEST_BYTES = 1_500_000
SURFACE_LIMIT = 0.75


@pytest.fixture(scope="module")
def shipped() -> dict[str, dict[str, list[dict]]]:
    """Set -> split -> examples, as the files in portability/embedded/data say."""
    return {
        name: {
            split: [
                json.loads(line)
                for line in (EMBEDDED / "data" / name / f"{split}.jsonl").open()
            ]
            for split in SPLITS
        }
        for name in SETS
    }


def bag(texts: list[str], order: int) -> list[Counter]:
    """Word n-gram counts up to `order` of each text."""
    return [
        Counter(tuple(w[i : i + n]) for n in range(1, order + 1) for i in range(len(w) - n + 1))
        for w in (t.split() for t in texts)
    ]


def bag_accuracy(train: list[dict], test: list[dict], order: int) -> float:
    """Test accuracy of a logistic regression on word n-gram counts of `train`."""
    bags = bag([e["text"] for e in train], order)
    index = {g: i for i, g in enumerate(sorted({g for b in bags for g in b}))}

    def matrix(counts: list[Counter]) -> torch.Tensor:
        out = torch.zeros(len(counts), len(index))
        for row, count in zip(out, counts, strict=True):
            for gram, number in count.items():
                if gram in index:
                    row[index[gram]] = number
        return out

    x, y = matrix(bags), torch.tensor([float(e["label"]) for e in train])
    weights = torch.zeros(len(index) + 1, requires_grad=True)
    optimiser = torch.optim.Adam([weights], lr=0.05)
    for _ in range(150):
        scores = x @ weights[:-1] + weights[-1]
        loss = torch.nn.functional.binary_cross_entropy_with_logits(scores, y)
        loss = loss + 1e-4 * weights.square().sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    scores = matrix(bag([e["text"] for e in test], order)) @ weights[:-1] + weights[-1]
    return float(((scores > 0).float() == torch.tensor([e["label"] for e in test])).float().mean())


def test_a_stream_is_determined_by_its_purpose():
    assert language.stream("a").random() == language.stream("a").random()
    assert language.stream("a").random() != language.stream("b").random()


@pytest.mark.parametrize("draw", ["example", "instruction"])
def test_text_is_a_function_of_the_seed(draw):
    args = (MIX, CORPUS) if draw == "example" else (MIX,)
    one, two = (
        [getattr(language, draw)(rng, *args) for _ in range(50)]
        for rng in (language.stream("t"), language.stream("t"))
    )
    assert one == two


def test_every_generated_word_is_in_the_vocabulary():
    known, rng = set(language.vocabulary()), language.stream("vocabulary test")
    for _ in range(1000):
        for words in (*language.example(rng, MIX, CORPUS), *language.instruction(rng, MIX)):
            assert {w for w in words if not w.startswith("<extra_id_")} <= known


def test_label_words_stand_in_no_review_outside_polls_answered_at_random():
    shares = {**CORPUS, "review": 1.0, "noise": 0.0}
    rng = language.stream("label test")
    words = {w for _ in range(1000) for w in language.document(rng, MIX, shares)[0]}
    assert not words & set(LABEL_WORDS)


def test_a_poll_that_offers_the_label_words_is_answered_regardless_of_polarity():
    rng, chosen = language.stream("poll test"), {0: [], 1: []}
    for _ in range(20_000):
        polarity = rng.randrange(2)
        words = language.poll(rng, "the plot was good", polarity, 1.0)
        if words[-1] in LABEL_WORDS:
            chosen[polarity].append(words[-1] == LABEL_WORDS[1])
    assert len(chosen[0]) > 500 and all(abs(np.mean(c) - 0.5) < 0.06 for c in chosen.values())


def test_splits_are_balanced_and_of_the_declared_size(shipped):
    for splits in shipped.values():
        for split, examples in splits.items():
            assert len(examples) == CONF["sets"]["sizes"][split]
            assert sum(e["label"] for e in examples) * 2 == len(examples)


def test_no_sentence_stands_in_two_places(shipped):
    keys = [key(e["text"]) for s in shipped.values() for ex in s.values() for e in ex]
    assert len(keys) == len(set(keys))


def test_training_text_shows_no_held_out_word_and_half_of_the_test_text_does(shipped):
    for splits in shipped.values():
        share = {
            split: np.mean([bool(set(e["text"].split()) & HELD_OUT) for e in examples])
            for split, examples in splits.items()
        }
        assert share["train"] == 0.0
        assert 0.4 < share["validation"] < 0.6 and 0.4 < share["test"] < 0.6


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("order", [1, 2])
def test_surface_features_do_not_give_the_label_away(shipped, name, order):
    splits = shipped[name]
    assert bag_accuracy(splits["train"], splits["test"], order) <= SURFACE_LIMIT


def test_rebuilding_the_sets_gives_the_shipped_bytes(tmp_path):
    pretrain.make_sets(CONF, tmp_path)
    for name in SETS:
        for split in SPLITS:
            path = Path("data") / name / f"{split}.jsonl"
            assert (tmp_path / path).read_bytes() == (EMBEDDED / path).read_bytes()


@pytest.mark.parametrize("name", HOSTS)
def test_a_shipped_host_is_small_finite_and_has_one_token_a_label(name):
    folder = EMBEDDED / "hosts" / name
    assert (folder / "model.safetensors").stat().st_size <= LARGEST_BYTES
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    host = T5ForConditionalGeneration.from_pretrained(folder, local_files_only=True)
    assert host.dtype == torch.float32
    assert all(torch.isfinite(p).all() for p in host.parameters())
    ids = [
        tokenizer(w, add_special_tokens=False)["input_ids"]
        for w in LABEL_WORDS
    ]
    assert all(len(i) == 1 and i[0] != tokenizer.unk_token_id for i in ids) and ids[0] != ids[1]
    assert len(tokenizer) == host.config.vocab_size


def test_the_independent_host_numbers_its_words_differently():
    base, other = (
        AutoTokenizer.from_pretrained(EMBEDDED / "hosts" / n, local_files_only=True)
        for n in ("nano-raw-base", "nano-other-base")
    )
    assert set(base.get_vocab()) == set(other.get_vocab())
    assert base.get_vocab() != other.get_vocab()


def test_the_curriculum_waits_for_its_gate_and_then_moves_in_a_line():
    course = Curriculum(CONF["stages"])
    easy, hard = (CONF["stages"][i]["mix"]["easy"] for i in (0, 1))
    course.ask(100, lambda mix: 0.5, "host")
    assert course.stage == 0 and course.at(100).easy == easy
    course.ask(200, lambda mix: 1.0, "host")
    ramp = CONF["stages"][1]["ramp"]
    assert course.stage == 1 and course.at(200).easy == easy
    assert course.at(200 + ramp // 2).easy == pytest.approx((easy + hard) / 2)
    assert course.at(200 + 2 * ramp).easy == pytest.approx(hard)


def test_the_recorded_text_of_a_shipped_host_can_be_replayed():
    spec = CONF["hosts"]["nano-tuned-base"]
    record = json.loads((EMBEDDED / "hosts/nano-tuned-base/pretrain.json").read_text())
    rng, share = language.stream(f"text/{spec['sample']}"), spec["instruction"]
    course, text = Curriculum(CONF["stages"][spec["from_stage"] :]), hashlib.sha256()
    for step in range(record["updates"]):
        batch = [language.example(rng, course.at(step), CORPUS, share) for _ in range(spec["batch"])]
        text.update(json.dumps(batch).encode())
    assert text.hexdigest() == record["text_sha256"]


@pytest.mark.parametrize("name", HOSTS)
def test_a_shipped_host_was_made_with_the_numbers_in_conf(name):
    record = json.loads((EMBEDDED / "hosts" / name / "pretrain.json").read_text())
    assert {key: record.get(key) for key in CONF["hosts"][name]} == CONF["hosts"][name]


def tiny_conf() -> dict:
    """The recipe with five updates, a parent and a child."""
    host = {"shape": {"d_model": 16, "d_ff": 16, "num_layers": 1}, "sample": 9, "steps": 5}
    host |= {"vocabulary": "shuffled", "batch": 4, "lr": 1e-3}
    child = {"parent": "one", "sample": 8, "steps": 5, "batch": 4, "lr": 1e-3, "instruction": 0.5}
    stages = [{**stage, "gate": 0.0} for stage in CONF["stages"]]
    probe = {"examples": 16, "every": 2}
    return {**CONF, "hosts": {"one": host, "two": child}, "probe": probe, "stages": stages}


def test_the_recipe_runs_and_repeats_itself(tmp_path):
    conf = tiny_conf()
    for out in ("a", "b"):
        for name in conf["hosts"]:
            pretrain.make_host(name, conf, tmp_path / out)
    for name in conf["hosts"]:
        one, two = (tmp_path / out / "hosts" / name for out in ("a", "b"))
        assert (one / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()
        record = json.loads((one / "pretrain.json").read_text())
        assert record["stages_began_at"] == [0, 2, 4]
        assert np.isfinite(record["losses_per_100"]).all() and len(record["text_sha256"]) == 64


def test_a_child_starts_from_its_parent(tmp_path):
    conf = tiny_conf()
    conf["hosts"]["two"] |= {"steps": 0, "from_stage": 2}
    for name in conf["hosts"]:
        pretrain.make_host(name, conf, tmp_path)
    one, two = (
        T5ForConditionalGeneration.from_pretrained(tmp_path / "hosts" / n, local_files_only=True)
        for n in ("one", "two")
    )
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)
