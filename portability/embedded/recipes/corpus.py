"""What the embedded T5s are pretrained on: documents, denoising examples, instructions.

Pure functions over `synthetic_text`. The words `positive` and `negative` carry no polarity here: they
stand in laboratory notes, and in polls that are answered at random.
"""

import random
from collections.abc import Mapping
from typing import Any

from portability.embedded.recipes import synthetic_text as language
from portability.embedded.recipes.synthetic_text import DOMAINS, FACTS, POLAR, WORDS, Domain, Mix

Shares = Mapping[str, Any]  # what the text consists of: `corpus` in conf/pretrain.yaml
Example = tuple[list[str], list[str]]  # encoder words and decoder words


def document(rng: random.Random, mix: Mix, shares: Shares) -> tuple[list[str], int | None]:
    """One pretraining document: its words, and the position of the word its ending hangs on."""
    if rng.random() >= shares["review"]:
        sentences = [language.neutral(rng)[0] for _ in range(rng.choice((1, 2)))]
        return " . ".join(sentences).split(), None
    domain, polarity = DOMAINS[rng.choice(sorted(DOMAINS))], rng.randrange(2)
    text, kind = language.review(rng, domain, polarity, mix), rng.random()
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


def example(rng: random.Random, mix: Mix, shares: Shares, instructions: float = 0.0) -> Example:
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


def _spans(rng: random.Random, words: list[str], shares: Shares) -> Example:
    """Masks single words by sentinels; at least one word is masked."""
    chances = [shares["mask_polar"] if word in POLAR else shares["mask_other"] for word in words]
    masked = [i for i, chance in enumerate(chances) if rng.random() < chance][: shares["target"] // 2]
    source, target = list(words), []
    for number, i in enumerate(masked or [rng.randrange(len(words))]):
        source[i] = f"<extra_id_{number}>"
        target += [source[i], words[i]]
    return source, target


def instruction(rng: random.Random, mix: Mix) -> Example:
    """One instruction example, asked as the sentiment task is; none asks for the polarity of a review.

    Half ask about a review (its domain, an aspect, a word of it), half about a neutral sentence (one of its
    facts, among them the result of a laboratory test, which is called positive or negative).
    """
    if rng.random() < 0.5:
        text, facts = language.neutral(rng)
        fact = rng.choice(sorted(facts))
        answer = facts[fact]
        wrong = rng.choice([word for word in FACTS[fact] if word != answer])
    else:
        domain = DOMAINS[rng.choice(sorted(DOMAINS))]
        text = language.review(rng, domain, rng.randrange(2), mix)
        answer, wrong = _about_review(rng, domain, text)
    options = [answer, wrong]
    rng.shuffle(options)
    return f"question : {options[0]} or {options[1]} ? {text} answer :".split(), [answer]


def _about_review(rng: random.Random, domain: Domain, text: str) -> tuple[str, str]:
    """A right and a wrong answer to a question about a review that is not about its polarity."""
    kind, words = rng.randrange(3), text.split()
    if kind == 0:
        return domain.name, rng.choice([name for name in sorted(DOMAINS) if name != domain.name])
    every = domain.aspects
    present = [word for word in words if word in every]
    if kind == 2:
        lists = (domain.adjectives, domain.verbs)
        every = [word for polarity in (0, 1) for words_of in lists for word in words_of[polarity]]
        present = [word for word in words if word in POLAR]
    return rng.choice(present), rng.choice([word for word in every if word not in words])
