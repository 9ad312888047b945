"""Examples of a task: a prompt and the answer to write, or to choose; read from JSONL and checked line by
line."""

import json
import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from portability.core.errors import UserError

ROLES = ("system", "user", "assistant")
FORMS = (
    frozenset({"prompt", "answer"}),  # the answer is written
    frozenset({"prompt", "choices", "answer"}),  # the answer is chosen
    frozenset({"messages"}),  # a chat: the last turn is the answer
)
Turn = tuple[str, str]  # role, content
NO_COLUMNS: Mapping[str, str] = MappingProxyType({})


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


def read_examples(path: Path, columns: Mapping[str, str] = NO_COLUMNS) -> list[Example]:
    """The examples of a file, a JSON object a line, in its order.

    A line is ``{"prompt", "answer"}``, ``{"prompt", "choices", "answer"}`` with the answer as index or text
    (a choice that stands there twice, as in some questions of MMLU, counts once), or ``{"messages": [{"role",
    "content"}, ...]}`` with the answer as last turn. A file may mix chats and prompts, but not answers to
    write and answers to choose.

    Args:
        columns: keys of a line -> names under which they stand there, other names being passed over; empty:
            as they are.

    Raises:
        UserError: names the file, and the line, if it cannot be read, is empty, or holds something else.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    places = [f"{path} line {number}" for number in range(1, len(lines) + 1)]
    found = [example_of(parsed(line, where), where, columns)
             for line, where in zip(lines, places, strict=True)]
    if not found:
        raise UserError(f"{path} is empty: it must hold at least one example, a JSON object a line")
    check_kinds(found, f"{path} line")
    return found


def parsed(line: bytes, where: str) -> Any:
    """What a line of JSON holds.

    Raises:
        UserError: names `where` it stands, if it is not UTF-8 or not JSON.
    """
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8 (byte {error.start + 1} of the line)") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON: {error}") from error


def check_kinds(found: Sequence[Example], where: str) -> None:
    """See that answers are either all to be written or all to be chosen.

    Raises:
        UserError: they are not; `where` stands before the number of the first other one.
    """
    first = found[0].choices is None
    for number, example in enumerate(found, start=1):
        if (example.choices is None) != first:
            have, want = ("choices", "none") if first else ("no choices", "some")
            raise UserError(f"{where} {number} has {have} and the first has {want}: answers to write and "
                            f"answers to choose "
                            "need a file each")


def kind(examples: Sequence[Example]) -> str:
    """What is asked for: "generate" (the answer is written) or "choice" (it is chosen by its likelihood).

    Raises:
        UserError: no examples, or both kinds among them.

    Example:
        >>> kind([Example("2 + 2 =", "4")]), kind([Example("2 + 2 =", "4", ("3", "4"), 1)])
        ('generate', 'choice')
    """
    kinds = {"generate" if example.choices is None else "choice" for example in examples}
    if len(kinds) != 1:
        raise UserError("a task needs examples" if not kinds
                        else "examples with and without choices cannot be one task")
    return kinds.pop()


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

    Unlike the key of sentences (decontamination.key) it keeps marks and where words end.

    Example:
        >>> key("12+3 = ") == key("12 + 3 =") != key("1 + 23 =")
        True
    """
    return " ".join(re.findall(r"[^\W_]+|[^\w\s]|_", text.casefold()))


def question(example: Example) -> str:
    """What two examples have in common when they ask the same: prompt and choices, in whatever order these
    stand.

    Example:
        >>> question(Example("2+2 =", "4", ("3", "4"), 1)) == question(Example("2 + 2 =", "4", ("4", "3"), 0))
        True
    """
    return "\n".join([key(example.prompt), *sorted(map(key, example.choices or ()))])


def example_of(value: Any, where: str, columns: Mapping[str, str] = NO_COLUMNS) -> Example:
    """An example out of an object with exactly the keys of one of FORMS, or with these under other names.

    Args:
        columns: as of `read_examples`.

    Raises:
        UserError: names `where` it stands, if it is something else.
    """
    if columns and isinstance(value, dict):
        lacking = [column for column in columns.values() if column not in value]
        if lacking:
            raise UserError(f"{where} has no {lacking[0]!r}")
        value = {name: value[column] for name, column in columns.items()}
    if not isinstance(value, dict) or frozenset(value) not in FORMS:
        forms = " or ".join(", ".join(sorted(form)) for form in FORMS)
        have = reprlib.repr(value)
        if isinstance(value, dict):
            have = ", ".join(sorted(map(str, value))) or "none"
        raise UserError(f"{where} must be a JSON object with exactly the keys {forms}, got {have}")
    if "messages" in value:
        return _chat(value["messages"], where)
    prompt = _text(value["prompt"], f"{where}: 'prompt'")
    if "choices" in value:
        return _choice(prompt, value["choices"], value["answer"], where)
    return Example(prompt, _text(value["answer"], f"{where}: 'answer'"))


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{what} must be a text that is not blank, got {reprlib.repr(value)}")
    if any("\ud800" <= char <= "\udfff" for char in value):
        raise UserError(f"{what} holds half a surrogate pair, which is no character")
    return value


def _choice(prompt: str, choices: Any, answer: Any, where: str) -> Example:
    if not isinstance(choices, list) or len(choices) < 2:
        raise UserError(f"{where}: 'choices' must list at least two answers, got {reprlib.repr(choices)}")
    texts = tuple(_text(choice, f"{where}: a choice") for choice in choices)
    if isinstance(answer, str) and answer in texts:
        answer = texts.index(answer)
    if type(answer) is not int or not 0 <= answer < len(texts):
        raise UserError(f"{where}: 'answer' must be one of the choices, or its index from 0 to "
                        f"{len(texts) - 1}, "
                        f"got {reprlib.repr(answer)}")
    right, once = texts[answer].strip(), dict[str, str]()
    for text in texts:
        once.setdefault(text.strip(), text)
    if len(once) < 2:
        raise UserError(f"{where}: 'choices' holds one answer only, more than once: {reprlib.repr(choices)}")
    return Example(prompt, once[right], tuple(once.values()), list(once).index(right))


def _chat(messages: Any, where: str) -> Example:
    if not isinstance(messages, list) or len(messages) < 2:
        raise UserError(f"{where}: 'messages' must list at least two turns, got {reprlib.repr(messages)}")
    turns = [_turn(message, f"{where}: message {number}") for number, message in enumerate(messages, start=1)]
    if turns[-1][0] != "assistant":
        raise UserError(f"{where}: the last message must be the assistant's, because it is the answer, got "
                        f"{turns[-1][0]}'s")
    if "user" not in [role for role, _ in turns[:-1]]:
        raise UserError(f"{where}: no message of the user stands before the answer")
    return Example(render(turns[:-1]), turns[-1][1], turns=tuple(turns[:-1]))


def _turn(message: Any, where: str) -> Turn:
    if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
        raise UserError(f"{where} must be an object with exactly 'role' and 'content', got "
                        f"{reprlib.repr(message)}")
    if message["role"] not in ROLES:
        raise UserError(f"{where}: 'role' must be one of {', '.join(ROLES)}, got "
                        f"{reprlib.repr(message['role'])}")
    return message["role"], _text(message["content"], f"{where}: 'content'")
