"""What a worker keeps between stacks, so that nothing is loaded, tokenised or measured twice; and how a run ends there."""

import logging
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from portability.core.errors import UserError, without_places
from portability.core.specs import AnswerSpec, RunSpec, TaskSpec
from portability.core.stages import Stage
from portability.data.answer_tokens import Sequences, encode_answers
from portability.data.examples import Example
from portability.data.splits import Encoded, StudyData, encode, examples, rows
from portability.execution.run_output import Evidence, build_result
from portability.hosts.devices import Place
from portability.hosts.host import Host, load_host
from portability.store import Store
from portability.tasks.generation import Questions, questions
from portability.training.memory import free_bytes

log = logging.getLogger(__name__)


@dataclass
class Desk:
    """The store, the study's data, where to compute, and what was loaded for earlier stacks.

    Attributes:
        report: called with what the runs at hand are at, after each update and each batch that was scored.
        on_commit: called with the record of each finished run.
        checkpoint_seconds: runs in training are kept whenever that much work would be lost.
        settled: runs of the stack at hand that were committed or failed.
        stopped: set when the worker is to keep its checkpoints and end.
        free: gives the threads that an extraction may use now.
    """

    store: Store
    data: StudyData
    report: Callable[[Stage], None] = lambda stage: None
    on_commit: Callable[[dict], None] = lambda record: None
    place: Place = Place("cpu", 0.5)
    checkpoint_seconds: float = 60.0
    hosts: dict[tuple[str, str], Host] = field(default_factory=dict)
    texts: dict[tuple, Any] = field(default_factory=dict)
    member_bytes: dict[tuple, int] = field(default_factory=dict)
    settled: set[str] = field(default_factory=set)
    stopped: threading.Event = field(default_factory=threading.Event)
    free: Callable[[], int] = lambda: 1

    @property
    def device(self) -> torch.device:
        """Where this worker computes."""
        return torch.device(self.place.device)

    def host(self, run: RunSpec) -> Host:
        """The run's host, loaded unless it is at hand; the oldest ones go when hosts fill half of what is free."""
        key = (run.host.fingerprint, run.precision)
        if key not in self.hosts:
            while self.hosts and sum(map(_size, self.hosts.values())) > free_bytes(self.device, self.place.share) / 2:
                self.hosts.pop(next(iter(self.hosts)))
            self.hosts[key] = load_host(run.host, self.place.device, run.precision)
        return self.hosts[key]

    def training(self, host: Host, run: RunSpec) -> Encoded | Sequences:
        """What the run is trained on, as token ids."""
        if isinstance(run.task, TaskSpec):
            return self.encoded(host, run, "train", 0)
        return self._kept(host, run, "train", 0, lambda found, task: encode_answers(
            found, host.tokenizer, host.family, task.max_length, task.too_long, task.new_tokens or 1))

    def test(self, host: Host, run: RunSpec) -> Encoded | Questions:
        """What the run is scored on, as token ids."""
        split, limit = run.eval.split, run.eval.limit
        if isinstance(run.task, TaskSpec):
            return self.encoded(host, run, split, limit)
        return self._kept(host, run, split, limit, lambda found, task: questions(found, host.tokenizer, host.family, task))

    def _kept(
        self, host: Host, run: RunSpec, split: str, limit: int, make: Callable[[list[Example], AnswerSpec], Any]
    ) -> Any:
        """Examples of a set of prompts in a host's tokens, made once a worker."""
        assert isinstance(run.task, AnswerSpec)
        key = (run.host.fingerprint, run.data.name, run.data.train_digest, run.data.eval_digest, split, limit, run.task)
        if key not in self.texts:
            found = make(examples(self.data, run.data.name, split, limit), run.task)
            parts = [found] if isinstance(found, Sequences) else [found.asked, found.right]
            _check_ids(host, *(ids for part in parts if part is not None for ids in (part.ids, part.target_ids)))
            self.texts[key] = found
        return self.texts[key]

    def encoded(self, host: Host, run: RunSpec, split: str, limit: int) -> Encoded:
        """One split of a set of texts with labels as token ids, mapped from a file that all workers share."""
        assert isinstance(run.task, TaskSpec)
        key = (run.host.fingerprint, run.data.name, run.data.train_digest, run.data.eval_digest, split, limit, run.task)
        if key not in self.texts:
            dataset = rows(self.data, run.data.name, split, limit)
            found = encode(dataset, host.tokenizer, run.task, host.scoring == "label", run.host.fingerprint)
            _check_ids(host, found.ids)
            self.texts[key] = found
        return self.texts[key]

    def commit(self, evidence: Evidence) -> None:
        """Publish a finished run."""
        result = build_result(evidence)
        self.store.commit(evidence.run.run_id, result)
        self.store.drop_checkpoint(evidence.run.run_id)
        self.settled.add(evidence.run.run_id)
        self.on_commit(result.record)

    def fail(self, run: RunSpec, error: Exception, **facts: int) -> None:
        """Record a failed run."""
        trace = without_places("".join(traceback.format_exception(error))) if not isinstance(error, UserError) else None
        failure = {"error": without_places(str(error)), "kind": type(error).__name__, "traceback": trace, **facts}
        attempt = self.store.fail(run.run_id, failure)
        self.settled.add(run.run_id)
        log.error("run %s (%s on %s) failed at attempt %d: %s", run.run_id, run.init.name, run.host.name, attempt, error)


def _check_ids(host: Host, *parts: np.ndarray | None) -> None:
    """Refuse token ids that the host's embedding has no row for.

    Raises:
        UserError: names the host and the largest id.
    """
    rows = host.model.get_input_embeddings().weight.shape[0]
    largest = max((int(ids.max(initial=-1)) for ids in parts if ids is not None), default=-1)
    if largest >= rows:
        raise UserError(f"the tokenizer of host '{host.spec.name}' gives token {largest}, and its embedding ends at token "
                        f"{rows - 1}; take a whole copy of the host, with the tokenizer that belongs to it")


def _size(host: Host) -> int:
    """Bytes of a host's weights."""
    return sum(p.numel() * p.element_size() for p in host.model.parameters())
