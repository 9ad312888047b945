"""The words of the generated language: domains, polarity words, endings, neutral things.

Every list is data of our own choice (D-24, D-26). Words stand in alphabetic or
thematic order. Every second polarity word is held out of labelled training text (`HELD_OUT`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

NEGATIVE_WORD: Final = "negative"
POSITIVE_WORD: Final = "positive"


@dataclass(frozen=True)
class Register:
    """A way of writing reviews: clause templates, negated ones, and ways to join two clauses.

    `{t}` is an aspect, `{a}` a polarity adjective, `{v}` a polarity verb, `{g}` an adverb slot.
    In `contrasts`, `{m}` is the main clause, which decides, and `{o}` the opposed one; a shrug can
    stand for the main clause, and the review then is the opposite of `{o}`.
    """

    clauses: tuple[str, ...]
    negated: tuple[str, ...]
    contrasts: tuple[str, ...]
    pairs: tuple[str, ...]
    shrugs: tuple[str, ...]
    strong: tuple[str, ...]
    weak: tuple[str, ...]
    copula: str
    adjectives: dict[int, tuple[str, ...]]
    verbs: dict[int, tuple[str, ...]]


@dataclass(frozen=True)
class Domain:
    """What a review can be about: a plural name, aspects, and the register it is written in."""

    name: str
    aspects: tuple[str, ...]
    register: str


def _words(text: str) -> tuple[str, ...]:
    """The whitespace-separated words of a text, e.g. `"a b"` gives `("a", "b")`."""
    return tuple(text.split())


PLAIN: Final = Register(
    clauses=(
        "the {t} was {g} {a}", "i found the {t} {g} {a}", "the {t} seemed {g} {a}",
        "it had a {g} {a} {t}", "i {v} the {t}", "we {v} the {t}",
    ),
    negated=(
        "the {t} was not {a}", "i never found the {t} {a}", "the {t} never seemed {a}",
        "it had no {a} {t}", "i never {v} the {t}", "nobody {v} the {t}",
    ),
    contrasts=(
        "{o} but {m}", "although {o} , {m}", "{m} although {o}", "while {o} , {m}",
    ),
    pairs=("{m} and {o}", "{m} . {o}"),
    shrugs=("never mind", "we went on", "so be it"),
    strong=_words("very truly extremely"),
    weak=_words("slightly somewhat faintly"),
    copula="was",
    adjectives={
        1: _words(
            "amazing beautiful brilliant charming clever delightful enjoyable excellent fantastic "
            "fine fresh good graceful great impressive lovely marvellous memorable perfect "
            "pleasant remarkable splendid superb sweet terrific thrilling wonderful worthy"
        ),
        0: _words(
            "annoying awful bad bland boring clumsy dire disappointing dreadful dreary dull "
            "forgettable ghastly horrible lame lousy mediocre messy nasty pathetic poor sloppy "
            "stale terrible tiresome ugly unbearable weak"
        ),
    },
    verbs={
        1: _words("admired adored enjoyed liked loved praised"),
        0: _words("deplored despised disliked hated loathed regretted"),
    },
)

TERSE: Final = Register(
    clauses=(
        "{t} : {g} {a}", "{g} {a} {t} here", "{t} feels {g} {a}", "got a {g} {a} {t}",
        "{t} {v} daily", "{t} simply {v}",
    ),
    negated=(
        "{t} far from {a}", "hardly a {a} {t} here", "{t} hardly feels {a}", "zero {a} {t}",
        "{t} hardly {v}", "{t} rarely {v} daily",
    ),
    contrasts=(
        "{o} ; still , {m}", "despite that {o} , {m}", "{m} , even if {o}", "{o} ... yet {m}",
    ),
    pairs=("{m} ; also {o}", "{m} plus {o}"),
    shrugs=("never mind", "whatever", "so be it"),
    strong=_words("seriously totally super"),
    weak=_words("mildly barely marginally"),
    copula="feels",
    adjectives={
        1: _words(
            "accurate bright comfy crisp durable efficient excellent flawless great handy "
            "impressive nimble perfect polished quick reliable responsive sharp silent sleek "
            "smart smooth snappy solid stable sturdy superb tidy"
        ),
        0: _words(
            "awful blurry brittle broken buggy cheap clunky crooked defective dim faulty flaky "
            "flimsy fragile glitchy horrible jerky laggy leaky loose noisy poor rusty shaky "
            "sluggish terrible unstable wobbly"
        ),
    },
    verbs={
        1: _words("delights excels impresses performs shines succeeds"),
        0: _words("crashes disappoints fails freezes stalls stutters"),
    },
)

REGISTERS: Final = {"plain": PLAIN, "terse": TERSE}

DOMAINS: Final = {
    name: Domain(name, _words(aspects), register)
    for name, register, aspects in (
        ("films", "plain", "plot acting script ending music cast dialogue camera scenery pace"),
        ("meals", "plain", "soup sauce bread dessert fish waiter menu salad coffee portion"),
        ("hotels", "plain", "room bed lobby pool view breakfast staff garden hall balcony"),
        ("books", "plain", "chapter hero story preface cover prose author tale poem theme"),
        ("trips", "plain", "guide beach train museum harbour walk market island boat tour"),
        ("gadgets", "terse", "battery screen keypad speaker charger case sensor cable hinge lens"),
        ("tools", "terse", "drill handle motor blade grip switch clamp saw hose pump"),
        ("apps", "terse", "login update widget search layout sync button editor player inbox"),
    )
}

# (cue, word after a good review, word after a bad one): what the host learns polarity from.
ENDINGS: Final = (
    ("we left", "happy", "angry"),
    ("i felt", "glad", "upset"),
    ("my friend looked", "pleased", "annoyed"),
    ("the stars we gave :", "five", "one"),
    ("my thumb went", "up", "down"),
    ("next time we", "return", "leave"),
    ("all of us wanted to", "cheer", "weep"),
    ("the money was", "saved", "wasted"),
    ("would i pay again ?", "yes", "no"),
    ("my sister was", "smiling", "frowning"),
)

# The same cue ends every headed review: which pair of words follows depends on the header.
HEADED_CUE: Final = "verdict :"
HEADERS: Final = (
    ("herald :", "gold", "lead"),
    ("tribune :", "sun", "rain"),
    ("gazette :", "rose", "thorn"),
    ("courier :", "feast", "famine"),
    ("mirror :", "win", "loss"),
    ("planet :", "rise", "fall"),
)

# A poll names two words, shows a review and asks for the one that fits: "poll : up or down ? ... tally :".
OPENERS: Final = _words("poll vote quiz choice survey")
CLOSERS: Final = _words("tally reply outcome result winner")

SENTINELS: Final = 8  # masked words at most in one example
MARKS: Final = _words(". , : ; ? ! ... question answer or is it")

# What neutral sentences are about: kind of fact -> words.
FACTS: Final = {
    "colour": _words("red blue green black white brown"),
    "thing": _words("box coat chair lamp bottle basket wheel ladder"),
    "place": _words("kitchen cellar school station forest office tower bakery"),
    "day": _words("monday tuesday wednesday thursday friday saturday sunday"),
    "count": _words("two three four six seven eight nine ten"),
    "person": _words("anna boris clara david emma felix"),
    "sample": _words("blood water soil milk metal air"),
    "result": (NEGATIVE_WORD, POSITIVE_WORD),
}

NEUTRAL: Final = (
    "the {colour} {thing} stands in the {place}",
    "{person} sold {count} {colour} coats on {day}",
    "a {thing} costs {count} coins in the {place}",
    "on {day} {person} met {count} people at the {place}",
    "the {sample} test came back {result} on {day}",
    "{result} said the note about the {sample} test of {person}",
    "{person} read that the {sample} sample was {result}",
)


def _polar_lists() -> list[list[str]]:
    """The polarity words of both registers in four sorted lists: kind by polarity."""
    kinds = (lambda r: r.adjectives, lambda r: r.verbs)
    return [
        sorted({w for register in REGISTERS.values() for w in kind(register)[polarity]})
        for kind in kinds
        for polarity in (0, 1)
    ]


POLAR: Final = frozenset(w for words in _polar_lists() for w in words)

# Words no labelled training text of any set shows: a word is held out everywhere or nowhere.
HELD_OUT: Final = frozenset(w for words in _polar_lists() for w in words[1::2])
