"""The starts of runs that train together: module, head, and what is taken off the host."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from portability.core.errors import UserError
from portability.core.seeds import stream_seed
from portability.core.specs import EXTERNAL, HostSpec, RunSpec, from_dict
from portability.data.sampling import Bucket
from portability.data.splits import StudyData, rows
from portability.hosts.host import Host, load_host
from portability.hosts.sources import check_unchanged
from portability.inits.external import external_module
from portability.inits.extraction import ExtractReport, extract
from portability.inits.kinds import INITS, SEEDS, InitContext, extraction_options
from portability.methods.module import ModuleState
from portability.porting.base import Port, PortContext, Purpose
from portability.porting.calibration import study_texts
from portability.porting.port import fit_head, port
from portability.store import Store
from portability.tasks.base import Answered, TaskScorer
from portability.tasks.registry import task_of
from portability.training.run_output import InitialState
from portability.training.stack import StackContext

EMPTY = ModuleState({}, {})
CALIBRATION = 64  # training inputs on which a module's logit change is measured


class StartBuilder:
    """Makes the starts of one stack's runs. What several of them share, a port or a host that a strategy
    reads, is made once and kept as long as the builder.

    Args:
        device: where extractions are computed.
        free: gives the threads that an extraction may use now.
        load: gives a host as it is on disk, in a precision.
    """

    def __init__(
        self, bench: StackContext, store: Store, data: StudyData, device: str = "cpu",
        free: Callable[[], int] = lambda: 1,
        load: Callable[[HostSpec, str], Host] = lambda spec, precision: load_host(spec, precision=precision),
    ):
        self.bench, self.store, self.data, self.device, self.free = bench, store, data, device, free
        self.load = load
        self.method = bench.attached.spec
        self._ports: dict[tuple[object, ...], Port] = {}
        self._hosts: dict[tuple[str, str], Host] = {}

    def make(self, run: RunSpec) -> InitialState:
        """A run's start.

        Raises:
            UserError: the run that it starts from is not in the store, or what its port or extraction
                refuses.
        """
        head = start_head(run, self.bench.scorer, self.store, lambda: self._context(run, EMPTY))
        providers = {"port": self._port, "extraction": self._extraction, "teacher": self._teacher,
                     "external": external_module}
        given: dict[str, Any] = {need: partial(provider, run) for need, provider in providers.items()
                                 if need in run.init.traits.needs}
        context = InitContext(
            receiving=run.host, method=self.method, seed=int(run.seed or 0), stream=run.stream,
            fresh=partial(self._fresh, run), change=_logit_change(self.bench, head),
            calibration_examples=min(CALIBRATION, len(self.bench.training)), **given,
        )
        made = INITS[run.init.kind](context, run.init.options)
        return replace(made, head=head, origin=self._names(run))

    def _fresh(self, run: RunSpec) -> ModuleState:
        return self.bench.attached.init_parameters(stream_seed(*run.stream, "module"))

    def _origin(self, run: RunSpec) -> RunSpec:
        return origin_run(run, self.store)

    def _names(self, run: RunSpec) -> dict[str, str] | None:
        """Host and data behind a start, for its record; of a module from elsewhere its own name is known."""
        if run.teacher is None and run.origin is None:
            return None
        source = self._origin(run) if run.teacher is None else run
        elsewhere = source.init.kind == EXTERNAL
        return {"host": (source.teacher or source.host).name,
                "data": source.init.name if elsewhere else source.data.name}

    def _origin_module(self, run: RunSpec) -> ModuleState:
        return ModuleState.from_file(*self.store.tensors(str(run.origin), "module"))

    def _port(self, run: RunSpec) -> Port:
        """The origin's module fitted to the stack's host: one port for each origin, strategy, fresh module
        and what a strategy may learn from."""
        key = (run.origin, repr(run.port), run.stream, repr(run.method), repr(run.task), run.head,
               run.data.train_digest, run.precision)
        if key not in self._ports:
            self._ports[key] = port(self._origin_module(run), self._context(run, self._fresh(run)))
        return self._ports[key]

    def _context(self, run: RunSpec, fresh: ModuleState) -> PortContext:
        heads = (lambda: self.store.tensors(str(run.origin), "head")[0],
                 lambda: start_head(run, self.bench.scorer, self.store, lambda: self._context(run, EMPTY)))
        context = port_context(run, fresh, self.data, lambda host: self._host(host, run.precision))
        return replace(context, purpose=Purpose(
            run.task, (run.trained_method, run.trained_method),
            lambda: rows(self.data, run.data.name, "train", 0), heads))

    def _host(self, spec: HostSpec, precision: str) -> Host:
        """A host as it is on disk; the stack's own one holds the method."""
        key = spec.fingerprint, precision
        if key not in self._hosts:
            self._hosts[key] = self.load(spec, precision)
        return self._hosts[key]

    def _extraction(self, run: RunSpec) -> tuple[ModuleState, ModuleState | None]:
        """The pairs of the extraction that a run starts from, with the cuts where the run's method takes
        these off."""
        blocks = None
        if self.method.settings.get("subtract") == "block":
            blocks = ModuleState.from_file(*self.store.tensors(str(run.origin), "start"))
        return self._origin_module(run), blocks

    def _teacher(self, run: RunSpec) -> tuple[ModuleState, ExtractReport]:
        """The module of a run of kind `extraction`, with what was done."""
        assert run.teacher is not None
        for host in (run.teacher, run.host):
            check_unchanged(host)
        options = extraction_options(self.method, run.init)
        seeds = [] if options.scores == "ones" else seed_examples(run, run.teacher, self.data)
        head = self.store.tensors(run.origin, "head")[0] if run.origin else None
        return extract(run.teacher, run.host, seeds, options, int(run.seed or 0), head, self.device,
                       self.free)


def origin_run(run: RunSpec, store: Store) -> RunSpec:
    """The run that a run starts from.

    Raises:
        UserError: it is not in the store.
    """
    record = store.read(str(run.origin))
    if record is None:
        raise UserError(f"run {run.run_id} needs the module of run {run.origin}, which is not in the store")
    return from_dict(RunSpec, record["spec"])


def port_context(
    run: RunSpec, fresh: ModuleState, data: StudyData, load: Callable[[HostSpec], Host]
) -> PortContext:
    """What the port of a run may use."""
    assert run.port is not None and run.origin_host is not None
    how = run.port.calibration
    return PortContext(run.origin_host, run.host, fresh, run.port, load,
                       None if how is None else lambda: study_texts(how, data),
                       stream_seed(*run.stream, "port"))


def start_head(
    run: RunSpec, scorer: TaskScorer, store: Store, context: Callable[[], PortContext]
) -> dict[str, Tensor]:
    """The classification head a run starts with: none, a fresh one, or the origin's fitted to this host's
    width.

    All arms of a cell start from the same head, so that no arm has an advantage (design: head shared).
    """
    if run.head == "shared":
        return fit_head(store.tensors(str(run.origin), "head")[0], context())
    return scorer.fresh_head(stream_seed(run.seed, "head"))


def seed_examples(run: RunSpec, teacher: HostSpec, data: StudyData) -> list[Answered]:
    """Examples of the run's training data with their gold answers, drawn by the run's seed without
    replacement, asked and answered as in training: the answer is the first token of the label word.

    Raises:
        UserError: the training data has fewer examples.
    """
    count = run.init.options.get("seeds", SEEDS)

    def draw(size: int) -> list[int]:
        if count > size:
            raise UserError(f"init '{run.init.name}' asks for {count} seed examples, and the training split "
                            f"of data set '{run.data.name}' has {size}; set a smaller "
                            f"init.{run.init.name}.options.seeds")
        generator = np.random.default_rng(stream_seed(run.seed, "extraction", "seeds"))
        return generator.permutation(size)[:count].tolist()

    return task_of(run.task).answered(teacher, data, run.data.name, draw)


def _logit_change(bench: StackContext, head: Mapping[str, Tensor]) -> Callable[[ModuleState], float]:
    """Module -> Frobenius norm of its change of the logits on the first training inputs."""
    training, scorer = bench.training, bench.scorer
    picks = np.arange(min(CALIBRATION, len(training)))
    made = scorer.rows(training, picks, len(picks), Bucket(picks, int(training.lengths[picks].max())))
    rows = tuple(part.to(scorer.device) for part in made)
    bare: list[Tensor] = []  # made when it is first asked for

    @torch.no_grad()
    def change(module: ModuleState) -> float:
        if not bare:
            with bench.attached.disabled():
                bare.append(scorer.logits(on_device(head, scorer), *rows))
        logits = scorer.logits(on_device(bench.parameters(module, head), scorer), *rows)
        return float(torch.linalg.vector_norm(logits - bare[0]))

    return change


def on_device(parameters: Mapping[str, Tensor], scorer: TaskScorer) -> dict[str, Tensor]:
    """The parameters where the scorer computes."""
    return {name: value.to(scorer.device) for name, value in parameters.items()}
