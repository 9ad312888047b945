"""The leak guard: what stands in more than one place of a study is dropped from training by one rule.

The rule looks at the study's list of data sets and at nothing else, so a training set, and with it an
origin's module, stays the same whatever it is ported to.
"""

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from portability.core.errors import UserError
from portability.data.examples import Example, LabelledText, Rows, question

EVAL_SPLITS = ("validation", "test")
OVERLAPS = ("drop", "keep")


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
    """What two rows have in common when they count as the same: of a text `key`, of a prompt
    `tasks.examples.question`."""
    return question(row) if isinstance(row, Example) else key(row[0])


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
                        "list it earlier in grid.study_data, leave out the set it repeats, or set "
                        "grid.overlap=keep")
