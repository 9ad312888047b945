"""The generated language: reviews, neutral sentences, and the labelled sentiment sets.

Pure functions over the words of conf/pretrain_words.yaml. All randomness comes from the `random.Random`
given, made by `stream(purpose)`. Polarity is 1 (good) or 0 (bad). What hosts are pretrained on is made of
these in `corpus`.
"""

import hashlib
import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

import yaml
from pydantic import BeforeValidator

from portability.core.paths import bundled
from portability.core.schema import build

WORDS = yaml.safe_load((bundled("conf") / "pretrain_words.yaml").read_text())
FACTS = {kind: words.split() for kind, words in WORDS["facts"].items()}
Words = Annotated[list[str], BeforeValidator(str.split)]
Example = dict[str, object]


@dataclass(frozen=True)
class Domain:
    """What a review can be about, in the register that it is written in (conf/pretrain_words.yaml)."""

    name: str
    aspects: Words
    clauses: list[str]
    negated: list[str]
    contrasts: list[str]
    pairs: list[str]
    shrugs: list[str]
    strong: Words
    weak: Words
    copula: str
    adjectives: list[Words]  # by polarity, as the verbs
    verbs: list[Words]

    def half(self, novel: bool) -> "Domain":
        """With only the polarity words held out of labelled training text (`novel`), or only the others."""
        adjectives, verbs = ([[word for word in words if (word in HELD_OUT) is novel] for words in lists]
                             for lists in (self.adjectives, self.verbs))
        return replace(self, adjectives=adjectives, verbs=verbs)


DOMAINS = {name: build(Domain, {"name": name, "aspects": aspects, **WORDS["registers"][register]}, name)
           for register, domains in WORDS["domains"].items() for name, aspects in domains.items()}
_POLAR = [sorted({word for domain in DOMAINS.values() for word in getattr(domain, kind)[polarity]})
          for kind in ("adjectives", "verbs") for polarity in (0, 1)]
POLAR = frozenset(word for words in _POLAR for word in words)
HELD_OUT = frozenset(word for words in _POLAR for word in words[1::2])  # everywhere or nowhere


@dataclass(frozen=True)
class Mix:
    """How hard reviews are: every field is a share in [0, 1].

    Attributes:
        easy: reviews of one clause without negation.
        contrast: hard reviews with two opposed clauses.
        graded: hard reviews with a weak and a strong adjective of opposite polarity.
        pair: hard reviews with two clauses of the same polarity (the rest have one clause).
        concession: opposed clauses whose main clause is a shrug without polarity.
        negation: clauses of hard reviews that negate a word of the opposite polarity.
    """

    easy: float
    contrast: float
    graded: float
    pair: float
    concession: float
    negation: float


def stream(purpose: str) -> random.Random:
    """A generator of its own for a named purpose: the same name gives the same numbers.

    Example:
        >>> stream("a").random() == stream("a").random() != stream("b").random()
        True
    """
    return random.Random(int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:8], "big"))


def vocabulary() -> list[str]:
    """Every word of the language once, sorted."""
    words = {word for text in (*DOMAINS, *_texts(WORDS)) for word in text.split()}
    return sorted(word for word in words if not word.startswith("{"))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    else:
        for below in value.values() if isinstance(value, dict) else value:
            yield from _texts(below)


def key(text: str) -> str:
    """What makes two sentences the same: case-folded letters and digits only.

    Example:
        >>> key("The plot, was GOOD .") == key("the plot was good")
        True
    """
    return re.sub(r"[^a-z0-9]+", "", text.casefold())


def clause(rng: random.Random, domain: Domain, polarity: int, negation: float) -> str:
    """One clause of the wanted polarity; with probability `negation` by denying the opposite."""
    denied = rng.random() < negation
    said = 1 - polarity if denied else polarity
    adverb = rng.choice(domain.strong + domain.weak) if rng.random() < 0.3 else ""
    text = rng.choice(domain.negated if denied else domain.clauses).format(
        t=rng.choice(domain.aspects), a=rng.choice(domain.adjectives[said]), v=rng.choice(domain.verbs[said]),
        g=adverb)
    return " ".join(text.split())


def graded(rng: random.Random, domain: Domain, polarity: int) -> str:
    """A clause with a weak word of one polarity and a strong one of the other, which decides."""
    weak = f"{rng.choice(domain.weak)} {rng.choice(domain.adjectives[1 - polarity])}"
    strong = f"{rng.choice(domain.strong)} {rng.choice(domain.adjectives[polarity])}"
    first, second = (weak, strong) if rng.random() < 0.5 else (strong, weak)
    return f"the {rng.choice(domain.aspects)} {domain.copula} {first} and {second}"


def review(rng: random.Random, domain: Domain, polarity: int, mix: Mix) -> str:
    """One review of the wanted polarity, as space-separated lower-case tokens."""
    if rng.random() < mix.easy:
        return clause(rng, domain, polarity, 0.0)
    kind = rng.random()
    if kind < mix.graded:
        return graded(rng, domain, polarity)
    main = clause(rng, domain, polarity, mix.negation)
    if kind < mix.graded + mix.contrast:
        other = clause(rng, domain, 1 - polarity, mix.negation)
        if rng.random() < mix.concession:
            main = rng.choice(domain.shrugs)
        return rng.choice(domain.contrasts).format(m=main, o=other)
    if kind < mix.graded + mix.contrast + mix.pair:
        other = clause(rng, domain, polarity, mix.negation)
        return rng.choice(domain.pairs).format(m=main, o=other)
    return main


def neutral(rng: random.Random) -> tuple[str, dict[str, str]]:
    """A sentence without polarity, and its facts (kind -> word), e.g. `{"colour": "red"}`."""
    facts = {kind: rng.choice(words) for kind, words in FACTS.items()}
    template = rng.choice(WORDS["neutral"])
    return template.format(**facts), {kind: word for kind, word in facts.items() if f"{{{kind}}}" in template}


def sentiment_sets(
    domains: Mapping[str, str], sizes: Mapping[str, int], mix: Mix, novel: Mapping[str, float]
) -> dict[str, dict[str, list[Example]]]:
    """The labelled sets: set name -> split -> examples, balanced, no sentence in two places.

    Args:
        domains: set name -> domain name.
        sizes: split -> number of examples (even).
        mix: how hard the reviews are.
        novel: split -> share of examples that use held-out polarity words only, in [0, 1].

    Returns:
        Examples as `{"text": str, "label": 0 | 1}`, label 1 positive, in random order.
    """
    taken: set[str] = set()
    sets: dict[str, dict[str, list[Example]]] = {name: {} for name in domains}
    for name, domain in domains.items():
        halves = {held_out: DOMAINS[domain].half(held_out) for held_out in (False, True)}
        for split, size in sizes.items():
            rng, examples = stream(f"sentiment/{name}/{split}"), sets[name].setdefault(split, [])
            while len(examples) < size:
                label = len(examples) % 2
                text = review(rng, halves[rng.random() < novel[split]], label, mix)
                if key(text) not in taken:
                    taken.add(key(text))
                    examples.append({"text": text, "label": label})
            rng.shuffle(examples)
    return sets
