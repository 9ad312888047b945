"""The values a study is made of; a run is named by the hash of everything that can change its number."""

import functools
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, Field, NonNegativeFloat, NonNegativeInt

from portability.core.init_kinds import INIT_KINDS, InitKind
from portability.core.schema import Count, build
from portability.core.wording import counted

T = TypeVar("T")
Text = str | tuple[str, str]  # what a label is of: a text, or a pair of them
SECOND = "{text_pair}"  # where the second text of a pair stands in a template
MOST_LABELS = 128  # of a set: records keep a label in a byte

BARE = "bare"  # kind of init of a run without a module: the host as it is
EXTERNAL = "external"  # kind of init of a run without updates: a module from elsewhere, as its folder has it
EXTRACTION = "extraction"  # kind of init of a run without updates: pairs cut out of a larger host's weights
METRICS = ("accuracy", "f1")  # of texts with labels, unless others are asked for
SCHEMA = 2  # raise it when a change of the protocol changes numbers: every run is then named anew
PROTOCOLS = {  # the schemas whose records can be read; records of two of them are never pooled
    1: "old protocol (schema 1): marks evaluate a moving average that still holds the start",
    SCHEMA: "marks evaluate the last iterate, or a mean of late ones",
}


def digest(value: Any) -> str:
    """First 16 hex digits of the SHA-256 of `value` as JSON with sorted keys.

    Example:
        >>> digest({"b": 1, "a": 2}) == digest({"a": 2, "b": 1})
        True
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class HostShape:
    """Depth and widths of a host: all that a port needs to know of it.

    `layers` maps each stack ("encoder", "decoder") to its depth; `kv_heads` is smaller than `heads` under
    grouped-query attention.
    """

    family: str
    layers: Mapping[str, int] = field(hash=False)
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int

    @property
    def group(self) -> int:
        """Query heads that share one key-value head."""
        return self.heads // self.kv_heads

    def size(self, axis: str) -> int | None:
        """Length of a host-dependent axis, or None for an axis that belongs to the method."""
        return getattr(self, axis) if axis in HOST_AXES else None


HOST_AXES = ("hidden", "ffn", "kv_heads", "group", "head_dim")


@dataclass(frozen=True)
class HostSpec:
    """A frozen language model: where it is, what it is (fingerprint over weights and tokenizer) and its
    shape."""

    name: str
    source: str  # folder, or hub id
    revision: str | None
    fingerprint: str
    shape: HostShape


@dataclass(frozen=True)
class MethodSpec:
    """A PEFT technique with its hyper-parameters; `config` is the name of its class in `library`."""

    name: str
    library: str
    config: str
    settings: Mapping[str, Any]
    learning_rate: NonNegativeFloat


@dataclass(frozen=True)
class InitSpec:
    """How a receiving module starts: the kind (a key of INIT_KINDS, and of inits.INITS) and its options."""

    name: str
    kind: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def traits(self) -> InitKind:
        """What planning knows of the kind."""
        return INIT_KINDS[self.kind]


@dataclass(frozen=True)
class ExternalModule:
    """A module that was trained elsewhere: the folder of an adapter, and the digest of its weights and
    settings, by which runs that start from it are named."""

    name: str
    folder: str
    digest: str


@dataclass(frozen=True)
class CalibrationSpec:
    """Texts without labels on which two hosts are compared: a data set of the study, or a file; how many
    tokens of them, drawn by the seed. The digest is of the texts; a file's place is in no record."""

    texts: str
    tokens: Count = 4096
    seed: NonNegativeInt = 0
    digest: str = ""


@dataclass(frozen=True)
class PortSpec:
    """How a module is fitted to another host: strategy with its options, layer map, whether a partial carry
    is allowed, and what it is calibrated on."""

    name: str
    strategy: str
    layer_map: str
    partial: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    calibration: CalibrationSpec | None = None

    def identity(self) -> dict[str, Any]:
        """What can change a number; what is not set is left out, so that older runs keep their names."""
        found = {"strategy": self.strategy, "layer_map": self.layer_map, "partial": self.partial}
        if self.options:
            found["options"] = dict(self.options)
        if self.calibration:
            found["calibration"] = _without(self.calibration, "texts")
        return found


@dataclass(frozen=True)
class DataSpec:
    """A data set after the leak guard, named by the digests of what is trained on and what is evaluated."""

    name: str
    source: str  # folder, or hub id
    revision: str | None
    train_digest: str
    eval_digest: str
    counts: Mapping[str, int]  # train, eval, dropped: examples


def _template(text: str) -> str:
    if text.count("{text}") != 1 or text.count(SECOND) > 1:
        raise ValueError("must hold {text} exactly once, and {text_pair} at most once")
    return text


def _words(words: tuple[str, ...]) -> tuple[str, ...]:
    if not 2 <= len(words) <= MOST_LABELS:
        raise ValueError(f"must name from 2 to {MOST_LABELS} words")
    return words


@dataclass(frozen=True)
class TaskSpec:
    """How a text, or a pair of texts, becomes a question to a host, and what it may answer.

    Attributes:
        template: with {text}, of pairs with {text_pair} too.
        label_words: of label 0, 1, ...; of hosts with a classification head their number is that of classes.
        max_length: most tokens of a question.
    """

    template: Annotated[str, AfterValidator(_template)]
    label_words: Annotated[tuple[str, ...], AfterValidator(_words)]
    max_length: int

    passes = 1  # of a host, to score an example

    def identity(self) -> dict[str, Any]:
        """All settings."""
        return asdict(self)

    @property
    def pairs(self) -> bool:
        """Whether it asks about pairs of texts."""
        return SECOND in self.template

    def asked(self, text: Text) -> str:
        """The question about a text or a pair.

        Example:
            >>> TaskSpec("{text} so {text_pair} ?", ("no", "yes"), 8).asked(("it rains", "{text}"))
            'it rains so {text} ?'
        """
        first, second = (text, "") if isinstance(text, str) else text
        parts = {"{text}": first, SECOND: second}
        return re.sub(r"\{text(_pair)?\}", lambda place: parts[place[0]], self.template)

    @property
    def reading(self) -> "TaskSpec":
        """How hosts are given the examples alone, to be compared on them."""
        return self


@dataclass(frozen=True)
class AnswerSpec:
    """How the answers of a set of prompts are scored, and the length limit; what a scoring does not use is
    None.

    Attributes:
        scoring: a name in SCORINGS.
        normaliser: of exact_match, a name in data.answer_scores.NORMALISERS.
        likelihood: of choice, a name in data.answer_scores.LIKELIHOODS.
        new_tokens: most tokens of a written answer, its end token included; None for choice.
        max_length: tokens of prompt and answer (of t5: of the prompt, and of the answer).
        too_long: what becomes of answers to write that leave no room for a prompt in it, one of TOO_LONG
            (data.tokenization.encode_answers).
        chat: by what prompts are written as chats, one that is none being a turn of the user: OWN_TEMPLATE,
            or a Jinja template for all hosts; None: chats by the host's template where it has one, prompts
            as they are.
    """

    scoring: str
    normaliser: str | None
    likelihood: str | None
    new_tokens: int | None
    max_length: int
    too_long: str = "refuse"
    chat: str | None = None

    def identity(self) -> dict[str, Any]:
        """All settings; `chat` came later and is left out where it is None, so that older runs keep their
        names."""
        return {key: value for key, value in asdict(self).items() if key != "chat" or value is not None}

    @property
    def passes(self) -> int:
        """Passes of a host that scoring an example takes: of a choice one an answer, of which there are taken
        to be four."""
        return 4 if self.new_tokens is None else 1 + self.new_tokens

    @property
    def reading(self) -> TaskSpec:
        """How hosts are given the examples alone, to be compared on them: prompts as they are."""
        return TaskSpec("{text}", ("", ""), self.max_length)


TOO_LONG = ("refuse", "drop", "truncate")
OWN_TEMPLATE = "host"  # the chat template that a host's tokenizer has
SCORINGS = ("exact_match", "rouge_l", "choice")


def too_long_words(counts: Mapping[str, int]) -> str:
    """Numbers of answers that were too long, in words.

    Example:
        >>> too_long_words({"train_dropped": 2, "train_truncated": 0, "test_truncated": 1})
        '2 training examples left out, 0 training answers cut, 1 test answer cut in the likelihood'
    """
    return (f"{counted(counts['train_dropped'], 'training example')} left out, "
            f"{counted(counts['train_truncated'], 'training answer')} cut, "
            f"{counted(counts['test_truncated'], 'test answer')} cut in the likelihood")


@dataclass(frozen=True)
class Protocol:
    """One protocol for every arm, whatever its number of updates."""

    batch_size: Count
    warmup: NonNegativeInt  # updates
    weight_decay: NonNegativeFloat
    betas: tuple[int | float, int | float]  # a whole number stays one: run ids depend on it
    eps: NonNegativeFloat
    clip: NonNegativeFloat  # gradient norm of one member
    tail: Annotated[float, Field(ge=0, le=0.5)]  # share of a mark's updates whose iterates the mark averages,
    # never its first ones (our choice); 0: the last iterate alone
    bucket_batches: Count  # at least so many batches share a length bucket
    head_learning_rate: NonNegativeFloat  # of a classification head, where the host needs one
    # after warm-up; linear falls to 0 after the last update
    schedule: Literal["constant", "linear"] = field(default="constant", kw_only=True)
    # of answers: the mean over each one's tokens and then over examples, or over all tokens of a batch
    loss: Literal["example", "token"] = field(default="example", kw_only=True)

    def identity(self) -> dict[str, Any]:
        """All settings; those that came later are left out at what they were before, so that older runs keep
        their names."""
        later = {"schedule": "constant", "loss": "example"}
        return {key: value for key, value in asdict(self).items() if later.get(key) != value}


@dataclass(frozen=True)
class TrainSpec(Protocol):
    """The protocol with the run's total of updates; the marks are not part of it."""

    updates: int


@dataclass(frozen=True)
class EvalSpec:
    """Which split serves as test, how many of its examples (0: all of them), and what is computed of the
    predictions: names of measures.metric_names, which change no prediction and are no part of a run's
    identity."""

    split: str
    limit: int
    batch_size: Count
    metrics: tuple[str, ...] = METRICS


@dataclass(frozen=True)
class RunSpec:
    """The unit of work that is executed once: one module trained (or a bare host scored) on one host.

    `origin` is the run_id of the run whose module (and head) this run starts from; None where it starts from
    nothing. `head` is "none" for hosts that score label words, else "shared" or "fresh". `teacher` is the
    host out of which an extraction cuts its module, None for all other runs. `origin_host` is the host of the
    module, or of the head, that a run with a `port` fits to its own, for strategies that read its weights; it
    follows from `origin`, so it is no part of the identity, and no record repeats it. Nor does one repeat
    `folder`, where the module of a run of kind `external` lies: its digest is an option of the init.
    """

    host: HostSpec
    data: DataSpec
    task: TaskSpec | AnswerSpec
    method: MethodSpec | None  # None only for the bare host
    init: InitSpec
    port: PortSpec | None
    origin: str | None
    head: str
    seed: int | None  # None where no random number is drawn
    train: TrainSpec
    eval: EvalSpec
    precision: str
    teacher: HostSpec | None = None
    origin_host: HostSpec | None = None
    folder: str | None = None

    def identity(self) -> dict[str, Any]:
        """Everything that can change the run's numbers, and nothing else: no path, no display name."""
        return {
            "schema": SCHEMA,
            "host": self.host.fingerprint,
            "data": [self.data.train_digest, self.data.eval_digest],
            "task": self.task.identity(),
            "method": _without(self.method, "name"),
            "init": _without(self.init, "name"),
            "port": self.port.identity() if self.port else None,
            "origin": self.origin,
            "head": self.head,
            "seed": self.seed,
            "train": self.train.identity(),
            "eval": {"split": self.eval.split, "limit": self.eval.limit},
            "precision": self.precision,
            "teacher": self.teacher.fingerprint if self.teacher else None,
        }

    @functools.cached_property
    def run_id(self) -> str:
        """Name of the run: hash of its identity."""
        return digest(self.identity())

    @property
    def stream(self) -> tuple[object, ...]:
        """First names of what the run draws for its module (seeds.stream): its seed, role, method and the run
        it starts from, so that no two starts of a seed are made of the same numbers. Batches and heads are
        named by seed and data alone: all arms of a seed share them.
        """
        method = digest(_without(self.method, "name", "learning_rate"))
        return self.seed, "receiving" if self.origin else "origin", method, self.origin

    @property
    def trained_method(self) -> MethodSpec:
        """The method of a run that trains a module.

        Raises:
            ValueError: the run is that of a bare host.
        """
        if self.method is None:
            raise ValueError(f"run {self.run_id} is that of a bare host, which has no method")
        return self.method

    def with_updates(self, updates: int) -> "RunSpec":
        """The same run with another number of updates."""
        return replace(self, train=replace(self.train, updates=updates))


def _without(value: Any, *names: str) -> dict[str, Any] | None:
    return None if value is None else {k: v for k, v in asdict(value).items() if k not in names}


def from_dict(cls: type[T], value: Mapping[str, Any]) -> T:
    """Rebuild a spec from `dataclasses.asdict` after a trip through JSON (lists become tuples again).

    Raises:
        UserError: it is no such spec.
    """
    return build(cls, value, "spec")


@dataclass(frozen=True)
class Cell:
    """One point of the grid; many cells may share one run. `mark` is the update of the run that the cell
    reads."""

    method: str
    origin: str
    receiving: str
    relation: str
    origin_data: str
    data: str
    init: str
    port: str
    seed: int
    budget: int  # updates on the receiving host; 0 is zero-shot
    run_id: str
    mark: int
    native_id: str  # the same method trained on the receiving host itself; "" where none is trained
    bare_id: str  # the host without a module, with this cell's head
