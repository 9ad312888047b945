"""Two generated tasks for the embedded hosts, and the text of the same invented world to pretrain such hosts
on.

`sums` asks for the result of a sum (generated answer), `quiz` for a fact of the world (one of four choices);
`corpus` states facts and sums in other words than the questions, so that a host pretrained on it knows them
in part and a module has to learn how they are asked for. A sum, a fact or a comparison is asked for in one
split only, whatever the wording; but 3 + 5, 5 + 3 and 8 - 5 are sums of their own, and may stand in different
splits. Everything is our choice; words, numbers and marks stand apart, so a tokenizer of whole words covers
all of it.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from typing import TypeVar

from portability.core.seeds import stream_seed

Row = dict[str, object]
World = dict[str, dict[str, str]]  # invented beings: name -> kind of fact -> value
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
SUM_QUESTIONS = ("{a} {sign} {b} =", "what is {a} {sign} {b} ?", "compute {a} {sign} {b} :")
SUM_STATEMENTS: Mapping[str, tuple[str, ...]] = {
    "+": ("{a} and {b} make {c}", "{a} + {b} gives {c}", "{c} comes of {a} with {b} more"),
    "-": ("{b} taken from {a} leaves {c}", "{a} - {b} gives {c}", "{c} remains of {a} without {b}"),
}
# 192 invented names of two syllables, the same in every world
SYLLABLES = ("ba", "do", "fe", "gi", "ka", "lo", "mi", "nu", "pe", "ri", "su", "ta"), "klmv", "aeio"
NAMES = tuple("".join(parts) for parts in product(*SYLLABLES))
NUMBERS = range(LARGEST + 1)
# every sum, and every difference that is not negative: first operand, sign, second operand, result
SUMS = [(a, "+", b, a + b) for a in NUMBERS for b in NUMBERS] + [
    (a, "-", b, a - b) for a in NUMBERS for b in NUMBERS if b <= a]


def world(seed: int) -> World:
    """The facts of a seed's world, each value about equally often."""
    facts: World = {name: {} for name in NAMES}
    for kind, values in VALUES.items():
        column = [values[i % len(values)] for i in range(len(NAMES))]
        random.Random(stream_seed(seed, "world", kind)).shuffle(column)
        for name, value in zip(NAMES, column, strict=True):
            facts[name][kind] = value
    return facts


def _level(known: World, name: str) -> int:
    """How large a being is, 0 (tiny) to 3 (huge)."""
    return LEVELS.index(known[name]["size"])


def sums(seed: int, split: str) -> list[Row]:
    """One split of the sums: ``{"prompt": "12 + 3 =", "answer": "15"}``; a sum stands in one split, in one
    wording.

    Args:
        split: train (1,000 rows), validation or test (200 each).

    Example:
        >>> row = sums(0, "test")[0]
        >>> sorted(row), int(row["answer"]) >= 0
        (['answer', 'prompt'], True)
    """
    rng = random.Random(stream_seed(seed, "sums", "wording", split))
    return [{"prompt": rng.choice(SUM_QUESTIONS).format(a=a, sign=sign, b=b), "answer": str(result)}
            for a, sign, b, result in _part(SUMS, SIZES, split, seed, "sums")]


def _part(whole: Sequence[Item], sizes: Mapping[str, int], split: str, *names: object) -> list[Item]:
    """The items of one split, `sizes[split]` of all, in random order; splits share none. `names` are of the
    random stream."""
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

    Example:
        >>> row = quiz(0, "test")[0]
        >>> sorted(row), len(row["choices"]), 0 <= row["answer"] < 4
        (['answer', 'choices', 'prompt'], 4, True)
    """
    known, rng = world(seed), random.Random(stream_seed(seed, "quiz", "wording", split))
    compared = {name: size // COMPARED for name, size in SIZES.items()}
    single = {name: size - compared[name] for name, size in SIZES.items()}
    asked: list[tuple[str, str, list[str]]] = []  # prompt, right, wrong
    every = [(name, kind) for name in NAMES for kind in VALUES]
    for name, kind in _part(every, single, split, seed, "facts"):
        value = known[name][kind]
        wrong = rng.sample([other for other in VALUES[kind] if other != value], CHOICES - 1)
        asked.append((rng.choice(QUESTIONS[kind]).format(name=name), value, wrong))
    for four in _part(_fours(known, seed, sum(compared.values())), compared, split, seed, "fours"):
        *wrong, right = sorted(four, key=lambda name: _level(known, name))
        asked.append((LARGEST_ASKED, right, wrong))
    rng.shuffle(asked)
    places = [i % CHOICES for i in range(len(asked))]
    rng.shuffle(places)
    rows: list[Row] = []
    for (prompt, right, wrong), place in zip(asked, places, strict=True):
        choices = rng.sample(wrong, len(wrong))
        choices.insert(place, right)
        prompt = f"{prompt} {' , '.join(choices)} . answer :"
        rows.append({"prompt": prompt, "choices": choices, "answer": place})
    return rows


def _fours(known: World, seed: int, count: int) -> list[tuple[str, ...]]:
    """Fours of beings of which one alone is the largest, none twice."""
    rng = random.Random(stream_seed(seed, "quiz", "fours"))
    found: dict[tuple[str, ...], None] = {}
    while len(found) < count:
        four = tuple(sorted(rng.sample(NAMES, CHOICES)))
        levels = sorted(_level(known, name) for name in four)
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
    for _ in range(lines):
        if rng.random() < SUM_SHARE:
            a, sign, b, result = rng.choice(SUMS)
            yield rng.choice(SUM_STATEMENTS[sign]).format(a=a, b=b, c=result) + " ."
        elif rng.randrange(COMPARED) == 0:
            less = more = 0
            while less == more:
                pair = rng.sample(NAMES, 2)
                less, more = (_level(known, name) for name in pair)
            smaller, larger = pair if less < more else reversed(pair)
            yield rng.choice(COMPARISONS).format(less=smaller, more=larger) + " ."
        else:
            name, kind = rng.choice(NAMES), rng.choice(tuple(VALUES))
            yield rng.choice(STATEMENTS[kind]).format(name=name, value=known[name][kind]) + " ."


def vocabulary() -> list[str]:
    """Every word, number and mark of both tasks and of the corpus once, sorted, whatever the seed; words are
    what blanks separate."""
    groups = (*QUESTIONS.values(), *STATEMENTS.values(), SUM_QUESTIONS, *SUM_STATEMENTS.values(), COMPARISONS,
              (LARGEST_ASKED, "+ - , . answer :"))
    words = {word for group in groups for text in group for word in text.split() if not word.startswith("{")}
    words |= {word for values in VALUES.values() for word in values}
    return sorted(words | {*NAMES, *map(str, range(2 * LARGEST + 1))})


TASKS: Mapping[str, Callable[[int, str], list[Row]]] = {"sums": sums, "quiz": quiz}


def sets(seed: int) -> dict[str, dict[str, list[Row]]]:
    """Both tasks: name -> split -> rows."""
    return {name: {split: task(seed, split) for split in SIZES} for name, task in TASKS.items()}
