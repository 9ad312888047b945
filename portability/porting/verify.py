"""Whether a ported adapter is worth anything: accuracy of the bare host, with it, and with one of the host's
own, on examples of the user's."""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats
from tqdm import tqdm

from portability.core.errors import UserError
from portability.core.measures import said
from portability.core.specs import HostSpec, MethodSpec, TaskSpec
from portability.data.examples import LabelledText
from portability.data.files import TABLES, Placed, rows_of
from portability.data.tokenization import encode
from portability.hosts.host import Host, load_host
from portability.methods import attach
from portability.methods.files import parameters_of
from portability.methods.folder import AdapterFolder
from portability.porting.adapter import PortedAdapter
from portability.tasks.classification import Scorer


@dataclass(frozen=True)
class Arm:
    """Right answers of one host, in [0, 1], with the ends of a 95 % interval."""

    accuracy: float
    low: float
    high: float


def verify(
    done: PortedAdapter, receiving: HostSpec, options: argparse.Namespace, native: AdapterFolder | None,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Score each arm and the difference of ported and bare, which are paired by example.

    Source: Wilson's interval for an accuracy; for a difference the percentile bootstrap over examples (9,999
        draws; our choice).

    Raises:
        UserError: examples that cannot be read, or a host without a language-model head.
    """
    task = asked(options)
    rows = read_rows(options.verify, "--verify", task)
    host = load_host(receiving)
    if host.scoring == "head":
        raise UserError(f"--verify scores label words, and host '{host.spec.name}' ({host.family}) has no "
                        "language-model head")
    right = {"bare": _right(host, task, rows, None, {})}
    right["ported"] = _right(host, task, rows, done.spec, done.parameters)
    if native is not None:
        method = attach(host, native.spec)
        try:
            values = parameters_of(native, method)
        finally:
            method.detach()
        right["native"] = _right(host, task, rows, native.spec, values)
    found: dict[str, Any] = {"examples": len(rows), "arms": {}}
    for arm, marks in right.items():
        interval = stats.binomtest(int(marks.sum()), len(marks)).proportion_ci(method="wilson")
        found["arms"][arm] = vars(Arm(float(marks.mean()), interval.low, interval.high))
        say(f"{arm}: {marks.mean():.1%} right of {len(rows)} ({interval.low:.1%} to {interval.high:.1%})")
    found["ported minus bare"] = gain = _difference(right["ported"], right["bare"])
    say(f"ported minus bare: {100 * gain['mean']:+.1f} points ({100 * gain['low']:+.1f} to "
        f"{100 * gain['high']:+.1f})")
    return found


def asked(options: argparse.Namespace) -> TaskSpec:
    """How hosts are asked.

    Raises:
        UserError: a template without a place for the text, or fewer than two label words.
    """
    if "{text}" not in options.template:
        raise UserError("--template must have {text} where the example's text is to stand")
    if len(options.label_words) < 2:
        raise UserError("--label-words must name two words or more, of label 0, 1, ...")
    return TaskSpec(options.template, tuple(options.label_words), options.max_length)


def _right(host: Host, task: TaskSpec, rows: list[LabelledText], spec: MethodSpec | None,
           values: dict[str, Any]) -> np.ndarray:
    method = None if spec is None else attach(host, spec)
    scorer = Scorer(host, task)
    found = encode(rows, host.tokenizer, task, True)
    parameters = {f"model.{name}": value[None] for name, value in values.items()}
    with tqdm(total=100, unit="%", desc="bare" if spec is None else spec.name, leave=False,
              disable=None) as bar:  # None: unless there is a terminal
        margin = np.asarray(scorer.predict(
            parameters, found, 16, lambda part: bar.update(round(100 * part) - bar.n) and None).margin)[0]
    if method is not None:
        method.detach()
    return said(margin) == np.asarray(found.labels)


def _difference(one: np.ndarray, other: np.ndarray) -> dict[str, float]:
    gains = one.astype(float) - other.astype(float)
    if not gains.any():
        return {"mean": 0.0, "low": 0.0, "high": 0.0}
    found = stats.bootstrap((gains,), np.mean, method="percentile", n_resamples=9999,
                            random_state=np.random.default_rng(0)).confidence_interval
    return {"mean": float(gains.mean()), "low": float(found.low), "high": float(found.high)}


def _lines(path: Path) -> Placed:
    """The lines of a file that are not blank."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # JSON may hold other ends of lines
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text in UTF-8: {error}") from error
    return ((f"{path}, line {number}", line) for number, line in enumerate(lines, 1) if line.strip())


def read_rows(path: Path, option: str, task: TaskSpec) -> list[LabelledText]:
    """Text, or pair of texts where the task asks about pairs, and label of each example of a JSONL, CSV or
    Parquet file.

    Raises:
        UserError: no such file, or a line that is no example.
    """
    if not path.is_file():
        raise UserError(f"{option}: there is no file {path}")
    count, rows = len(task.label_words), list[LabelledText]()
    known: dict[object, int] = {name: label for label in range(count) for name in (label, str(label))}
    known |= {word: label for label, word in enumerate(task.label_words)}  # "1" may be a word, of label 0
    for where, row in rows_of(path) if path.suffix in TABLES else _lines(path):
        try:
            row = json.loads(row) if isinstance(row, str) else row
            parts = [str(row[key]) for key in ("text", "text_pair")[: 1 + task.pairs]]
            "".join(parts).encode()  # half of a pair of surrogates is no text
            rows.append(((parts[0], parts[1]) if task.pairs else parts[0], known[row["label"]]))
        except (ValueError, KeyError, TypeError) as error:
            texts = "text, text_pair" if task.pairs else "text"
            numbers = "0 or 1" if count == 2 else f"0 to {count - 1}"
            raise UserError(f"{where}: each line must be a JSON object with {texts} and label "
                            f"({numbers}, or its label word)") from error
    if not rows:
        raise UserError(f"{path} holds no example")
    return rows
