"""Examples of a task: a prompt and the answer to write, or to choose; or a text, or a pair of texts, with its
label. Rows of JSON are checked one by one, and what is wrong with one is said with its place."""

import re
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from portability.core.errors import UserError
from portability.core.specs import Text
from portability.data.templates import LETTERS, are_told, behind_letters, filled

ROLES = ("system", "user", "assistant")
FORMS = (
    frozenset({"prompt", "answer"}),  # the answer is written
    frozenset({"prompt", "choices", "answer"}),  # the answer is chosen
    frozenset({"messages"}),  # a chat: the last turn is the answer
)
KEYS = " or ".join(", ".join(sorted(form)) for form in FORMS)
KEPT = {"prompt", "choices", "answer"}  # no chat has them
Turn = tuple[str, str]  # role, content
LabelledText = tuple[Text, int]  # a text or a pair of them, label from 0 (of two: 0 negative, 1 positive)
Names = Sequence[str | int]  # of labels 0, 1, ... as they stand in a set
TWO: Names = (0, 1)
Rows = list[Any]  # all of them LabelledText, or all of them Example


@dataclass(frozen=True)
class Example:
    """One example of a task.

    Attributes:
        prompt: what is asked; of a chat, its turns before the answer in plain words (`render`).
        answer: the right answer's text.
        choices: all answers to choose from, at least two and none twice, or None where the answer is to be
            written.
        right: index of `answer` in `choices`, or None.
        turns: of a chat, (role, content) before the answer, for a tokenizer that has a template of its own.
    """

    prompt: str
    answer: str
    choices: tuple[str, ...] | None = None
    right: int | None = None
    turns: tuple[Turn, ...] = ()


def read_rows(
    values: Iterable[tuple[str, Any]], columns: Mapping[str, str] | None = None, names: Names | None = None,
    lettered: bool = False, templates: Mapping[str, str] | None = None,
) -> Rows:
    """Texts with labels, or examples: ``{"prompt", "answer"}``, ``{"prompt", "choices", "answer"}`` with the
    answer as index or text (a choice that stands there twice, as in some questions of MMLU, counts once), or
    ``{"messages": [{"role", "content"}, ...]}`` with the answer as last turn, other keys of a chat (dataset,
    id, ...) being passed over. Chats and prompts may be mixed, but not answers to write and answers to
    choose.

    Args:
        values: place and content of each row.
        columns: keys of a row -> names under which they stand there, other names being passed over; none:
            as they are.
        names: of the labels, of texts with labels (columns text, label, and of pairs text_pair); None: of
            examples.
        lettered: whether choices stand in the prompt, and their letters are what is chosen.
        templates: words around prompts and answers that are no chats (templates.filled).

    Raises:
        UserError: names the place, if something else stands there.
    """
    found: Rows = []
    for where, value in values:
        row = value
        if columns:
            if not isinstance(value, dict):
                raise UserError(f"{where} must be a JSON object with {', '.join(columns.values())}")
            if lacking := [column for column in columns.values() if column not in value]:
                held = ", ".join(map(str, [*value][:8])) or "nothing"
                named = "columns" if names is None else "text_column or label_column"
                raise UserError(f"{where} has no {lacking[0]!r}, only {held}; rename it, or name it in the "
                                f"data set's {named}")
            value = {name: value[column] for name, column in columns.items()}
        found.append(_worded(_example(value, where, lettered), row, templates or {}, where)
                     if names is None else _labelled(value, where, names))
        if names is None and (found[0].choices is None) != (found[-1].choices is None):
            have, want = ("choices", "none") if found[0].choices is None else ("no choices", "some")
            raise UserError(f"{where} has {have} and the first has {want}; give each kind a set of its own")
    return found


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{what} must be a text that is not blank, got {reprlib.repr(value)}")
    return value


def _labelled(value: Mapping[str, Any], where: str, names: Names) -> LabelledText:
    label = _label(value["label"], where, names)
    text = _text(value["text"], f"{where}: the text")
    if "text_pair" not in value:
        return text, label
    return (text, _text(value["text_pair"], f"{where}: the second text")), label


def _label(value: Any, where: str, names: Names) -> int:
    """The number of a label: the place of its name, or, of names that are all texts and no figures, the
    number itself; a figure that is a name ("1" of stars) is that name as a number, too."""
    texts = [str(name) for name in names]
    if (type(value) is int and str(value) in texts) or (type(value) is str and value in names):
        return texts.index(str(value))
    numbered = not any(re.fullmatch(r"-?\d+", text) for text in texts)
    if type(value) is int and 0 <= value < len(names) and numbered:
        return value
    wanted = "one of " + ", ".join([*map(str, names[:8]), *["..."][: len(names) > 8]])
    wanted += f", or a number from 0 to {len(names) - 1}" if numbered else ""
    wanted = "the number 0 or 1 (positive)" if tuple(names) == TWO else wanted
    raise UserError(f"{where}: the label must be {wanted}, got {reprlib.repr(value)}; name others in the "
                    "data set's file, as in labels: [negative, neutral, positive]")


def each(text: Text, change: Callable[[str], str]) -> Text:
    """A text changed, or both of a pair."""
    return change(text) if isinstance(text, str) else (change(text[0]), change(text[1]))


def plain(text: Text) -> str:
    """A text as it is; of a pair the first one, a blank and the second."""
    return text if isinstance(text, str) else " ".join(text)


def _worded(example: Example, row: Mapping[str, Any], templates: Mapping[str, str], where: str) -> Example:
    """An example with the words of a set's templates around its prompt and its answers; a chat as it is."""
    if example.turns or not templates:
        return example
    try:
        prompt, answer = (_text(filled(templates, part, row, getattr(example, part)), f"{where}: the {part}")
                          for part in ("prompt", "answer"))
        choices = example.choices and tuple(filled(templates, "answer", row, one) for one in example.choices)
    except UserError as error:
        raise error if where in str(error) else UserError(f"{where}: {error}") from error
    if choices and len(set(choices)) < len(choices):
        raise UserError(f"{where}: the template of answer makes one text of two choices")
    return Example(prompt, answer, choices, example.right)


def _example(value: Any, where: str, lettered: bool) -> Example:
    if isinstance(value, dict) and "messages" in value and not KEPT & value.keys():
        return _chat(value["messages"], where)
    if not isinstance(value, dict) or frozenset(value) not in FORMS:
        have = ", ".join(sorted(value)) or "none" if isinstance(value, dict) else reprlib.repr(value)
        raise UserError(f"{where} must be a JSON object with exactly the keys {KEYS}, got {have}")
    prompt, answer = _text(value["prompt"], f"{where}: 'prompt'"), value["answer"]
    if "choices" not in value:
        return Example(prompt, _text(answer, f"{where}: 'answer'"))
    listed, once = value["choices"], dict[str, str]()
    texts = [_text(one, f"{where}: a choice") for one in (listed if isinstance(listed, list) else ())]
    for text in texts:
        once.setdefault(text.strip(), text)
    if len(once) < 2:
        raise UserError(f"{where}: 'choices' must list two different answers or more, got "
                        f"{reprlib.repr(listed)}")
    place = texts.index(answer) if answer in texts else answer
    if type(place) is not int or not 0 <= place < len(texts):
        last = len(texts) - 1
        raise UserError(f"{where}: 'answer' must be a choice or an index from 0 to {last}, got {answer!r}")
    if lettered and len(texts) > len(LETTERS):
        raise UserError(f"{where}: {len(texts)} choices are more than there are letters; leave lettered out")
    if lettered:
        prompt, letters = behind_letters(prompt, texts)
        return Example(prompt, letters[place], letters, place)
    right = texts[place].strip()
    return Example(prompt, once[right], tuple(once.values()), list(once).index(right))


def _chat(messages: Any, where: str) -> Example:
    turns: list[Turn] = []
    for number, message in enumerate(messages if isinstance(messages, list) else (), start=1):
        known = isinstance(message, dict) and message.keys() == {"role", "content"}
        if not known or message["role"] not in ROLES:
            raise UserError(f"{where}: message {number} must be an object with exactly 'role' (one of "
                            f"{', '.join(ROLES)}) and 'content', got {reprlib.repr(message)}")
        turns.append((message["role"], _text(message["content"], f"{where}: message {number}: 'content'")))
    roles = [role for role, _ in turns]
    if roles[-1:] != ["assistant"] or "user" not in roles:
        raise UserError(f"{where}: 'messages' must hold a message of the user and end with one of the "
                        f"assistant, which is the answer, got roles: {', '.join(roles) or 'none'}")
    return Example(render(turns[:-1]), turns[-1][1], turns=tuple(turns[:-1]))


def render(turns: Sequence[Turn]) -> str:
    """A chat's turns before the answer in plain words, a turn a line, for hosts without a chat template (our
    choice).

    Example:
        >>> render([("user", "2 + 2 ?")])
        'user: 2 + 2 ?\\nassistant:'
    """
    return "".join(f"{role}: {content.strip()}\n" for role, content in turns) + "assistant:"


def key(text: str) -> str:
    """What two prompts have in common when they count as the same: words, numbers and marks in order,
    case-folded.

    Unlike the key of sentences (splits.key) it keeps marks and where words end.

    Example:
        >>> key("12+3 = ") == key("12 + 3 =") != key("1 + 23 =")
        True
    """
    return " ".join(re.findall(r"[^\W_]+|[^\w\s]|_", text.casefold()))


def question(example: Example) -> str:
    """What two examples have in common when they ask the same: prompt and choices, in whatever order these
    stand, unless the prompt tells them.

    Example:
        >>> question(Example("2+2 =", "4", ("3", "4"), 1)) == question(Example("2 + 2 =", "4", ("4", "3"), 0))
        True
    """
    alone = len(example.turns) == 1  # a chat of one turn asks what a prompt in the same words does
    asked = example.turns[0][1] if alone else example.prompt
    choices = () if are_told(example.prompt, len(example.choices or ())) else example.choices or ()
    return "\n".join([key(asked), *sorted(map(key, choices))])
