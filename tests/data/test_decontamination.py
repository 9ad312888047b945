"""The leak guard, on overlaps planted by hand and on real reviews, counted again in another way."""

import json
import random
from hashlib import sha256
from pathlib import Path

import pytest

from portability.core.errors import UserError
from portability.core.specs import EvalSpec
from portability.data.splits import DataSource, data_spec, guard, kept, key, rows, study_data

REAL = Path(__file__).parents[3] / "shared" / "data"


def numbered(prefix: str, count: int) -> list[tuple[str, int]]:
    """Distinct rows of alternating labels."""
    return [(f"{prefix} {i} .", i % 2) for i in range(count)]


@pytest.mark.parametrize("one, other", [
    ("It's GOOD!", "it 's good ."), ("Straße", "STRASSE"), ("a_b", "A b"),
    ("naïve", "NAÏVE"), ("１ ²", "１²"),
])
def test_sentences_that_differ_in_case_and_punctuation_only_are_the_same(one, other):
    assert key(one) == key(other)


@pytest.mark.parametrize("one, other", [("good", "god"), ("naïve", "naive"), ("!!!", "..."),
                                        ("film 1", "film 2")])
def test_other_sentences_are_not(one, other):
    assert key(one) != key(other)


def planted() -> dict[str, dict[str, list[tuple[str, int]]]]:
    """Three sets with one overlap of each kind."""
    first = {"train": numbered("a", 10), "validation": numbered("av", 4), "test": numbered("at", 4)}
    second = {"train": numbered("b", 10), "validation": numbered("bv", 4), "test": numbered("bt", 4)}
    third = {"train": numbered("c", 10), "test": numbered("ct", 4)}
    first["train"] += [("AT 1", 1), ("bv 0!", 0), ("ct 2", 0)]  # own test; later sets' evaluation splits
    second["train"] += [("A 3", 1), ("a 3", 1), ("av 2", 0), ("ct 2.", 0)]  # twice a's training; evaluation
    third["train"] += [("b 5", 1), ("a 7", 1), ("A 3", 1)]
    third["test"] += [("at 0", 0), ("bt-1", 1)]  # evaluation sentences of other sets: they stay
    return {"first": first, "second": second, "third": third}


def test_each_planted_overlap_is_dropped_where_the_rule_says():
    found = guard(planted(), "drop")
    assert {name: (g.dropped, g.dropped_eval, g.dropped_train) for name, g in found.items()} == {
        "first": ((10, 11, 12), 3, 0), "second": ((10, 11, 12, 13), 2, 2), "third": ((10, 11, 12), 0, 3),
    }


def test_evaluation_sentences_shared_between_sets_are_only_counted():
    found = guard(planted(), "drop")
    assert {name: guarded.shared_eval for name, guarded in found.items()} == {"first": 1, "second": 1,
                                                                              "third": 2}


def test_the_first_of_two_sets_that_repeat_each_other_keeps_the_sentences():
    sets = planted()
    turned = guard(dict(reversed(sets.items())), "drop")
    assert turned["third"].dropped == ()
    # a 3 and a 7 stand in the third set's training, now listed earlier
    assert turned["first"].dropped_train == 2


def test_keep_drops_nothing():
    assert all(g.dropped == () for g in guard(planted(), "keep").values())


def test_duplicates_within_a_training_split_stay():
    sets = {"one": {"train": [("a", 0), ("A", 0), ("b", 1)], "test": numbered("t", 2)}}
    assert guard(sets, "drop")["one"].dropped == ()


@pytest.mark.parametrize("left, message", [
    ([], "leaves no examples of its 2"), ([("new", 1)], "leaves only examples of label 1 of its 3"),
])
def test_a_set_that_has_nothing_left_to_train_on_is_refused(left, message):
    sets = {"one": {"train": numbered("a", 2) + left, "test": numbered("a", 2)}}
    with pytest.raises(UserError, match=f"'one': the leak guard {message}"):
        guard(sets, "drop")


def slowly(sets: dict, name: str) -> int:
    """Rows kept, by comparing each sentence with each other one that has precedence."""

    def same(one: str, other: str) -> bool:
        letters = [[c for c in text.casefold() if c.isalnum()] for text in (one, other)]
        return letters[0] == letters[1]

    names = list(sets)
    blocked = [text for s in sets.values() for split in ("validation", "test")
               for text, _ in s.get(split, [])]
    blocked += [text for earlier in names[: names.index(name)] for text, _ in sets[earlier]["train"]]
    return sum(not any(same(text, other) for other in blocked) for text, _ in sets[name]["train"])


@pytest.mark.parametrize("seed", range(3))
def test_random_overlaps_are_counted_alike_by_a_slow_comparison(seed):
    draw = random.Random(seed)

    def split(size: int) -> list[tuple[str, int]]:
        words = (draw.choice(["A", "a "]) + str(draw.randrange(60)) + draw.choice(["", "!", "_"])
                 for _ in range(size))
        return [(word, draw.randrange(2)) for word in words]

    sets = {name: {"train": split(25), "validation": split(5), "test": split(6)} for name in "abc"}
    for i, name in enumerate(sets):
        sets[name]["train"] += [(f"own {i} 0", 0), (f"own {i} 1", 1)]  # so that both classes are left
    for name, found in guard(sets, "drop").items():
        assert len(kept(sets[name]["train"], found.dropped)) == slowly(sets, name)
        assert found.dropped_eval + found.dropped_train == len(found.dropped)


# ---- real reviews


@pytest.mark.skipif(not (REAL / "sst2").is_dir(), reason="real reviews are not shipped, and not beside this "
                    "checkout")
def test_rotten_tomatoes_behind_sst2_loses_the_sentences_they_share():
    names = ("sst2", "rotten_tomatoes")
    study = study_data([DataSource(name, path=str(REAL / name)) for name in names], "drop")
    assert study.counts["sst2"] == {
        "train": 6907, "validation": 872, "test": 1821, "dropped_eval": 0, "dropped_train": 0, "dropped": 0,
        "shared_eval": 1496 + 732,
    }
    assert study.counts["rotten_tomatoes"]["dropped_train"] == 5644
    assert study.counts["rotten_tomatoes"]["train"] == 8139 - 5644 == len(rows(study, "rotten_tomatoes",
                                                                               "train", 0))
    spec = data_spec(study, "rotten_tomatoes", EvalSpec("test", 0, 1))
    assert spec.counts == {"train": 2495, "eval": 1685, "dropped": 5644}
    assert not letters([text for text, _ in rows(study, "rotten_tomatoes", "train", 0)]) & shared(names)


@pytest.mark.skipif(not (REAL / "sst2").is_dir(), reason="real reviews are not shipped, and not beside this "
                    "checkout")
@pytest.mark.parametrize("name", ["sst2", "rotten_tomatoes", "customer_reviews", "uci_yelp", "mds_books"])
def test_a_set_that_is_not_shipped_names_its_public_source_and_its_files_digests(name):
    said = (Path(__file__).parents[2] / "conf" / "data" / f"{name}.yaml").read_text()
    digests = [sha256((REAL / name / f"{split}.jsonl").read_bytes()).hexdigest()[:16]
               for split in ("train", "validation", "test")]
    assert "# source: github.com/" in said and " at " in said and " ".join(digests) in said


def letters(texts: list[str]) -> set[str]:
    """Case-folded alphanumeric characters of each text, one by one."""
    return {"".join(char for char in text.casefold() if char.isalnum()) for text in texts}


def shared(names: tuple[str, ...]) -> set[str]:
    """Sentences no later training set may hold: all of SST-2's, and what Rotten Tomatoes is evaluated on."""
    files = [REAL / names[0] / f"{split}.jsonl" for split in ("train", "validation", "test")]
    files += [REAL / names[1] / f"{split}.jsonl" for split in ("validation", "test")]
    return letters([json.loads(line)["text"] for file in files for line in file.open(encoding="utf-8")])
