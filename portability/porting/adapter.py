"""Somebody's adapter folder fitted to another host, out of which comes a folder of the same method."""

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from portability.core.errors import UserError
from portability.core.specs import HostShape, HostSpec, MethodSpec, PortSpec, TaskSpec
from portability.data.examples import LabelledText
from portability.hosts.host import Host, load_host, load_skeleton
from portability.hosts.resolve import ADAPTER_FILES, find_folder, find_host, with_weights
from portability.methods import attach
from portability.methods.adapters_backend import AdaptersMethod
from portability.methods.adapters_files import AdaptersFolder
from portability.methods.base import AttachedMethod
from portability.methods.files import module_of, read_folder
from portability.methods.folder import AdapterFolder
from portability.methods.module import ModuleState
from portability.methods.peft_backend import PROJECTIONS, Form, PeftMethod
from portability.methods.peft_files import IN_MODEL, PeftFolder
from portability.porting.adapters_settings import adapters_settings
from portability.porting.axes import stays_as_begun
from portability.porting.base import Need, Port, PortContext, PortReport, Purpose, no_texts
from portability.porting.calibration import Calibration
from portability.porting.layer_maps import LayersOf
from portability.porting.port import needs_of, port, strategies_of
from portability.porting.settings import peft_settings
from portability.porting.strategies import find_strategy
from portability.porting.trained import to_change

PAD = PortSpec("pad", "pad", "stretch")
# actions after which a module is written in the coordinates that it was in
STAYS = {"carried", "mapped", "averaged", "cut", "padded", "repeated", "fresh", "dropped"}


@dataclass
class PortedAdapter:
    """An adapter on its receiving host.

    Attributes:
        attached: the method on a skeleton of the receiving host.
        parameters: by their names on the receiving host.
        port: module, masks and report.
        prefix: of the receiving model inside the class that the folder is for.
        body: beginning of the parameters' names that the class of the folder lacks, because it has no head.
        head: what peft keeps of a trained head beside the module, by key.
    """

    adapter: AdapterFolder
    origin: HostSpec
    receiving: HostSpec
    attached: AttachedMethod
    parameters: dict[str, Tensor]
    port: Port
    prefix: str = ""
    body: str = ""
    head: dict[str, Tensor] = field(default_factory=dict)

    def write(self, folder: Path, base: str, revision: str | None = None) -> None:
        """Write the folder, in the numbers' type of the one that came in.

        Args:
            base: the receiving host's name for base_model_name_or_path.
        """
        if isinstance(self.attached, AdaptersMethod) and isinstance(self.adapter, AdaptersFolder):
            named = {"base_model_name_or_path": base, "name": self.adapter.name}
            self.attached.save(self.parameters, folder, named, self.adapter.dtype)
            return
        assert isinstance(self.attached, PeftMethod)
        about: dict[str, Any] = {"base_model_name_or_path": base, "revision": revision,
                                 "task_type": self.adapter.config.get("task_type")}
        if self.head:
            about["modules_to_save"] = sorted({key.split(".")[2] for key in self.head})
        beside = {key: tensor.to(self.adapter.dtypes[key]) for key, tensor in {
            **self.adapter.tensors, **self.head}.items()
            if key in self.head or key.rsplit(".", 1)[-1] in PROJECTIONS}
        values = {name.removeprefix(self.body): value for name, value in self.parameters.items()}
        self.attached.save(values, folder, about, Form(self.adapter.dtype, self.prefix, beside))

    def save(self, folder: str | Path, merge: bool = False, scores: dict[str, Any] | None = None,
             command: str | None = None) -> None:
        """Write a folder that the library loads, with a model card (README.md), whole or not at all: it is
        made beside its place and renamed.

        Args:
            folder: must not exist.
            merge: the receiving host with the module in its weights instead.
            scores: for the card, as of porting.verify.
            command: for the card, by which the port was made.

        Raises:
            UserError: the folder is there already, or the method cannot be merged.
        """
        from portability.porting.card import card

        out, base = Path(folder).expanduser(), self.receiving.source
        if out.exists():
            raise UserError(f"{out} is there already; name a new folder")
        new = [parent for parent in out.parents if not parent.exists()]
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as beside:
                draft = Path(beside) / "adapter"
                if merge:
                    from portability.porting.convert import merged

                    merged(self, with_weights(self.receiving), draft)
                else:
                    self.write(draft, base, self.receiving.revision)
                found = {"report": self.report.summary(), "scores": scores}
                made_by = command or "portability.port_adapter"
                (draft / "README.md").write_text(card(self, found, made_by, base, merge))
                shutil.move(draft, out)
        except BaseException:
            for parent in new:  # the innermost first
                parent.rmdir()
            raise

    @property
    def spec(self) -> MethodSpec:
        """The method, with the receiving host's names."""
        return self.attached.spec

    @property
    def report(self) -> PortReport:
        """What was carried, and what was filled."""
        return self.port.report


# ---- by the words that a user gives


def load_adapter(words: str | Path) -> AdapterFolder:
    """An adapter by a folder's name, or a hub id, perhaps with ``@revision``; its configuration and tensors
    are read and checked, and nothing of its base.

    Raises:
        UserError: it is not there, or cannot be read.
    """
    return read_folder(find_folder(str(words), "adapter", ADAPTER_FILES)[0])


def find_hosts(
    adapter: AdapterFolder, to: str | Path | HostSpec, from_: str | Path | HostSpec | None = None
) -> tuple[HostSpec, HostSpec]:
    """The host that an adapter was trained on, and the receiving one, by their shapes; no weights are read.

    Args:
        to: a folder, ``embedded:NAME`` or a hub id, perhaps with ``@revision``; or what was found by one.
        from_: the same for the adapter's base; None: what its configuration names.

    Raises:
        UserError: one of them is not there, or of an unknown family, or the adapter does not name its base.
    """
    def found(host: str | Path | HostSpec) -> HostSpec:
        return host if isinstance(host, HostSpec) else find_host(str(host))

    if from_ is not None:
        return found(from_), found(to)
    if not adapter.base:
        raise UserError(f"{adapter.folder} does not say what its base model is; name it: --from HOST")
    try:
        origin = found(str(adapter.base_words))
    except UserError as error:
        raise UserError(f"the adapter's base: {error}; name it: --from HOST") from error
    return origin, found(to)


def port_adapter(
    adapter: AdapterFolder | str | Path, to: str | Path | HostSpec,
    from_: str | Path | HostSpec | None = None, strategy: str = "auto", layer_map: str = "stretch",
    partial: bool = False, seed: int = 0, options: Mapping[str, Any] | None = None,
    texts: Calibration | None = None, task: TaskSpec | None = None,
    labelled: Sequence[LabelledText] | None = None, load: Callable[[HostSpec], Host] | None = None,
) -> PortedAdapter:
    """Somebody's adapter fitted to another base model, as ``portability port`` does. Nothing is trained,
    unless the strategy says so.

    Args:
        adapter: what `load_adapter` reads, or has read.
        to: the receiving base model, as of `find_hosts`.
        from_: the base that the adapter was trained on, where its configuration does not name it, or names
            what is not there.
        strategy: how sizes are fitted: a name in porting.strategies.STRATEGIES, or of an installed package.
        layer_map: which layers feed which: a name in porting.layer_maps.LAYER_MAPS, "cka", or a list of
            origin layers ("0,2,4+5").
        partial: whether what has no counterpart may stay fresh, or be dropped.
        seed: of what stays fresh, or is drawn.
        options: of the strategy.
        texts: without labels, for strategies that compare what both hosts make of them (`calibration`).
        task: how hosts with a language-model head are asked, for strategies that look at a task.
        labelled: examples of it, for strategies that learn from some.
        load: gives hosts with their weights, where some are at hand (`caching`).

    Raises:
        UserError: as `load_adapter`, `find_hosts` and `port_folder`.
    """
    held = adapter if isinstance(adapter, AdapterFolder) else load_adapter(adapter)
    origin, receiving = find_hosts(held, to, from_)
    spec = PortSpec(strategy, strategy, layer_map, partial, options or {})
    return port_folder(held, origin, receiving, spec, seed, load or caching(), texts, task, labelled)


def caching() -> Callable[[HostSpec], Host]:
    """What loads hosts with their weights, each once."""
    loaded: dict[tuple[str, str | None], Host] = {}

    def load(host: HostSpec) -> Host:
        key = host.source, host.revision  # two revisions are two hosts
        if key not in loaded:
            loaded[key] = load_host(with_weights(host))
        return loaded[key]

    return load


def port_folder(
    adapter: AdapterFolder, origin: HostSpec, receiving: HostSpec, how: PortSpec = PAD, seed: int = 0,
    load: Callable[[HostSpec], Host] = load_host, texts: Calibration | None = None,
    task: TaskSpec | None = None, labelled: Sequence[LabelledText] | None = None,
) -> PortedAdapter:
    """An adapter fitted to another host. No host's weights are read, unless the strategy asks for them or a
    part of the module stays fresh. A head that peft keeps beside the module goes along where both hosts'
    coordinates are the same.

    Args:
        seed: of fresh parts, and of what a strategy draws.

    Raises:
        UserError: the adapter is of another base, the hosts do not go together, or the library refuses the
            method on the receiving host.
    """
    adapter, module, head, attached, context = begin(adapter, origin, receiving, how, seed, load, texts)
    spec = attached.spec
    purpose = None if task is None else Purpose(task, (adapter.spec, spec),
                                                None if labelled is None else lambda: labelled)
    context = replace(context, purpose=purpose)
    if trains := "training" in _given(context):  # the host is loaded anyway; nothing is to be trained twice
        context = replace(context, fresh=_drawn(load(receiving), spec, seed))
    done = port(module, context)
    if not trains and any(not mask.all() and (stays_as_begun(slot.role) or not mask.any())
                          for slot, mask in done.carried.items()):  # what stays fresh has to be drawn
        done = port(module, replace(context, fresh=_drawn(load(receiving), spec, seed)))
    names = outer_names(adapter, load_skeleton(origin).model, attached.host.model)
    return PortedAdapter(adapter, origin, receiving, attached, attached.to_parameters(done.module), done,
                         *names, _carried_head(head, context, done.report))


class Begun(NamedTuple):
    """The port of a folder before any work: the adapter without its head, its module and that head, the
    method on a skeleton of the receiving host, and what the strategy may use."""

    adapter: AdapterFolder
    module: ModuleState
    head: dict[str, Tensor]
    attached: AttachedMethod
    context: PortContext


def begin(
    adapter: AdapterFolder, origin: HostSpec, receiving: HostSpec, how: PortSpec, seed: int = 0,
    load: Callable[[HostSpec], Host] = load_host, texts: Calibration | None = None,
) -> Begun:
    """See `port_folder`; no weights are read, unless the layer map asks for them."""
    adapter, module, head = module_in(adapter, origin.shape)
    context = PortContext(origin, receiving, ModuleState({}, {}), how, load,
                          None if texts is None else lambda: texts, seed,
                          needs_of(find_strategy(how.strategy), how.layer_map))
    settings = _settings(adapter, module, origin.shape, receiving.shape, context.layers_of)
    with torch.device("meta"):
        attached = attach(load_skeleton(receiving), replace(adapter.spec, settings=settings))
    fresh = attached.to_state({name: torch.zeros(shape) for name, shape in attached.shapes.items()})
    return Begun(adapter, module, head, attached, replace(context, fresh=fresh))


def module_in(adapter: AdapterFolder,
              shape: HostShape) -> tuple[AdapterFolder, ModuleState, dict[str, Tensor]]:
    """A folder without the head that peft keeps beside the module, the module, and that head.

    Raises:
        UserError: as `files.module_of`.
    """
    head: dict[str, Tensor] = {}
    if isinstance(adapter, PeftFolder):
        adapter, head = adapter.without_head()
    return adapter, module_of(adapter, shape), head


def _carried_head(head: dict[str, Tensor], context: PortContext, report: PortReport) -> dict[str, Tensor]:
    """A head for the receiving host: as it is, or none; the report says which.

    Raises:
        UserError: it reads other coordinates than the receiving host has, and may not be left out.
    """
    if not head:
        return {}
    one, other = context.origin.shape, context.receiving.shape
    stays = set(report.tensors.values()) <= STAYS
    named = ", ".join(sorted(key.removeprefix(IN_MODEL) for key in head))
    if (one.family, one.hidden) == (other.family, other.hidden) and stays:
        report.notes.append(f"the head that was trained beside the module is carried as it is: {named}")
        return head
    if not context.spec.partial:
        raise UserError(f"port {context.pair}: the head that was trained beside the module ({named}) reads "
                        "the coordinates of its own base; leave it out (--partial) and train one on the "
                        "receiving host, or, between hosts of one family and width, use a strategy that "
                        "keeps coordinates, such as pad")
    report.notes.append(f"the head that was trained beside the module is left out: {named}")
    return {}


def _given(context: PortContext) -> frozenset[Need]:
    """What a port uses, with the strategies that it goes on from, all of it there.

    Raises:
        UserError: texts or labelled examples are not.
    """
    how, needs = context.spec, frozenset[Need]()
    for strategy in strategies_of(how.strategy, how.options):
        needs |= strategy.needs - strategy.optional
    if "text" in needs and context.texts is None:
        raise no_texts(how, context.pair)
    if "labels" in needs:
        replace(context, needs=needs).labelled()
    return needs


def _drawn(host: Host, method: MethodSpec, seed: int) -> ModuleState:
    """A fresh module of a host, which is left as it is."""
    attached = attach(to_change(host, method), method)
    found = attached.init_parameters(seed)
    attached.detach()
    return found


def _settings(adapter: AdapterFolder, module: ModuleState, origin: HostShape, receiving: HostShape,
              layers_of: LayersOf) -> dict[str, Any]:
    """The method's settings on the receiving host, by the adapter's library."""
    if isinstance(adapter, AdaptersFolder):
        return adapters_settings(adapter, origin, receiving, layers_of)
    assert isinstance(adapter, PeftFolder)
    return peft_settings(adapter, module, origin, receiving, layers_of)


def outer_names(adapter: AdapterFolder, origin: Any, receiving: Any) -> tuple[str, str]:
    """What stands before the receiving model's names in a folder for a class like the one that the adapter
    was made on, and what is left out of them: "bert." is put before those of a BertForSequenceClassification,
    "model." is left out of a bare LlamaModel's.

    Args:
        origin, receiving: models of the hosts, as they are loaded here.
    """
    keys = [key.removeprefix(IN_MODEL) for key in adapter.tensors if key.startswith(IN_MODEL)]
    if adapter.library != "peft" or not keys:
        return "", ""
    outer, here = (str(model.base_model_prefix) for model in (origin, receiving))
    own, there = _body(origin), _body(receiving)
    if not own and not there and all(key.startswith(f"{outer}.") for key in keys):
        return ("" if receiving.config.is_encoder_decoder else f"{here}."), ""
    bare = own and not any(key.startswith(own) for key in keys)
    return "", there if bare else ""


def _body(model: Any) -> str:
    """Beginning of the names of what is below a model's head; none where the model has no head, or holds its
    stacks itself, as T5."""
    inner = model.base_model if model.base_model is not model else getattr(model, "model", model)
    return next((f"{name}." for name, part in model.named_modules() if part is inner and name), "")
