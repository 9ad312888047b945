"""The generated language: reviews, neutral sentences, the labelled sentiment sets, and what the embedded T5s
are pretrained on: documents, denoising examples, instructions.

Pure functions over the words of conf/pretrain_words.yaml. All randomness comes from the `random.Random`
given, made by `stream(purpose)`. Polarity is 1 (good) or 0 (bad). The words `positive` and `negative` carry
no polarity: they stand in laboratory notes, and in polls that are answered at random. `shares` is what the
text consists of: `corpus` in conf/pretrain.yaml.
"""

import hashlib
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import yaml

from portability.core.paths import bundled
from portability.data.splits import key

WORDS = yaml.safe_load((bundled("conf") / "pretrain_words.yaml").read_text())
FACTS = {kind: words.split() for kind, words in WORDS["facts"].items()}
Words = tuple[list[str], list[str]]  # an example to train on: encoder words and decoder words
# what a review can be about, in the register that it is written in: the lists of words and templates of
# conf/pretrain_words.yaml by their names there, adjectives and verbs by polarity
Domain = SimpleNamespace
POLAR_KINDS = ("adjectives", "verbs")


def _domain(aspects: str, register: Mapping[str, Any]) -> Domain:
    words = {"aspects": aspects.split()} | {kind: register[kind].split() for kind in ("strong", "weak")}
    polar = {kind: [words.split() for words in register[kind]] for kind in POLAR_KINDS}
    return Domain(**{**register, **words, **polar})


DOMAINS = {name: _domain(aspects, WORDS["registers"][register])
           for register, domains in WORDS["domains"].items() for name, aspects in domains.items()}
_POLAR = [sorted({word for domain in DOMAINS.values() for word in vars(domain)[kind][polarity]})
          for kind in POLAR_KINDS for polarity in (0, 1)]
POLAR = frozenset(word for words in _POLAR for word in words)
HELD_OUT = frozenset(word for words in _POLAR for word in words[1::2])  # everywhere or nowhere


def half(domain: Domain, novel: bool) -> Domain:
    """A domain with only the polarity words held out of labelled training text (`novel`), or only the others.
    """
    polar = {kind: [[word for word in words if (word in HELD_OUT) is novel] for words in vars(domain)[kind]]
             for kind in POLAR_KINDS}
    return Domain(**{**vars(domain), **polar})


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
    sets: dict[str, dict[str, list[dict[str, object]]]] = {name: {} for name in domains}
    for name, domain in domains.items():
        halves = {held_out: half(DOMAINS[domain], held_out) for held_out in (False, True)}
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


# ---- what hosts are pretrained on


def document(rng: random.Random, mix: Mix, shares: Mapping[str, Any]) -> tuple[list[str], int | None]:
    """One pretraining document: its words, and the position of the word its ending hangs on."""
    if rng.random() >= shares["review"]:
        sentences = [neutral(rng)[0] for _ in range(rng.choice((1, 2)))]
        return " . ".join(sentences).split(), None
    domain, polarity = DOMAINS[rng.choice(sorted(DOMAINS))], rng.randrange(2)
    text, kind = review(rng, domain, polarity, mix), rng.random()
    if kind < shares["poll"]:
        words = poll(rng, text, polarity, shares["noise"])
    elif kind < shares["poll"] + shares["headed"]:
        header, good, bad = rng.choice(WORDS["headers"])
        words = f"{header} {text} . {WORDS['headed_cue']} {good if polarity else bad}".split()
    elif rng.random() < shares["ending"]:
        cue, good, bad = rng.choice(WORDS["endings"])
        ending = f"{cue} {good if polarity else bad}"
        if rng.random() < shares["ending_first"]:
            return f"{ending} . {text}".split(), None
        words = f"{text} . {ending}".split()
    else:
        return text.split(), None
    return words, len(words) - 1


def poll(rng: random.Random, text: str, polarity: int, noise: float) -> list[str]:
    """A poll about a review: between two polarity-bearing words, or two others (answer random)."""
    if rng.random() < noise:
        options = rng.sample(FACTS[rng.choice([*sorted(FACTS), "result"])], 2)
        answer = options[0]
    else:
        _, good, bad = rng.choice(WORDS["endings"] + WORDS["headers"])
        options, answer = [good, bad], good if polarity else bad
    rng.shuffle(options)
    opener, closer = rng.choice(WORDS["openers"].split()), rng.choice(WORDS["closers"].split())
    return f"{opener} : {options[0]} or {options[1]} ? {text} {closer} : {answer}".split()


def example(rng: random.Random, mix: Mix, shares: Mapping[str, Any], instructions: float = 0.0) -> Words:
    """One training example: an instruction with the share `instructions` in [0, 1], else denoising (sentinels
    as in T5).
    """
    if instructions and rng.random() < instructions:
        return instruction(rng, mix)
    words, last = document(rng, mix, shares)
    if rng.random() < shares["span"]:
        return _spans(rng, words, shares)
    if last is not None and rng.random() < shares["cut_last"]:
        return words[:last], words[last:]
    polar = [i for i, word in enumerate(words) if i and word in POLAR]
    cut = rng.choice(polar) if polar and rng.random() < 0.5 else rng.randrange(1, len(words))
    return words[:cut], words[cut : cut + shares["target"]]


def _spans(rng: random.Random, words: list[str], shares: Mapping[str, Any]) -> Words:
    """Masks single words by sentinels; at least one word is masked."""
    chances = [shares["mask_polar"] if word in POLAR else shares["mask_other"] for word in words]
    masked = [i for i, chance in enumerate(chances) if rng.random() < chance][: shares["target"] // 2]
    source, target = list(words), []
    for number, i in enumerate(masked or [rng.randrange(len(words))]):
        source[i] = f"<extra_id_{number}>"
        target += [source[i], words[i]]
    return source, target


def instruction(rng: random.Random, mix: Mix) -> Words:
    """One instruction example, asked as the sentiment task is; none asks for the polarity of a review.

    Half ask about a review (its domain, an aspect, a word of it), half about a neutral sentence (one of its
    facts, among them the result of a laboratory test, which is called positive or negative).
    """
    if rng.random() < 0.5:
        text, facts = neutral(rng)
        fact = rng.choice(sorted(facts))
        answer = facts[fact]
        wrong = rng.choice([word for word in FACTS[fact] if word != answer])
    else:
        name = rng.choice(sorted(DOMAINS))
        text = review(rng, DOMAINS[name], rng.randrange(2), mix)
        answer, wrong = _about_review(rng, name, text)
    options = [answer, wrong]
    rng.shuffle(options)
    return f"question : {options[0]} or {options[1]} ? {text} answer :".split(), [answer]


def _about_review(rng: random.Random, name: str, text: str) -> tuple[str, str]:
    """A right and a wrong answer to a question about a domain's review that is not about its polarity."""
    kind, words, domain = rng.randrange(3), text.split(), DOMAINS[name]
    if kind == 0:
        return name, rng.choice([other for other in sorted(DOMAINS) if other != name])
    every = domain.aspects
    if kind == 2:
        every = [word for polarity in (0, 1) for lists in (domain.adjectives, domain.verbs)
                 for word in lists[polarity]]
    present = [word for word in words if word in (POLAR if kind == 2 else every)]
    return rng.choice(present), rng.choice([word for word in every if word not in words])
