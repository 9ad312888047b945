"""Texts and examples to token ids: what a host is trained on, what it continues, and what it chooses from.

A text with a label is cut in its text, never in the words that ask about it.

A prompt is tokenised as it will stand before a generated answer, and its tokens always begin the sequence
that is trained on. Between prompt and answer stands a blank, unless the prompt ends in a line break or tab;
blanks at the prompt's end go to the answer, because "word" and " word" are different tokens for most hosts.
The answer's tokens are what the whole text has after the prompt's, and the host's end token follows. Where
the tokenizer merges across the border, the answer is tokenised by itself. (The same rule as
lm-evaluation-harness, `TemplateLM._encode_pair`, but for such merges: it cuts there all the same.)

Too long a prompt loses its beginning, so that the question next to the answer stays; an answer is cut only
where that is asked for (`encode_answers`).
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from portability.core.architectures import FAMILIES
from portability.core.errors import UserError
from portability.core.specs import OWN_TEMPLATE, TaskSpec, Text
from portability.data.examples import Example, LabelledText, each, plain

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OF_SET = "of the data set's answers (data.NAME.answers.max_length, else task.max_length)"
NO_ROOM = ("example {example} (from 0, of those used): {room} tokens are too few for a prompt and an answer "
           f"of {{answer}} with its end token; raise max_length {OF_SET}")
Tokenise = Callable[[list[Any]], list[list[int]]]  # of texts, or of pairs


def flattened(rows: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """All ids (T,) int32, and where each row begins and the last one ends (N + 1,) int64."""
    lengths = np.cumsum([len(row) for row in rows], dtype=np.int64)
    return np.array([token for row in rows for token in row], dtype=np.int32), np.concatenate([[0], lengths])


@dataclass(frozen=True)
class Flat:
    """Token ids of N rows, one after another.

    Attributes:
        ids: (T,) int32.
        offsets: (N + 1,) int64; row i is ``ids[offsets[i] : offsets[i + 1]]``.
    """

    ids: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def row(self, index: int) -> np.ndarray:
        """Token ids of one row, (length,) int32."""
        return self.ids[self.offsets[index] : self.offsets[index + 1]]

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, (N,) int64."""
        return np.diff(self.offsets)


@dataclass(frozen=True)
class Encoded(Flat):
    """Texts with labels.

    Attributes:
        labels: (N,) int64, from 0.
        truncated: number of texts that were cut.
        types: of pairs that a tokenizer puts together itself, and tells apart, (T,) int32: 0 for tokens of
            the first text, 1 for those of the second.
    """

    labels: np.ndarray
    truncated: int
    types: np.ndarray | None = None


def encode(
    texts: Sequence[LabelledText], tokenizer: "PreTrainedTokenizerBase", task: TaskSpec, use_template: bool
) -> Encoded:
    """Tokenise texts with labels, or pairs of texts, for a host.

    Args:
        task: its template (where `use_template`) and length limit in tokens, the tokenizer's special tokens
            included.
        use_template: True for hosts that score label words, False for hosts with a head, which see the text
            alone, or the pair as the tokenizer puts it together.

    Raises:
        UserError: the limit leaves no room for the text, a text has no tokens, or these are single texts and
            the task asks about pairs, or the other way round.
    """
    for text, _ in texts:
        if task.pairs == isinstance(text, str):
            asked, given = ("pairs of texts", "a single one") if task.pairs else ("single texts", "a pair")
            raise UserError(f"the question {task.template!r} is about {asked}, and this is {given}: "
                            f"{text!r:.60}")
    kinds = task.pairs and not use_template and "token_type_ids" in tokenizer.model_input_names

    def read(texts: list[Any], types: bool = False) -> list[list[int]]:
        asked = [[task.asked(text) for text in texts]] if use_template else (
            list(map(list, zip(*texts, strict=True))) if task.pairs else [texts])
        found = tokenizer(*asked, return_attention_mask=False, return_token_type_ids=types, verbose=False)
        return found["token_type_ids" if types else "input_ids"]

    found, fitting, truncated = tokenise_within([text for text, _ in texts], read, task.max_length)
    types = flattened(read(fitting, types=True))[0] if kinds else None
    labels = np.array([label for _, label in texts], dtype=np.int64)
    return Encoded(*flattened(found), labels, truncated, types)


def tokenise_within(
    texts: Sequence[Text], tokenise: Tokenise, limit: int
) -> tuple[list[list[int]], list[Text], int]:
    """Token ids of each text, or pair, within `limit` tokens, the texts so cut, and how many had to be.

    A long text loses whole words from its end until the question fits; where not even its first word does, it
    loses characters. The texts of a pair are left as many words each, so that the longer one loses first.

    Args:
        tokenise: texts -> token ids of the questions around them.

    Raises:
        UserError: the limit leaves no room for the text, or a text has no tokens.

    Source: our choice (D-15).

    Example:
        >>> words = lambda texts: [f"{text} ?".split() for text in texts]
        >>> tokenise_within(["a b", "a b c d"], words, 3)
        ([['a', 'b', '?'], ['a', 'b', '?']], ['a b', 'a b'], 1)
    """
    whole, found = list(texts), tokenise(list(texts))
    for text, ids in zip(texts, found, strict=True):
        if not ids:
            raise UserError(f"the host's tokenizer finds no token in {plain(text)[:60]!r}")
    long = [i for i, ids in enumerate(found) if len(ids) > limit]
    rests = [texts[i] for i in long]
    cut = _longest(rests, lambda part: [m.end() for m in re.finditer(r"\S+", part)], tokenise, limit)
    stuck = [j for j, text in enumerate(cut) if text is None]
    letters = _longest([each(rests[j], str.strip) for j in stuck],
                       lambda part: list(range(1, len(part) + 1)), tokenise, limit)
    for j, short in zip(stuck, letters, strict=True):
        if short is None:
            alone = len(tokenise([each(rests[j], lambda _: "")])[0])
            raise UserError(f"task.max_length {limit} leaves no room for the text: the question alone takes "
                            f"{alone}")
        cut[j] = short
    fitting = [one for one in cut if one is not None]  # all of them
    for i, text, ids in zip(long, fitting, tokenise(fitting) if long else [], strict=True):
        whole[i], found[i] = text, ids
    return found, whole, len(long)


def _longest(
    texts: Sequence[Text], ends: Callable[[str], list[int]], tokenise: Tokenise, limit: int
) -> list[Text | None]:
    """The longest beginning of each text that fits, up to the same one of its `ends` in both of a pair; None
    where none does.

    All texts are halved at once, so that the tokenizer is called some ten times, not some ten times a text.
    """
    places = [{part: ends(part) or [0] for part in ((text,) if isinstance(text, str) else text)}
              for text in texts]

    def upto(i: int, count: int) -> Text:
        return each(texts[i], lambda part: part[: places[i][part][:count][-1]])

    low, high = [0] * len(texts), [max(map(len, own.values())) for own in places]
    while open_ := [i for i in range(len(texts)) if low[i] < high[i]]:  # `low` ends fit, no more than `high`
        middle = {i: (low[i] + high[i] + 1) // 2 for i in open_}
        for i, ids in zip(open_, tokenise([upto(i, middle[i]) for i in open_]), strict=True):
            if len(ids) <= limit:
                low[i] = middle[i]
            else:
                high[i] = middle[i] - 1
    return [upto(i, fit) if fit else None for i, fit in enumerate(low)]


# ---- prompts and answers


def joined(text: str, word: str) -> str:
    """What follows a text: the word, with a blank before it unless text or word has one there.

    Example:
        >>> joined("answer :", "yes"), joined("answer :", " yes"), joined("answer:\\n", "yes")
        (' yes', ' yes', 'yes')
    """
    return word if text[-1:].isspace() or word[:1].isspace() else f" {word}"


def after(prompt: list[int], whole: list[int], alone: list[int]) -> list[int]:
    """Tokens of an answer: what the `whole` text has after the prompt's, or, where the tokenizer merges
    across the border, those of the answer `alone`."""
    return whole[len(prompt) :] if whole[: len(prompt)] == prompt else alone


@dataclass(frozen=True)
class Sequences(Flat):
    """Rows of an example each, or of a choice of an example each: of decoder-only hosts prompt and answer, of
    t5 the encoder's input.

    Attributes:
        starts: (N,) int64, where the answer begins in its row, at least 1; of t5 in the row's target, so 0.
        group: (N,) int64, the example behind each row.
        right: (N,) bool, whether the row's answer is the right one.
        cut: number of rows whose prompt lost its beginning.
        answer_ids: ids among which the answers stand: `ids`, or of t5 (S,) int32, without a start token.
        answer_begins: (N,) int64, where each answer begins in `answer_ids`.
        answer_lengths: (N,) int64, tokens of each answer, its end token included.
        dropped: number of examples that were left out, because their answers are too long.
        truncated: number of rows whose answer lost its end.
    """

    starts: np.ndarray
    group: np.ndarray
    right: np.ndarray
    cut: int
    answer_ids: np.ndarray
    answer_begins: np.ndarray
    answer_lengths: np.ndarray
    dropped: int = 0
    truncated: int = 0


class _Row(NamedTuple):
    """Tokens of a prompt, without what the host puts around it, and of an answer with its end token."""

    before: list[int]
    prompt: list[int]
    answer: list[int]


def encode_answers(
    examples: Sequence[Example], tokenizer: "PreTrainedTokenizerBase", family: str, max_length: int,
    too_long: str = "refuse", new_tokens: int = 1, chat: str | None = None,
) -> Sequences:
    """Prompts with their right answers, to train on; one row an example.

    An answer is too long where it leaves no room for a token of the prompt (of t5: where it has more than
    `max_length`).

    Args:
        family: the host's, a key of architectures.FAMILIES.
        max_length: most tokens of a row, special ones and the end token included; of t5, of the encoder's
            input and of the target each.
        too_long: what becomes of answers that are: "refuse"; "drop" leaves their examples out; "truncate"
            keeps their first tokens, without an end token, because the answer does not end there (our
            choice).
        new_tokens: a truncated answer has at least so many, as far as the prompt's last token leaves room,
            and more where the whole prompt leaves room for more: the prompt is cut no shorter than where an
            answer is to be written.
        chat: by which template prompts are written as chats (specs.AnswerSpec).

    Raises:
        UserError: an encoder host, a tokenizer without an end token or the chat template that is asked for,
            an answer that does not fit or that the tokenizer does not know, or a chat that the template
            refuses.
    """
    work, count = _Encoder(tokenizer, family, chat), len(examples)
    rows = work.rows(examples, [example.answer for example in examples])
    rooms = [max_length if work.seq2seq else max_length - len(row.before) - 1 for row in rows]
    long = [index for index, room in enumerate(rooms) if len(rows[index].answer) > room]
    kept = np.setdiff1d(np.arange(count), long if too_long == "drop" else [])
    if long and (too_long == "refuse" or not len(kept)):
        says = NO_ROOM.format(example=long[0], room=max_length, answer=len(rows[long[0]].answer))
        raise UserError(f"{len(long)} of {count} answers are too long, first in {says}, or set too_long "
                        "beside it to drop or truncate")
    for index in long if too_long == "truncate" else ():
        room, row = rooms[index], rows[index]
        beside = room if work.seq2seq else room + 1 - len(row.prompt)
        rows[index] = row._replace(answer=row.answer[: max(min(new_tokens, room), beside)])
    found = work.flat([rows[index] for index in kept], kept, np.ones(len(kept), dtype=bool), max_length)
    return replace(found, dropped=count - len(kept), truncated=len(long) if too_long == "truncate" else 0)


def encode_choices(
    examples: Sequence[Example], tokenizer: "PreTrainedTokenizerBase", family: str, max_length: int,
    chat: str | None = None
) -> Sequences:
    """Prompts with each of their choices, to compare likelihoods; one row a choice, in order. All choices of
    an example keep as much of its prompt as the longest leaves room for.

    Raises:
        UserError: as `encode_answers`, or an example without choices.
    """
    work = _Encoder(tokenizer, family, chat)
    lacking = [index for index, example in enumerate(examples) if example.choices is None]
    if lacking:
        raise UserError(f"example {lacking[0]} (from 0) has no choices; give each example choices, or none")
    group = [index for index, example in enumerate(examples) for _ in example.choices or ()]
    right = [place == example.right for example in examples for place in range(len(example.choices or ()))]
    rows = work.rows([examples[index] for index in group],
                     [choice for example in examples for choice in example.choices or ()])
    return work.flat(rows, np.array(group), np.array(right), max_length)


def encode_prompts(
    examples: Sequence[Example], tokenizer: "PreTrainedTokenizerBase", family: str, max_length: int,
    new_tokens: int, chat: str | None = None
) -> Sequences:
    """Prompts alone, to continue by up to `new_tokens`; answers are empty, and `starts` is each row's length
    (of t5, 0).

    Decoder-only hosts need room for both, so their prompts are cut to ``max_length - new_tokens``.

    Raises:
        UserError: no room for a prompt, or as `encode_answers`.
    """
    work, count = _Encoder(tokenizer, family, chat), len(examples)
    room = max_length if work.seq2seq else max_length - new_tokens
    if room < 1:
        raise UserError(f"{new_tokens} new tokens leave no room for a prompt; raise max_length {OF_SET}")
    return work.flat(work.rows(examples, None), np.arange(count), np.ones(count, dtype=bool), room)


def shown(example: Example, tokenizer: "PreTrainedTokenizerBase", family: str,
          chat: str | None = None) -> tuple[str, str, list[int]]:
    """The text that a host reads, the right answer as it follows it, and the answer's tokens.

    Raises:
        UserError: as `encode_answers`.
    """
    work, answer = _Encoder(tokenizer, family, chat), example.answer.strip()
    text, _ = work.prompt(example)
    (row,) = work.rows([example], [answer])
    return text, answer if work.seq2seq else joined(text, answer), row.answer


class _Encoder:
    """A host's tokenizer, and how prompts and answers go through it."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", family: str, chat: str | None = None):
        if FAMILIES[family].scoring == "head":
            raise UserError(f"a {family} host can neither write nor rate answers; take one with a "
                            "language-model head")
        if tokenizer.eos_token_id is None:
            raise UserError("the host's tokenizer has no end token: name eos_token in tokenizer_config.json")
        if chat == OWN_TEMPLATE and not tokenizer.chat_template:
            raise UserError("the host's tokenizer has no chat template, as data.NAME.answers.chat=host asks "
                            "for; leave that out, write a template there, or take a host that has one")
        self.tokenizer, self.seq2seq, self.end = tokenizer, FAMILIES[family].seq2seq, int(
            tokenizer.eos_token_id)
        self.chat = chat

    def rows(self, examples: Sequence[Example], answers: Sequence[str] | None) -> list[_Row]:
        """The tokens of each example's prompt and of the answer beside it; without `answers`, of prompts
        alone."""
        texts = [self.prompt(example) for example in examples]
        prompts = self._tokens([text for text, _ in texts])
        empty = [index for index, prompt in enumerate(prompts) if not prompt]
        if empty:
            raise UserError(f"the prompt {texts[empty[0]][0][:60]!r} has no tokens for the host's tokenizer")
        whole = list(self.tokenizer(texts[0][0])["input_ids"])  # with special tokens in front
        front = next(whole[:at] for at in range(len(whole)) if whole[at : at + len(prompts[0])] == prompts[0])
        tails = [[] for _ in texts] if answers is None else self._answers(texts, prompts, answers)
        return [_Row([] if templated else front, prompt, tail)
                for (_, templated), prompt, tail in zip(texts, prompts, tails, strict=True)]

    def prompt(self, example: Example) -> tuple[str, bool]:
        """The text before the answer, and whether a chat template made it, with its special tokens in the
        text."""
        if self.chat is None and not (example.turns and self.tokenizer.chat_template):
            return example.prompt.rstrip(" "), False
        from jinja2 import TemplateError

        given = None if self.chat == OWN_TEMPLATE else self.chat  # None: the tokenizer's own
        if "strftime_now" in str(given or self.tokenizer.chat_template):
            raise UserError("the host's chat template writes today's date, so a study could not be repeated; "
                            "put a fixed date into it (tokenizer_config.json or chat_template.jinja)")
        turns = [{"role": role, "content": content}
                 for role, content in example.turns or (("user", example.prompt),)]
        try:
            return str(self.tokenizer.apply_chat_template(turns, chat_template=given, tokenize=False,
                                                          add_generation_prompt=True)).rstrip(" "), True
        except TemplateError as error:
            whose, chat = "the host's" if given is None else "the given", example.prompt[:60]
            raise UserError(f"{whose} chat template refuses the chat {chat!r}: {error}") from error

    def _answers(
        self, texts: list[tuple[str, bool]], prompts: list[list[int]], answers: Sequence[str]
    ) -> list[list[int]]:
        """Tokens of the answers, as they follow the prompts, with the end token."""
        alone = tails = self._tokens([answer.strip() for answer in answers])
        if not self.seq2seq:
            whole = self._tokens([text + joined(text, answer.strip())
                                  for (text, _), answer in zip(texts, answers, strict=True)])
            tails = list(map(after, prompts, whole, alone))
        for answer, tail in zip(answers, tails, strict=True):
            if not set(tail) - {self.tokenizer.unk_token_id}:
                raise UserError(f"the answer {answer[:60]!r} is unknown to the host's tokenizer; choose "
                                "another host, or other answers")
        return [[*tail, self.end] for tail in tails]

    def _tokens(self, texts: list[str]) -> list[list[int]]:
        return [list(ids) for ids in self.tokenizer(texts, add_special_tokens=False)["input_ids"]]

    def flat(self, rows: Sequence[_Row], group: np.ndarray, right: np.ndarray, max_length: int) -> Sequences:
        """The rows one after another, prompts cut from the left where they have to be."""
        longest = np.zeros(int(group.max(initial=-1)) + 1, dtype=np.int64)
        np.maximum.at(longest, group, [len(row.answer) for row in rows])
        heads, cut, end = [], 0, [self.end] if self.seq2seq else []
        for row, example in zip(rows, group, strict=True):
            answer = int(longest[example])
            room = max_length - len(row.before) - (len(end) if self.seq2seq else answer)
            if room < 1 or (self.seq2seq and answer > max_length):
                raise UserError(NO_ROOM.format(example=example, room=max_length, answer=answer))
            cut += room < len(row.prompt)
            heads.append([*row.before, *row.prompt[-room:], *end])
        tails = [row.answer for row in rows]
        if self.seq2seq:
            ids, offsets = flattened(heads)
            answer_ids, begins = flattened(tails)
            starts = np.zeros(len(rows), dtype=np.int64)
        else:
            ids, offsets = flattened([head + tail for head, tail in zip(heads, tails, strict=True)])
            starts = np.array([len(head) for head in heads], dtype=np.int64)
            answer_ids, begins = ids, offsets + np.append(starts, 0)
        lengths = np.array([len(tail) for tail in tails], dtype=np.int64)
        return Sequences(ids, offsets, starts, group, right, cut, answer_ids, begins[:-1], lengths)
