"""A run as far as shapes and tokens tell, before any weight is loaded: everything that would end it for
certain is found here.

The code is the run's own. The host stands on torch's meta device, which knows shapes and no numbers; a
trained module, or a head, is drawn at random, so that no two of its layers are alike.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from portability.core.errors import RUN_ERRORS, UserError
from portability.core.specs import HostSpec, MethodSpec, PortSpec, RunSpec, TaskSpec
from portability.core.wording import counted
from portability.execution.execute import WorkerContext
from portability.hosts.devices import Place
from portability.hosts.host import Host, load_tokenizer, model_class, narrow, weight_bytes
from portability.hosts.sources import texts_of
from portability.hosts.spread import connect, devices_of
from portability.inits.extraction import check_extraction
from portability.inits.extraction.weights import before_work
from portability.inits.kinds import INITS, InitContext, extraction_options
from portability.inits.start import EMPTY, seed_examples
from portability.methods import attach
from portability.methods.module import ModuleState
from portability.porting.base import PortContext
from portability.porting.port import check_texts, fit_head, needs_of, port
from portability.porting.strategies import find_strategy
from portability.tasks.base import HEAD, SHOWN
from portability.tasks.registry import task_of
from portability.training.memory import STATE

GIVEN = {"origin_weights", "receiving_weights", "text", "labels"}  # needs that no rehearsal can meet
PRECISIONS = ("fp32", "bf16")
TOKENS = 12  # of an answer in an example that is shown, and at each end of what is read


class Rehearsal:
    """Runs rehearsed one after the other; what is made for one is kept for the next.

    Args:
        context: of whose data the texts are.
        place: of a worker, whose devices hosts are to be spread over where it says so.
    """

    def __init__(self, context: WorkerContext, place: Place | None = None):
        self.context, self.place, self.precision = context, place, PRECISIONS[0]
        self.hosts: dict[str, Host] = {}
        self.modules: dict[tuple[str, str], ModuleState] = {}

    @torch.random.fork_rng(devices=[])  # meta tensors, too, take numbers from the one generator
    def of(self, run: RunSpec, origin: RunSpec | None) -> dict[str, Any]:
        """What is asked in a run (`_asked`), if nothing stands in its way; `memory`: by precision, bytes that
        its worker holds at once at least, the host's weights and a module in training, or an extraction; and
        `loading`: bytes of ordinary memory while the host is read, which is in fp32 whatever the precision.

        Args:
            origin: the run that it starts from, if there is one.

        Raises:
            UserError: names the host, the method or the data set that does not fit, and why.
        """
        self.precision = run.precision
        if self.place and self.place.device_map:
            self._host(run.host)  # what is wrong with the map is no matter of a data set
        if run.port is not None and origin is not None:
            check_texts(run.port, f"from '{origin.host.name}' to '{run.host.name}'")
        with _said(f"host '{run.host.name}'", f"data set '{run.data.name}'"):
            asked = self._asked(run)
        held = 0
        if run.head == "shared" and origin is not None and run.port is not None and not _sees(run.port):
            with _said(f"port '{run.port.name}' from '{origin.host.name}' to '{run.host.name}'"):
                fit_head(_head(run, origin.host), PortContext(origin.host, run.host, EMPTY, run.port))
        if run.method is not None:
            fresh = self._module(run.host, run.method)
            pair = [f"from '{origin.host.name}' to '{run.host.name}'"] if origin else []
            with _said(f"init '{run.init.name}'", f"method '{run.method.name}'", *pair):
                held = self._start(run, run.method, origin, fresh)
            if run.train.updates:
                held = 4 * STATE * sum(tensor.numel() for tensor in fresh.tensors.values())
        model = self._host(run.host).model
        return asked | {"memory": {kind: weight_bytes(model, kind) + held for kind in PRECISIONS},
                        "loading": weight_bytes(model, "fp32")}

    def _start(self, run: RunSpec, method: MethodSpec, origin: RunSpec | None, fresh: ModuleState) -> int:
        """The module that a run starts from, where it comes from another host; gives back bytes that this
        takes, where it is an extraction."""
        # what a strategy makes of weights, the run itself shows
        if ("port" in run.init.traits.needs and origin is not None and run.port is not None
                and not _sees(run.port)):
            module = self._module(origin.host, method)
            known = PortContext(origin.host, run.host, fresh, run.port)
            INITS[run.init.kind](InitContext(
                receiving=run.host, method=method, seed=int(run.seed or 0), stream=run.stream,
                fresh=lambda: fresh, change=_norm, port=lambda: port(module, known)), run.init.options)
        if run.teacher is not None:
            options = extraction_options(method, run.init)
            seeds = [] if options.scores == "ones" else seed_examples(run, run.teacher, self.context.data)
            return check_extraction(run.teacher, run.host, seeds, options,
                                    _head(run, run.teacher) if origin else None)
        return 0

    def _host(self, spec: HostSpec) -> Host:
        if spec.fingerprint not in self.hosts:
            host = self.hosts[spec.fingerprint] = skeleton(spec)
            if self.place and self.place.device_map:
                if self.precision == "bf16":
                    narrow(host.model)
                host.devices = devices_of(spec.name, host.model, self.place.device_map, self.place.device)
                connect(host.model, host.devices)
        return self.hosts[spec.fingerprint]

    def _module(self, host: HostSpec, method: MethodSpec) -> ModuleState:
        """A module of the method's shape on a host, drawn from (0, 1)."""
        key = (host.fingerprint, repr(method))
        if key not in self.modules:
            with _said(f"host '{host.name}'", f"method '{method.name}'"), torch.device("meta"):
                attached = attach(self._host(host), method)
                shapes = attached.to_state({name: torch.empty(shape)
                                           for name, shape in attached.shapes.items()})
                attached.detach()
            generator = torch.Generator().manual_seed(0)
            self.modules[key] = shapes.map(
                {slot: torch.rand(tensor.shape, generator=generator)
                 for slot, tensor in shapes.tensors.items()})
        return self.modules[key]

    def _asked(self, run: RunSpec) -> dict[str, Any]:
        """`example`: what the host reads of the first test example, the answers that it may give, as they
        follow the text, their tokens, and those that are read, with all blanks to be seen; of several answers
        the first tokens are what is scored. How many answers are `too_long`."""
        host, task = self._host(run.host), task_of(run.task)
        task.scorer(host)
        with _said("training examples"):
            training = None if run.method is None else self.context.training(host, run)
        with _said(f"{run.eval.split} examples"):
            test = self.context.test(host, run)
        part = (run.data.name, run.eval.split, run.eval.limit)
        text, answers, ids, read = task.example(host, self.context.data, *part)
        tokens = [str([*host.tokenizer.convert_ids_to_tokens(one[:TOKENS]), *["..."][: len(one) > TOKENS]])
                  for one in ids]
        shown = " or ".join(repr(f"{one[:SHOWN]} ..." if len(one) > SHOWN else one) for one in answers)
        scored = " (the first ones are scored)" if len(answers) > 1 else ""
        said = f" -> {shown}\n  tokens: {' or '.join(tokens)}{scored}" if answers else (
            f", answered by a head of {_classes(run)} classes")
        seen = host.tokenizer.convert_ids_to_tokens(read)
        if len(seen) > 2 * TOKENS:
            seen = [*seen[:TOKENS], "...", *seen[-TOKENS:]]
        said += f"\n  read as {counted(len(read), 'token')}: {seen}"
        return {"example": f"{text!r}{said}", "too_long": task.too_long(training, test)}


def _sees(port: PortSpec) -> bool:
    """Whether a port uses what no rehearsal has."""
    return bool(needs_of(find_strategy(port.strategy), port.layer_map) & GIVEN)


def skeleton(spec: HostSpec) -> Host:
    """A host without weights, on the meta device, with its tokenizer.

    Raises:
        UserError: its files hold other weights than its config.json asks for, or its tokenizer cannot be
            loaded.
    """
    from transformers import AutoConfig

    before_work(spec)  # holds names and shapes in the files' headers against the model's
    config = AutoConfig.from_pretrained(texts_of(spec), local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        model = model_class(spec.shape.family).from_config(config)
    return Host(spec, model.requires_grad_(False).eval(), load_tokenizer(spec))


def _classes(run: RunSpec) -> int:
    return len(run.task.label_words) if isinstance(run.task, TaskSpec) else 2


def _head(run: RunSpec, host: HostSpec) -> dict[str, Tensor]:
    count = _classes(run)
    return dict(zip(HEAD, (torch.ones(count, host.shape.hidden), torch.ones(count)), strict=True))


def _norm(module: ModuleState) -> float:
    """Stands for the change that a module makes to the logits: its own size."""
    return float(sum(tensor.square().sum() for tensor in module.tensors.values()) ** 0.5)


@contextmanager
def _said(*where: str) -> Iterator[None]:
    """Errors as one sentence that begins with those of these places that it does not name itself."""
    try:
        yield
    except RUN_ERRORS as error:
        text = str(error)
        if not isinstance(error, UserError):
            text = f"{type(error).__name__}: {' '.join(text.split())[:300]}"
        places = ", ".join(place for place in where if place not in text)
        raise UserError(f"{places}: {text}" if places else text) from error
