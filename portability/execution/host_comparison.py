"""The hosts of a plan, compared pair by pair in a process of their own; whatever happens there, no run is
touched by it."""

import contextlib
import logging
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from portability.core.errors import UserError, redact_paths
from portability.core.specs import AnswerSpec, DataSpec, HostSpec, TaskSpec, Text, digest
from portability.data.splits import StudyData, rows
from portability.execution.processes import ChildDied, in_child
from portability.execution.worker import Setup, Worker
from portability.hosts.devices import Place
from portability.planning.plan import Plan
from portability.store import Store
from portability.store import host_pairs as pairs

log = logging.getLogger(__name__)
TEXTS = 256  # most texts that hosts are compared on (our choice)
Answer = dict[str, Any] | str  # what was measured, or what went wrong


@dataclass(frozen=True)
class Pair:
    """Two hosts, one of which modules are ported to from the other, and what they read: the first training
    sentences of the receiving set after the leak guard, without labels, in the study's template, or its first
    prompts (our choice)."""

    one: HostSpec
    other: HostSpec
    data: DataSpec
    task: TaskSpec | AnswerSpec

    @property
    def text(self) -> dict[str, Any]:
        """What the texts follow from, so that they have a name before they are read."""
        return {"train_digest": self.data.train_digest, "texts": min(TEXTS, self.data.counts["train"]),
                "template": self.task.reading.template, "max_length": self.task.reading.max_length}

    @property
    def name(self) -> str:
        """The name of the pair's file."""
        return pairs.name_of({"one_fingerprint": self.one.fingerprint, "text_digest": digest(self.text),
                              "other_fingerprint": self.other.fingerprint})


def lacking(planned: Plan, chosen: Collection[str], store: Store) -> list[Pair]:
    """The pairs of hosts whose modules the chosen runs port, and that the store does not hold yet."""
    found: dict[str, Pair] = {}
    for run_id, run in planned.runs.items():
        origin = planned.runs[run.origin].host if run_id in chosen and run.origin else run.host
        if origin.name != run.host.name:
            one, other = sorted((origin, run.host), key=lambda host: (host.fingerprint, host.name))
            pair = Pair(one, other, run.data, run.task)
            found.setdefault(pair.name, pair)
    there = pairs.held(store.root) if found else {}
    return sorted((pair for name, pair in found.items() if name not in there),
                  key=lambda pair: pair.one.fingerprint)


def compare_pairs(planned: Plan, chosen: Collection[str], store: Store, setup: Setup) -> None:
    """Compare the hosts of the pairs that the store lacks, on this machine's processor whichever the engine.
    A failure is a warning, and the next command tries again."""
    todo = lacking(planned, chosen, store)
    if todo:
        log.info("pairs of hosts to compare: %d (similarity=false leaves this out)", len(todo))
    while todo:  # one process measures all; where it dies, another one does the rest
        with contextlib.closing(in_child(_measure, todo[:], setup)) as answers:
            try:
                for found in answers:
                    _keep(store, todo.pop(0), found)
            except ChildDied as error:
                if todo:
                    _keep(store, todo.pop(0), str(error))


def _keep(store: Store, pair: Pair, found: Answer) -> None:
    try:
        if isinstance(found, str):
            raise UserError(found)
        pairs.keep(store.root, {**found, "text": pair.text, "text_digest": digest(pair.text)})
    except (ValueError, OSError) as error:  # a UserError is a ValueError
        log.warning("hosts %s and %s were not compared: %s; the next command tries again (similarity=false "
                    "leaves it out)", pair.one.name, pair.other.name, error)


def _measure(todo: Sequence[Pair], setup: Setup) -> Iterator[Answer]:
    """In a process of its own: answer for each pair in order. Texts and what hosts make of them are kept
    between pairs."""
    from portability.porting.similarity import Readings, compare_hosts

    data = Worker(setup, Place("cpu", 1.0)).context.data  # one thread, and no chatter
    known: dict[str, tuple[list[Text], dict[str, Readings]]] = {}
    for pair in todo:
        mark = digest(pair.text)
        try:
            if mark not in known:
                known[mark] = _texts(pair, data), {}
            texts, readings = known[mark]
            yield compare_hosts(pair.one, pair.other, texts, pair.task.reading, readings)
        except Exception as error:  # whatever a host may raise, the other pairs are measured
            name = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            yield redact_paths(f"{name}{error}")


def _texts(pair: Pair, data: StudyData) -> list[Text]:
    if data.digests[pair.data.name]["train"] != pair.data.train_digest:
        raise UserError(f"the train split of '{pair.data.name}' changed since it was planned; run it again")
    found = rows(data, pair.data.name, "train", 0)[: pair.text["texts"]]
    return [row[0] if isinstance(row, tuple) else row.prompt for row in found]
