"""The data of a study: guarded, counted and named by content; what is derived is kept, so planning re-reads
nothing.

    sources.read_split -> guard -> study_data (counts, digests) -> rows -> tokenization.encode

The leak guard: what stands in more than one place of a study is dropped from training by one rule.

The rule looks at the study's list of data sets and at nothing else, so a training set, and with it an
origin's module, stays the same whatever it is ported to.
"""

import hashlib
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from typing import Any

from portability.core.errors import UserError, validate_choice
from portability.core.hashing import remember, remembered
from portability.core.seeds import stream_seed
from portability.core.specs import DataSpec, EvalSpec, digest
from portability.data.examples import Example, LabelledText, Rows, question
from portability.data.sources import DataSource, check, files, read_split

EVAL_SPLITS = ("validation", "test")
OVERLAPS = ("drop", "keep")
GUARD_RULE = 2  # raise it when the leak guard or the digests change, so that kept results are not used


@dataclass(frozen=True)
class StudyData:
    """The data sets of a study after the leak guard, without their texts.

    Attributes:
        sources: by name, in the order of precedence.
        counts: name -> examples: train (used), validation, test, dropped_eval, dropped_train, dropped (their
            sum), and shared_eval (evaluation examples that stand in another set's evaluation splits too; they
            stay).
        digests: name -> split -> digest of its rows (of those kept, for train).
        dropped: name -> indices of the training rows that are not used: dropped, or not drawn.
    """

    sources: Mapping[str, DataSource]
    counts: Mapping[str, Mapping[str, int]]
    digests: Mapping[str, Mapping[str, str]]
    dropped: Mapping[str, Sequence[int]]


def study_data(sources: Sequence[DataSource], overlap: str) -> StudyData:
    """Apply the leak guard to a study's sets; no file is read where they are as they were the last time.

    Args:
        sources: every set of the study; the order is the order of precedence.
        overlap: "drop" or "keep" training sentences that stand elsewhere in the study
            (guard).

    Raises:
        UserError: a source is bad, two have one name, or the guard leaves less than two classes to train on.
    """
    validate_choice(overlap, OVERLAPS, "overlap")
    by_name = {source.name: source for source in sources}
    if not sources or len(by_name) < len(sources):
        raise UserError(f"a study needs distinct data sets, got {[source.name for source in sources]}")
    content = ["study", GUARD_RULE, overlap, [_stamp(source) for source in sources]]
    facts = _once(content, lambda: _facts(by_name, overlap))
    parts = {part: {name: facts[name][part] for name in by_name} for part in ("counts", "digests", "dropped")}
    return StudyData(by_name, **parts)


def _facts(sources: Mapping[str, DataSource], overlap: str) -> dict[str, Any]:
    sets = {name: {split: read_split(source, split) for split in check(source)}
            for name, source in sources.items()}
    out = {}
    for name, guarded in guard(sets, overlap).items():
        unused = _unused(sources[name], sets[name]["train"], guarded.dropped)
        splits = sets[name] | {"train": kept(sets[name]["train"], unused)}
        counts = {split: len(splits.get(split, [])) for split in ("train", *EVAL_SPLITS)}
        dropped = asdict(guarded) | {"dropped": len(guarded.dropped)}
        out[name] = {
            "counts": counts | dropped,
            "digests": {split: rows_digest(found) for split, found in splits.items()},
            "dropped": unused,
        }
    return out


def _unused(source: DataSource, rows: Rows, dropped: Sequence[int]) -> list[int]:
    """Indices of the training rows that the leak guard drops, or that are not drawn.

    Raises:
        UserError: what is drawn is of one class only.
    """
    used = drawn(sorted({*range(len(rows))} - {*dropped}), source.train_examples)
    if len({rows[index][1] for index in used if not isinstance(rows[index], Example)}) == 1:
        raise UserError(f"data set '{source.name}': train_examples {source.train_examples} leaves examples "
                        "of one label only; take more")
    return sorted({*range(len(rows))} - {*used})


def drawn(indices: Sequence[int], count: int | None) -> list[int]:
    """So many of a training set's examples, in order: the first of a fixed shuffle, the same for all seeds of
    a study, so that few of them are among more. All of them where there are no more, or for None.

    Example:
        >>> set(drawn(range(9), 3)) < set(drawn(range(9), 5)), drawn(range(9), None) == list(range(9))
        (True, True)
    """
    found = list(indices)
    random.Random(stream_seed("train-subset")).shuffle(found)
    return sorted(found[:count])


def rows_digest(found: Rows) -> str:
    """First 16 hex digits of the SHA-256 over texts and labels, or over examples, in order; nothing but
    content counts.

    Example:
        >>> rows_digest([("a", 0), ("b", 1)]) == rows_digest([("a", 0), ("b", 0)])
        False
    """
    total = hashlib.sha256()
    for row in found:
        content = list(astuple(row) if isinstance(row, Example) else row)
        total.update(json.dumps(content, separators=(",", ":")).encode() + b"\n")
    return total.hexdigest()[:16]


def data_spec(study: StudyData, name: str, eval_spec: EvalSpec) -> DataSpec:
    """One set of the study as a value: digests of what is trained on and of what is evaluated, and counts.

    Raises:
        UserError: no such set, or it lacks the split that is to be evaluated.
    """
    source = study.sources[validate_choice(name, study.sources, "data set")]
    split, limit = validate_choice(eval_spec.split, EVAL_SPLITS, "eval.split"), eval_spec.limit
    counts, digests = study.counts[name], study.digests[name]
    if limit < 0:
        raise UserError(f"eval.limit must be 0 (all) or a number of examples, got {limit}")
    if split not in digests:
        raise UserError(f"data set '{name}' has no {split} split; choose another eval.split")
    size, evaluated = counts[split], digests[split]
    if 0 < limit < size:
        facts = _once(["subset", GUARD_RULE, evaluated, split, limit],
                      lambda: {"digest": rows_digest(rows(study, name, split, limit))})
        size, evaluated = limit, facts["digest"]
    return DataSpec(
        name=name,
        source=source.path or source.hub or str(source.splits["train"]),
        revision=source.revision if source.hub else None,
        train_digest=digests["train"],
        eval_digest=evaluated,
        counts={"train": counts["train"], "eval": size, "dropped": counts["dropped"]},
    )


def rows(study: StudyData, name: str, split: str, limit: int) -> Rows:
    """The rows that are trained on or evaluated.

    Args:
        split: "train" (after the guard), "validation" or "test".
        limit: first so many of a fixed shuffle, at least 0; 0: all, in the source's order.

    Raises:
        UserError: no such set or split, or its content is no longer what the study was planned with.
    """
    found = read_split(study.sources[validate_choice(name, study.sources, "data set")], split)
    if split == "train":
        found = kept(found, study.dropped[name])
    if rows_digest(found) != study.digests[name][split]:
        raise UserError(f"the {split} split of data set '{name}' changed since the study was planned; rerun")
    return limited(found, split, limit)


def limited(found: Rows, split: str, limit: int) -> Rows:
    """The rows of a split that are used, as of `rows`; `found` is shuffled in place."""
    if 0 < limit < len(found):
        random.Random(stream_seed("eval-subset", split, limit)).shuffle(found)
        found = found[:limit]
    return found


# ---- the leak guard


def key(text: str) -> str:
    """What two sentences have in common when they count as the same: case-folded alphanumeric characters.

    A text without any is its own key, so that "!!!" and "..." differ.

    Example:
        >>> key("It 's GOOD .") == key("it's good!")
        True
        >>> key("?!")
        '?!'
    """
    folded = text.casefold()
    return re.sub(r"[\W_]+", "", folded) or folded.strip()


def key_of(row: LabelledText | Example) -> str:
    """What two rows have in common when they count as the same: of a text `key`, of a pair both texts' in
    their order, of a prompt `examples.question`."""
    if isinstance(row, Example):
        return question(row)
    return key(row[0]) if isinstance(row[0], str) else "\n".join(map(key, row[0]))


@dataclass(frozen=True)
class Guarded:
    """What the guard did to one set.

    Attributes:
        dropped: indices of the training rows that were dropped, in order.
        dropped_eval: how many of them stand in a validation or test split of the study.
        dropped_train: how many of the others stand in the training split of a set listed earlier.
        shared_eval: validation and test rows that also stand in an evaluation split of another set; they
            stay.
    """

    dropped: tuple[int, ...]
    dropped_eval: int
    dropped_train: int
    shared_eval: int


def guard(sets: Mapping[str, Mapping[str, Rows]], overlap: str) -> dict[str, Guarded]:
    """Which training rows each set loses.

    A row is dropped if its key stands in any evaluation split of any set (its own included), or in the
    training split of a set listed earlier. Whether the earlier set itself kept that sentence makes no
    difference: what it lost stands in an evaluation split, or in the training split of a set listed before
    both.

    Args:
        sets: name -> split -> rows, in the order of precedence.
        overlap: "drop", or "keep" to drop nothing.

    Raises:
        UserError: nothing is left of a training split, or only one class.

    Source: our choice (design: the full grid).

    Example:
        >>> films = {"train": [("Good.", 1), ("Bad.", 0), ("Dull.", 0)], "test": [("dull", 0), ("fine", 1)]}
        >>> guard({"films": films}, "drop")["films"].dropped
        (2,)
    """
    evaluated = {name: [key_of(row) for split in EVAL_SPLITS for row in splits.get(split, [])]
                 for name, splits in sets.items()}
    sets_with = Counter(found for keys in evaluated.values() for found in set(keys))
    earlier: set[str] = set()
    out = {}
    for name, splits in sets.items():
        found = [key_of(row) for row in splits["train"]]
        in_eval = [i for i, k in enumerate(found) if k in sets_with and overlap == "drop"]
        in_train = [i for i, k in enumerate(found)
                    if k not in sets_with and k in earlier and overlap == "drop"]
        shared = sum(sets_with[k] > 1 for k in evaluated[name])
        out[name] = Guarded(tuple(sorted(in_eval + in_train)), len(in_eval), len(in_train), shared)
        _check_left(name, kept(splits["train"], out[name].dropped), len(found))
        earlier.update(found)
    return out


def kept(rows: Rows, dropped: Collection[int]) -> Rows:
    """The rows without those at the indices `dropped`.

    Example:
        >>> kept([("a", 0), ("b", 1), ("c", 0)], [1])
        [('a', 0), ('c', 0)]
    """
    gone = set(dropped)
    return [row for i, row in enumerate(rows) if i not in gone]


def _check_left(name: str, rows: Rows, before: int) -> None:
    labels = {None if isinstance(row, Example) else row[1] for row in rows}
    if not labels or (None not in labels and len(labels) < 2):
        left = f"only examples of label {labels.pop()}" if labels else "no examples"
        raise UserError(f"data set '{name}': the leak guard leaves {left} of its {before} training examples; "
                        "list it earlier in grid.study_data, or set grid.overlap=keep")


# ---- what is kept between commands


def _stamp(source: DataSource) -> list[Any]:
    """What tells whether a source is as it was: path, size and time of its files, or the pinned revision."""
    stats = [(str(path.resolve()), path.stat()) for path in files(source).values()]
    return [asdict(source), [[path, stat.st_size, stat.st_mtime_ns] for path, stat in stats]]


def _once(content: Sequence[Any], make: Callable[[], Any]) -> Any:
    """What follows from this content, made once."""
    entry = digest(content)
    found = remembered("data", entry)
    if found is None:
        found = make()
        remember("data", entry, found)
    return found
