"""The hosts of a plan, compared pair by pair in a process of their own; whatever happens there, no run is touched by it."""

import contextlib
import logging
import multiprocessing
import os
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from tqdm import tqdm

from portability.core.errors import UserError, without_places
from portability.core.specs import AnswerSpec, DataSpec, HostSpec, TaskSpec, digest
from portability.data.splits import StudyData, rows
from portability.execution.worker import ENVIRONMENT, Setup, Worker, end_of, end_with_parent
from portability.hosts.devices import Place
from portability.planning.plan import Plan
from portability.store import Store
from portability.store import host_pairs as pairs

log = logging.getLogger(__name__)
TEXTS = 256  # most texts that hosts are compared on (our choice)
Answer = dict[str, Any] | str  # what was measured, or what went wrong


@dataclass(frozen=True)
class Pair:
    """Two hosts, one of which modules are ported to from the other, and what they read: the first training sentences of the
    receiving set after the leak guard, without labels, in the study's template, or its first prompts (our choice)."""

    one: HostSpec
    other: HostSpec
    data: DataSpec
    task: TaskSpec | AnswerSpec

    @property
    def text(self) -> dict[str, Any]:
        """What the texts follow from, so that they have a name before they are read."""
        return {"train_digest": self.data.train_digest, "texts": min(TEXTS, self.data.counts["train"]),
                "template": self.asked.template, "max_length": self.asked.max_length}

    @property
    def asked(self) -> TaskSpec:
        """How the texts are put to the hosts: prompts as they are."""
        return self.task if isinstance(self.task, TaskSpec) else TaskSpec("{text}", ("", ""), self.task.max_length)

    @property
    def name(self) -> str:
        """The name of the pair's file."""
        return pairs.name_of(self.one.fingerprint, self.other.fingerprint, digest(self.text))


def lacking(planned: Plan, chosen: Collection[str], store: Store) -> list[Pair]:
    """The pairs of hosts whose modules the chosen runs port, and that the store does not hold yet."""
    found: dict[str, Pair] = {}
    for run_id, run in planned.runs.items():
        origin = planned.runs[run.origin].host if run_id in chosen and run.origin else run.host
        if origin.name != run.host.name:
            pair = Pair(*sorted((origin, run.host), key=lambda host: (host.fingerprint, host.name)), run.data, run.task)
            found.setdefault(pair.name, pair)
    there = pairs.held(store.root) if found else {}
    return [found[name] for name in sorted(found.keys() - there.keys(), key=lambda name: found[name].one.fingerprint)]


def compare_pairs(planned: Plan, chosen: Collection[str], store: Store, setup: Setup) -> None:
    """Compare the hosts of the pairs that the store lacks, on this machine's processor whichever the engine. A failure is a
    warning, and the next command tries again."""
    todo = lacking(planned, chosen, store)
    if not todo:
        return
    log.info("pairs of hosts to compare: %d, on %d training sentences of %s (similarity=false leaves this out)", len(todo),
             todo[0].text["texts"], todo[0].data.name)
    every = 0.5 if sys.stderr.isatty() else 15.0  # seconds, as in progress.carry_out
    with (tqdm(total=len(todo), unit="pair", desc="hosts", mininterval=every, disable=len(todo) == 1) as bar,
          contextlib.closing(_measured(todo, setup)) as answers):
        for pair, found in answers:
            try:
                if isinstance(found, str):
                    raise UserError(found)
                pairs.keep(store.root, {**found, "text": pair.text, "text_digest": digest(pair.text)})
            except (ValueError, OSError) as error:  # a UserError is a ValueError
                log.warning("hosts %s and %s were not compared: %s; no run is touched by this, and the next command tries "
                            "again (similarity=false leaves it out)", pair.one.name, pair.other.name, error)
            bar.update()


def _measured(todo: Sequence[Pair], setup: Setup) -> Iterator[tuple[Pair, Answer]]:
    """Each pair with its answer. One process measures all; where it dies, another one does the rest."""
    os.environ.update(ENVIRONMENT)
    context = multiprocessing.get_context("spawn")
    left = list(todo)
    while left:
        ours, theirs = context.Pipe()
        child = context.Process(target=_measure, args=(theirs, left, setup), daemon=True)
        try:
            child.start()
            theirs.close()
            while left:
                answer = ours.recv()
                yield left.pop(0), answer
        except (EOFError, OSError) as error:
            yield left.pop(0), end_of(child, error)
        finally:  # also when the command is interrupted
            if child.pid is not None:
                child.kill()
                child.join()


def _measure(pipe: Connection, todo: Sequence[Pair], setup: Setup) -> None:
    """In a process of its own: answer for each pair in order."""
    end_with_parent()
    measure = _Measure(setup)
    for pair in todo:
        try:
            answer: Answer = measure.of(pair)
        except Exception as error:  # whatever a host may raise, the other pairs are measured
            answer = without_places(str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}")
        pipe.send(answer)


class _Measure:
    """What a process keeps between pairs: the texts, and what each host made of them."""

    def __init__(self, setup: Setup):
        self.setup = setup
        self.worker: Worker | None = None
        self.texts: dict[str, list[str]] = {}
        self.known: dict[str, dict[str, Any]] = {}  # by the digest of the texts

    def of(self, pair: Pair) -> dict[str, Any]:
        """What similarity.compare_hosts says of a pair."""
        from portability.porting.similarity import compare_hosts

        self.worker = self.worker or Worker(self.setup, Place("cpu", 1.0), lambda _: None)  # one thread, and no chatter
        mark = digest(pair.text)
        if mark not in self.texts:
            self.texts[mark] = _texts(pair, self.worker.desk.data)
        return compare_hosts(pair.one, pair.other, self.texts[mark], pair.asked, self.known.setdefault(mark, {}))


def _texts(pair: Pair, data: StudyData) -> list[str]:
    if data.digests[pair.data.name]["train"] != pair.data.train_digest:
        raise UserError(f"the train split of data set '{pair.data.name}' changed since the study was planned; run it again")
    column = "text" if isinstance(pair.task, TaskSpec) else "prompt"
    return list(rows(data, pair.data.name, "train", 0)[: pair.text["texts"]][column])
