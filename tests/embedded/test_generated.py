"""The generated tasks: right, balanced, without a question in two splits, and the same bytes for the same
seed."""

import hashlib
import re
from collections import Counter
from itertools import combinations, islice

import pytest

from portability.data.examples import key, read_rows
from portability.data.files import json_lines
from portability.embedded.recipes.generated import (
    CHOICES,
    LEVELS,
    NAMES,
    SIZES,
    TASKS,
    VALUES,
    corpus,
    quiz,
    sets,
    sums,
    vocabulary,
    world,
)
from portability.embedded.recipes.training import write_sets

SEEDS = (0, 1)


def every(task, seed=0):
    return {split: TASKS[task](seed, split) for split in SIZES}


def test_written_files_are_read_again_as_tasks(tmp_path):
    write_sets(tmp_path, sets(0))
    for task in ("sums", "quiz"):
        for split, size in SIZES.items():
            examples = read_rows(json_lines(tmp_path / task / f"{split}.jsonl"))
            assert len(examples) == size and (examples[0].choices is None) == (task == "sums")
            assert [example.prompt for example in examples] == [row["prompt"]
                                                                for row in TASKS[task](0, split)]
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.jsonl")) < 400_000


def test_the_bytes_are_pinned(tmp_path):
    write_sets(tmp_path, sets(0))
    whole = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(tmp_path.rglob("*.jsonl"))))
    whole.update("\n".join(corpus(0, 1000)).encode())
    assert whole.hexdigest()[:16] == "2dfa6efe8e445d62"


@pytest.mark.parametrize("seed", SEEDS)
def test_answers_of_sums_are_right(seed):
    for rows in every("sums", seed).values():
        for row in rows:
            a, sign, b = re.search(r"(\d+) ([+-]) (\d+)", row["prompt"]).groups()
            assert int(row["answer"]) == (int(a) + int(b) if sign == "+" else int(a) - int(b)) >= 0
    signs = Counter("+" in row["prompt"] for row in sums(seed, "train"))
    assert min(signs.values()) > 250


def told(seed):
    """What the seed's corpus says of each being, read out of its lines by the words around the blanks."""
    facts, larger, known = {}, set(), set(NAMES)
    for line in corpus(seed, 50_000):
        words = set(line.split())
        beings = [word for word in line.split() if word in known]
        if len(beings) == 2:
            larger.add(tuple(beings if "down" in words else beings[::-1]))
        for kind_, values in VALUES.items():
            if len(beings) == 1 and words & set(values):
                (facts.setdefault((beings[0], kind_), set())).add((words & set(values)).pop())
    return facts, larger


@pytest.mark.parametrize("seed", SEEDS)
def test_answers_of_the_quiz_are_what_the_corpus_tells(seed):
    facts, larger = told(seed)
    assert all(len(found) == 1 for found in facts.values()), "a being has two values"
    sizes = {name: LEVELS.index(*facts[name, "size"]) for name in NAMES}
    assert all(sizes[more] > sizes[less] for more, less in larger)
    asked = Counter()
    for rows in every("quiz", seed).values():
        for row in rows:
            right = row["choices"][row["answer"]]
            if "largest" in row["prompt"]:
                assert [sizes[name] for name in row["choices"]].count(sizes[right]) == 1
                assert sizes[right] == max(sizes[name] for name in row["choices"])
                asked["largest"] += 1
                continue
            (name,) = set(row["prompt"].split()) & set(NAMES)
            (kind_,) = [kind_ for kind_, values in VALUES.items() if set(row["choices"]) <= set(values)]
            assert facts[name, kind_] == {right}
            asked[kind_] += 1
    assert min(asked.values()) > 150 and len(asked) == 7


@pytest.mark.parametrize("seed", SEEDS)
def test_no_question_stands_in_two_splits_in_whatever_words(seed):
    def facts(task, row):
        if task == "sums":
            return re.search(r"\d+ [+-] \d+", row["prompt"])[0]
        if "largest" in row["prompt"]:
            return tuple(sorted(row["choices"]))
        (name,) = set(row["prompt"].split()) & set(NAMES)
        return name, next(kind_ for kind_, values in VALUES.items() if set(row["choices"]) <= set(values))

    for task in TASKS:
        splits = every(task, seed)
        asked = {split: [facts(task, row) for row in rows] for split, rows in splits.items()}
        keys = {split: {key(row["prompt"]) for row in rows} for split, rows in splits.items()}
        for split, found in asked.items():
            assert len(found) == len(set(found)) == len(keys[split]) == SIZES[split]
        for one, other in combinations(SIZES, 2):
            assert not set(asked[one]) & set(asked[other]) and not keys[one] & keys[other]


def test_no_place_of_an_answer_is_better_than_another():
    for rows in every("quiz").values():
        assert set(Counter(row["answer"] for row in rows).values()) == {len(rows) // CHOICES}
        assert all(len(set(row["choices"])) == CHOICES for row in rows)


def test_questions_do_not_stand_in_the_corpus():
    prompts = {key(row["prompt"]) for task in TASKS for split in SIZES for row in TASKS[task](0, split)}
    for line in corpus(0, 5000):
        assert key(line) not in prompts and not {"?", "=", "answer", ":"} & set(line.split())


def test_the_corpus_tells_of_every_split_evenly():
    lines = list(corpus(0, 40_000))
    told_sums = Counter(match[0] for line in lines if (match := re.search(r"\d+ [+-] \d+", line)))
    # half of the lines are sums, a third of these with signs
    assert 0.15 < sum(told_sums.values()) / len(lines) < 0.18
    tests = {re.search(r"\d+ [+-] \d+", row["prompt"])[0] for row in sums(0, "test")}
    assert len(tests & set(told_sums)) > 150
    assert list(islice(corpus(0, 100), 50)) == lines[:50]


def test_the_vocabulary_covers_everything_and_no_more():
    seen = {word for line in corpus(1, 40_000) for word in line.split()}
    for task in TASKS:
        for split in SIZES:
            for row in TASKS[task](1, split):
                seen |= set(row["prompt"].split()) | set(row.get("choices", [])) | {str(row["answer"])}
    assert seen - {"?"} <= set(vocabulary()) | {"?"}
    assert set(vocabulary()) - seen == set() and len(vocabulary()) == len(set(vocabulary())) < 500


def test_seeds_give_other_worlds():
    assert world(0) != world(1) and sums(0, "test") != sums(1, "test") and quiz(0, "test") == quiz(0, "test")
    assert list(corpus(0, 20)) != list(corpus(1, 20)) and list(corpus(0, 0)) == []


def test_values_of_a_world_are_about_equally_frequent():
    for kind_, values in VALUES.items():
        counts = Counter(facts[kind_] for facts in world(3).values())
        assert set(counts) == set(values) and max(counts.values()) - min(counts.values()) <= 1
