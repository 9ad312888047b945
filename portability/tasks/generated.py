"""Two generated tasks for the embedded hosts, and the text of the same invented world to pretrain such hosts
on.

`sums` asks for the result of a sum (generated answer), `quiz` for a fact of the world (one of four choices);
`corpus` states facts and sums in other words than the questions, so that a host pretrained on it knows them
in part and a module has to learn how they are asked for. A sum, a fact or a comparison is asked for in one
split only, whatever the wording; but 3 + 5, 5 + 3 and 8 - 5 are sums of their own, and may stand in different
splits. Everything is our choice; words, numbers and marks stand apart, so a tokenizer of whole words covers
all of it.
"""

import functools
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from portability.core.errors import choose
from portability.core.seeds import stream_seed

Row = dict[str, object]
Item = TypeVar("Item")
SIZES = {"train": 1000, "validation": 200, "test": 200}
LARGEST = 40  # operand of a sum; results lie between 0 and twice as much
CHOICES = 4  # of a quiz question
SUM_SHARE = 0.5  # of the corpus's lines
# every so many questions of the quiz compare four beings, and every so many lines about the world two
COMPARED = 5
LEVELS = ("tiny", "small", "tall", "huge")  # in this order

VALUES: Mapping[str, tuple[str, ...]] = {
    "colour": ("red", "blue", "green", "black", "white", "yellow", "brown", "grey"),
    "home": ("river", "hill", "forest", "island", "valley", "harbour", "desert", "meadow"),
    "food": ("bread", "rice", "soup", "fish", "cheese", "honey", "nuts", "berries"),
    "craft": ("baker", "smith", "weaver", "potter", "painter", "sailor", "farmer", "singer"),
    "pet": ("cat", "dog", "goat", "crow", "snake", "mouse", "horse", "frog"),
    "size": LEVELS,
}
QUESTIONS: Mapping[str, tuple[str, ...]] = {
    "colour": ("which colour does {name} wear ?", "what is the colour of {name} ?"),
    "home": ("where does {name} live ?", "what is the home of {name} ?"),
    "food": ("what does {name} like to eat ?", "what is the food of {name} ?"),
    "craft": ("what does {name} work as ?", "what is the craft of {name} ?"),
    "pet": ("which pet does {name} keep ?", "what is the pet of {name} ?"),
    "size": ("how tall is {name} ?", "what is the size of {name} ?"),
}
STATEMENTS: Mapping[str, tuple[str, ...]] = {
    "colour": ("{name} came in {value}", "the colour chosen by {name} is {value}", "{value} suits {name}"),
    "home": ("{name} came from the {value}", "{name} has a home by the {value}",
             "the {value} is where {name} sleeps"),
    "food": ("{name} ordered {value}", "the best food for {name} is {value}", "{value} made {name} happy"),
    "craft": ("{name} the {value}", "{name} learned the craft of a {value}",
              "the {value} of the village was {name}"),
    "pet": ("{name} called the {value}", "{name} has a {value} for a pet", "a {value} belonged to {name}"),
    "size": ("{name} was {value}", "{name} is of {value} size", "people found {name} {value}"),
}
LARGEST_ASKED, COMPARISONS = "who is the largest ?", ("{more} looked down on {less}",
                                                      "{less} stood behind {more}")
SUM_QUESTIONS: Mapping[str, tuple[str, ...]] = {
    "+": ("{a} + {b} =", "what is {a} + {b} ?", "compute {a} + {b} :"),
    "-": ("{a} - {b} =", "what is {a} - {b} ?", "compute {a} - {b} :"),
}
SUM_STATEMENTS: Mapping[str, tuple[str, ...]] = {
    "+": ("{a} and {b} make {c}", "{a} + {b} gives {c}", "{c} comes of {a} with {b} more"),
    "-": ("{b} taken from {a} leaves {c}", "{a} - {b} gives {c}", "{c} remains of {a} without {b}"),
}


@dataclass(frozen=True)
class World:
    """Invented beings: name -> kind of fact -> value."""

    facts: Mapping[str, Mapping[str, str]]

    def level(self, name: str) -> int:
        """How large a being is, 0 (tiny) to 3 (huge)."""
        return LEVELS.index(self.facts[name]["size"])


@functools.cache
def names() -> tuple[str, ...]:
    """The 192 invented names, the same in every world, of two syllables each.

    Example:
        >>> names()[:2], len(names())
        (('baka', 'bake'), 192)
    """
    firsts = ("ba", "do", "fe", "gi", "ka", "lo", "mi", "nu", "pe", "ri", "su", "ta")
    seconds = ("k", "l", "m", "v")
    return tuple(first + second + last for first in firsts for second in seconds for last in "aeio")


def world(seed: int) -> World:
    """The facts of a seed's world, each value about equally often."""
    columns = {}
    for kind, values in VALUES.items():
        column = [values[i % len(values)] for i in range(len(names()))]
        random.Random(stream_seed(seed, "world", kind)).shuffle(column)
        columns[kind] = column
    return World({name: {kind: columns[kind][i] for kind in VALUES} for i, name in enumerate(names())})


def sums(seed: int, split: str) -> list[Row]:
    """One split of the sums: ``{"prompt": "12 + 3 =", "answer": "15"}``; a sum stands in one split, in one
    wording.

    Args:
        split: train (1,000 rows), validation or test (200 each).

    Raises:
        UserError: an unknown split.

    Example:
        >>> row = sums(0, "test")[0]
        >>> sorted(row), int(row["answer"]) >= 0
        (['answer', 'prompt'], True)
    """
    rng = random.Random(stream_seed(seed, "sums", "wording", split))
    rows: list[Row] = []
    for a, sign, b, result in _part(_all_sums(), SIZES, split, seed, "sums"):
        rows.append({"prompt": rng.choice(SUM_QUESTIONS[sign]).format(a=a, b=b), "answer": str(result)})
    return rows


def _all_sums() -> list[tuple[int, str, int, int]]:
    """Every sum and every difference that is not negative: first operand, sign, second operand, result."""
    numbers = range(LARGEST + 1)
    added = [(a, "+", b, a + b) for a in numbers for b in numbers]
    return added + [(a, "-", b, a - b) for a in numbers for b in numbers if b <= a]


def _part(whole: Sequence[Item], sizes: Mapping[str, int], split: str, *names: object) -> list[Item]:
    """The items of one split, `sizes[split]` of all, in random order; splits share none. `names` are of the
    random stream."""
    choose(split, sizes, "split of a generated task")
    order = random.Random(stream_seed(*names, "order")).sample(whole, sum(sizes.values()))
    first = sum(sizes[before] for before in list(sizes)[: list(sizes).index(split)])
    return order[first : first + sizes[split]]


def quiz(seed: int, split: str) -> list[Row]:
    """One split of the quiz: ``{"prompt": ..., "choices": four words, "answer": index}``, about
    `world(seed)`.

    Four in five questions ask for one fact (each fact in one split only), the others which of four beings is
    the largest (each four in one split only). The right choice stands at each place equally often.

    Args:
        split: train (1,000 rows), validation or test (200 each).

    Raises:
        UserError: an unknown split.

    Example:
        >>> row = quiz(0, "test")[0]
        >>> sorted(row), len(row["choices"]), 0 <= row["answer"] < 4
        (['answer', 'choices', 'prompt'], 4, True)
    """
    known, rng = world(seed), random.Random(stream_seed(seed, "quiz", "wording", split))
    compared = {name: size // COMPARED for name, size in SIZES.items()}
    single = {name: size - compared[name] for name, size in SIZES.items()}
    asked: list[tuple[str, str, list[str]]] = []  # prompt, right, wrong
    for name, kind in _part([(name, kind) for name in names() for kind in VALUES], single, split, seed,
                            "facts"):
        value = known.facts[name][kind]
        wrong = rng.sample([other for other in VALUES[kind] if other != value], CHOICES - 1)
        asked.append((rng.choice(QUESTIONS[kind]).format(name=name), value, wrong))
    for four in _part(_fours(known, seed, sum(compared.values())), compared, split, seed, "fours"):
        *wrong, right = sorted(four, key=known.level)
        asked.append((LARGEST_ASKED, right, wrong))
    rng.shuffle(asked)
    places = [i % CHOICES for i in range(len(asked))]
    rng.shuffle(places)
    return [_question(*one, place, rng) for one, place in zip(asked, places, strict=True)]


def _question(prompt: str, right: str, wrong: list[str], place: int, rng: random.Random) -> Row:
    choices = rng.sample(wrong, len(wrong))
    choices.insert(place, right)
    options = " , ".join(choices)
    return {"prompt": f"{prompt} {options} . answer :", "choices": choices, "answer": place}


def _fours(known: World, seed: int, count: int) -> list[tuple[str, ...]]:
    """Fours of beings of which one alone is the largest, none twice."""
    rng = random.Random(stream_seed(seed, "quiz", "fours"))
    found: dict[tuple[str, ...], None] = {}
    while len(found) < count:
        four = tuple(sorted(rng.sample(names(), CHOICES)))
        levels = sorted(known.level(name) for name in four)
        if levels[-2] < levels[-1]:
            found[four] = None
    return list(found)


def corpus(seed: int, lines: int) -> Iterator[str]:
    """Text about `world(seed)` and about sums, a statement a line; fewer lines are the beginning of more.

    Half of the lines state a sum, the others a fact or, one in five of these, which of two beings is the
    larger. Facts and sums are drawn evenly out of all, those of every split among them, so how much of them a
    host knows depends on how much it has read; the questions themselves never stand here.

    Args:
        lines: number of lines, at least 0.
    """
    known, rng = world(seed), random.Random(stream_seed(seed, "corpus"))
    all_sums, all_names = _all_sums(), names()
    for _ in range(lines):
        if rng.random() < SUM_SHARE:
            a, sign, b, result = rng.choice(all_sums)
            yield rng.choice(SUM_STATEMENTS[sign]).format(a=a, b=b, c=result) + " ."
        elif rng.randrange(COMPARED) == 0:
            yield _comparison(known, rng) + " ."
        else:
            name, kind = rng.choice(all_names), rng.choice(tuple(VALUES))
            yield rng.choice(STATEMENTS[kind]).format(name=name, value=known.facts[name][kind]) + " ."


def _comparison(known: World, rng: random.Random) -> str:
    while True:
        less, more = sorted(rng.sample(names(), 2), key=known.level)
        if known.level(less) < known.level(more):
            return rng.choice(COMPARISONS).format(less=less, more=more)


def vocabulary() -> list[str]:
    """Every word, number and mark of both tasks and of the corpus once, sorted, whatever the seed; words are
    what blanks separate."""
    lists = (*QUESTIONS.values(), *STATEMENTS.values(), *SUM_QUESTIONS.values(), *SUM_STATEMENTS.values(),
             COMPARISONS)
    texts = [LARGEST_ASKED, " , . answer :", *(text for group in lists for text in group)]
    words = {word for text in texts for word in text.split() if not word.startswith("{")}
    words |= {word for values in VALUES.values() for word in values}
    return sorted(words | set(names()) | {str(number) for number in range(2 * LARGEST + 1)})


TASKS: Mapping[str, Callable[[int, str], list[Row]]] = {"sums": sums, "quiz": quiz}


def write(folder: Path, seed: int) -> None:
    """Both tasks as ``folder/TASK/SPLIT.jsonl``, one row a line, the same bytes for the same seed."""
    for name, task in TASKS.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for split in SIZES:
            lines = [json.dumps(row) + "\n" for row in task(seed, split)]
            (folder / name / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
