"""The generated language: reviews, neutral sentences, and the labelled sentiment sets.

Pure functions. All randomness comes from the `random.Random` given, made by `stream(purpose)`.
Polarity is 1 (good) or 0 (bad). What hosts are pretrained on is made of these in `corpus`.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass

from portability.embedded.recipes import vocabulary as lex
from portability.embedded.recipes.vocabulary import DOMAINS, REGISTERS, Domain


@dataclass(frozen=True)
class Pool:
    """The polarity words a review may draw from: polarity -> words, for adjectives and verbs."""

    adjectives: Mapping[int, tuple[str, ...]]
    verbs: Mapping[int, tuple[str, ...]]


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


def half(words: tuple[str, ...], novel: bool) -> tuple[str, ...]:
    """The words that are held out of labelled training text (`novel`), or the others.

    Example:
        >>> half(("amazing", "beautiful"), True)
        ('amazing',)
    """
    return tuple(w for w in words if (w in lex.HELD_OUT) is novel)


def vocabulary() -> list[str]:
    """Every word of the language once, sorted."""
    words: set[str] = {lex.POSITIVE_WORD, lex.NEGATIVE_WORD, *lex.MARKS, *DOMAINS}
    words.update(lex.OPENERS + lex.CLOSERS)
    for register in REGISTERS.values():
        texts = register.clauses + register.negated + register.contrasts + register.pairs + register.shrugs
        words.update(w for t in texts for w in t.split() if not w.startswith("{"))
        words.update(register.strong + register.weak + (register.copula,))
        for lists in (register.adjectives, register.verbs):
            words.update(lists[0] + lists[1])
    for domain in DOMAINS.values():
        words.update(domain.aspects)
    for entry in lex.ENDINGS + lex.HEADERS + ((lex.HEADED_CUE, "", ""),):
        words.update(w for text in entry for w in text.split())
    for things in lex.FACTS.values():
        words.update(things)
    words.update(w for t in lex.NEUTRAL for w in t.split() if not w.startswith("{"))
    return sorted(words)


def key(text: str) -> str:
    """What makes two sentences the same: case-folded letters and digits only.

    Example:
        >>> key("The plot, was GOOD .") == key("the plot was good")
        True
    """
    return re.sub(r"[^a-z0-9]+", "", text.casefold())


def pool(domain: Domain, novel: bool | None) -> Pool:
    """The polarity words of a domain's register: all (None), held-out (True) or the rest (False)."""
    register = REGISTERS[domain.register]
    if novel is None:
        return Pool(register.adjectives, register.verbs)
    return Pool(
        {p: half(w, novel) for p, w in register.adjectives.items()},
        {p: half(w, novel) for p, w in register.verbs.items()},
    )


def clause(
    rng: random.Random, domain: Domain, polarity: int, negation: float, words: Pool
) -> str:
    """One clause of the wanted polarity; with probability `negation` by denying the opposite."""
    register = REGISTERS[domain.register]
    denied = rng.random() < negation
    said = 1 - polarity if denied else polarity
    adverb = rng.choice(register.strong + register.weak) if rng.random() < 0.3 else ""
    text = rng.choice(register.negated if denied else register.clauses).format(
        t=rng.choice(domain.aspects),
        a=rng.choice(words.adjectives[said]),
        v=rng.choice(words.verbs[said]),
        g=adverb,
    )
    return " ".join(text.split())


def graded(rng: random.Random, domain: Domain, polarity: int, words: Pool) -> str:
    """A clause with a weak word of one polarity and a strong one of the other, which decides."""
    register = REGISTERS[domain.register]
    weak = f"{rng.choice(register.weak)} {rng.choice(words.adjectives[1 - polarity])}"
    strong = f"{rng.choice(register.strong)} {rng.choice(words.adjectives[polarity])}"
    first, second = (weak, strong) if rng.random() < 0.5 else (strong, weak)
    return f"the {rng.choice(domain.aspects)} {register.copula} {first} and {second}"


def review(rng: random.Random, domain: Domain, polarity: int, mix: Mix, words: Pool) -> str:
    """One review of the wanted polarity, as space-separated lower-case tokens."""
    if rng.random() < mix.easy:
        return clause(rng, domain, polarity, 0.0, words)
    kind, register = rng.random(), REGISTERS[domain.register]
    if kind < mix.graded:
        return graded(rng, domain, polarity, words)
    main = clause(rng, domain, polarity, mix.negation, words)
    if kind < mix.graded + mix.contrast:
        other = clause(rng, domain, 1 - polarity, mix.negation, words)
        if rng.random() < mix.concession:
            main = rng.choice(register.shrugs)
        return rng.choice(register.contrasts).format(m=main, o=other)
    if kind < mix.graded + mix.contrast + mix.pair:
        other = clause(rng, domain, polarity, mix.negation, words)
        return rng.choice(register.pairs).format(m=main, o=other)
    return main


def neutral(rng: random.Random) -> tuple[str, dict[str, str]]:
    """A sentence without polarity, and its facts (kind -> word), e.g. `{"colour": "red"}`."""
    facts = {kind: rng.choice(words) for kind, words in lex.FACTS.items()}
    template = rng.choice(lex.NEUTRAL)
    used = {k: v for k, v in facts.items() if "{" + k + "}" in template}
    return template.format(**facts), used


def sentiment_sets(
    domains: Mapping[str, str], sizes: Mapping[str, int], mix: Mix, novel: Mapping[str, float]
) -> dict[str, dict[str, list[dict[str, object]]]]:
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
    sets: dict[str, dict[str, list[dict[str, object]]]] = {}
    for name, domain_name in domains.items():
        sets[name] = {}
        for split, size in sizes.items():
            rng = stream(f"sentiment/{name}/{split}")
            examples: list[dict[str, object]] = []
            while len(examples) < size:
                label, domain = len(examples) % 2, DOMAINS[domain_name]
                words = pool(domain, rng.random() < novel[split])
                text = review(rng, domain, label, mix, words)
                if key(text) not in taken:
                    taken.add(key(text))
                    examples.append({"text": text, "label": label})
            rng.shuffle(examples)
            sets[name][split] = examples
    return sets
