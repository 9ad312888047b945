"""What the embedded hosts are pretrained on: documents, denoising examples, instructions.

Pure functions over `language`. The words `positive` and `negative` carry no polarity here: they
stand in laboratory notes, and in polls that are answered at random.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from portability.embedded.recipes import vocabulary as lex
from portability.embedded.recipes.synthetic_text import Mix, neutral, pool, review
from portability.embedded.recipes.vocabulary import DOMAINS, REGISTERS, Domain


@dataclass(frozen=True)
class Corpus:
    """Shares in [0, 1] of what the pretraining text consists of (conf/pretrain.yaml).

    Attributes:
        review: documents that are reviews, against neutral ones.
        headed: reviews under a header, whose verdict word depends on that header.
        poll: reviews inside a poll between two words.
        noise: polls between two words without polarity, answered at random.
        ending: other reviews with an ending that follows from the polarity.
        ending_first: endings placed before the review.
        span: examples of span masking, against prefix language modelling.
        cut_last: prefix examples cut before the last polarity-bearing word.
        mask_polar: polarity words masked in span examples.
        mask_other: other words masked in span examples.
        target: decoder words at most (a count, not a share).
    """

    review: float
    headed: float
    poll: float
    noise: float
    ending: float
    ending_first: float
    span: float
    cut_last: float
    mask_polar: float
    mask_other: float
    target: int


def document(rng: random.Random, mix: Mix, corpus: Corpus) -> tuple[list[str], int | None]:
    """One pretraining document: its words, and the position of the word its ending hangs on."""
    if rng.random() >= corpus.review:
        sentences = [neutral(rng)[0] for _ in range(rng.choice((1, 2)))]
        return " . ".join(sentences).split(), None
    domain, polarity = DOMAINS[rng.choice(sorted(DOMAINS))], rng.randrange(2)
    text, kind = review(rng, domain, polarity, mix, pool(domain, None)), rng.random()
    if kind < corpus.poll:
        words = poll(rng, text, polarity, corpus.noise)
    elif kind < corpus.poll + corpus.headed:
        header, good, bad = rng.choice(lex.HEADERS)
        words = f"{header} {text} . {lex.HEADED_CUE} {good if polarity else bad}".split()
    elif rng.random() < corpus.ending:
        cue, good, bad = rng.choice(lex.ENDINGS)
        ending = f"{cue} {good if polarity else bad}"
        if rng.random() < corpus.ending_first:
            return f"{ending} . {text}".split(), None
        words = f"{text} . {ending}".split()
    else:
        return text.split(), None
    return words, len(words) - 1


def poll(rng: random.Random, text: str, polarity: int, noise: float) -> list[str]:
    """A poll about a review: between two polarity-bearing words, or two others (answer random)."""
    if rng.random() < noise:
        kind = rng.choice(sorted(lex.FACTS) + ["result"])
        options = rng.sample(lex.FACTS[kind], 2)
        answer = options[0]
    else:
        _, good, bad = rng.choice(lex.ENDINGS + lex.HEADERS)
        options, answer = [good, bad], good if polarity else bad
    rng.shuffle(options)
    opener, closer = rng.choice(lex.OPENERS), rng.choice(lex.CLOSERS)
    return f"{opener} : {options[0]} or {options[1]} ? {text} {closer} : {answer}".split()


def example(rng: random.Random, mix: Mix, corpus: Corpus) -> tuple[list[str], list[str]]:
    """One denoising example: encoder words and decoder words (sentinels as in T5)."""
    words, last = document(rng, mix, corpus)
    if rng.random() < corpus.span:
        return _spans(rng, words, corpus)
    if last is not None and rng.random() < corpus.cut_last:
        return words[:last], words[last:]
    polar = [i for i, w in enumerate(words) if i and w in lex.POLAR]
    cut = rng.choice(polar) if polar and rng.random() < 0.5 else rng.randrange(1, len(words))
    return words[:cut], words[cut : cut + corpus.target]


def _spans(
    rng: random.Random, words: list[str], corpus: Corpus
) -> tuple[list[str], list[str]]:
    """Masks single words by sentinels; at least one word is masked."""
    masked = [
        i for i, w in enumerate(words)
        if rng.random() < (corpus.mask_polar if w in lex.POLAR else corpus.mask_other)
    ][: corpus.target // 2] or [rng.randrange(len(words))]
    source, target = list(words), []
    for number, i in enumerate(masked):
        source[i] = f"<extra_id_{number}>"
        target += [source[i], words[i]]
    return source, target


def prompt(first: str, second: str, text: str) -> str:
    """The question both the instruction tasks and the sentiment task are asked with."""
    return f"question : {first} or {second} ? {text} answer :"


def instruction(rng: random.Random, mix: Mix) -> tuple[list[str], list[str]]:
    """One instruction example; none asks for the polarity of a review.

    Half ask about a review (its domain, an aspect, a word of it), half about a neutral sentence (one of its
    facts, among them the result of a laboratory test, which is called positive or negative).
    """
    if rng.random() < 0.5:
        text, facts = neutral(rng)
        fact = rng.choice(sorted(facts))
        answer = facts[fact]
        wrong = rng.choice([w for w in lex.FACTS[fact] if w != answer])
    else:
        domain = DOMAINS[rng.choice(sorted(DOMAINS))]
        text = review(rng, domain, rng.randrange(2), mix, pool(domain, None))
        answer, wrong = _about_review(rng, domain, text)
    options = [answer, wrong]
    rng.shuffle(options)
    return prompt(*options, text).split(), [answer]


def _about_review(rng: random.Random, domain: Domain, text: str) -> tuple[str, str]:
    """A right and a wrong answer to a question about a review that is not about its polarity."""
    kind, words = rng.randrange(3), text.split()
    if kind == 0:
        return domain.name, rng.choice([n for n in sorted(DOMAINS) if n != domain.name])
    if kind == 1:
        present = [w for w in words if w in domain.aspects]
        return rng.choice(present), rng.choice([a for a in domain.aspects if a not in present])
    present = [w for w in words if w in lex.POLAR]
    register = REGISTERS[domain.register]
    every = sum((register.adjectives[p] + register.verbs[p] for p in (0, 1)), ())
    return rng.choice(present), rng.choice([w for w in every if w not in words])
