"""How a run's module starts: one function for each kind of init; what planning knows of them is in
core/init_kinds.py."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from portability.core.architectures import Slot
from portability.core.errors import UserError, validate_choice
from portability.core.seeds import stream
from portability.core.specs import HostSpec, InitSpec, MethodSpec
from portability.inits.extraction import ExtractionOptions, ExtractReport
from portability.inits.extraction.extractor import in_slot
from portability.inits.extraction.factors import low_rank
from portability.inits.extraction.weights import Weights
from portability.methods.drawn import drawn_pair
from portability.methods.module import ModuleState, equal
from portability.methods.subtractive_lora import lora_settings
from portability.porting.base import Port
from portability.training.run_output import InitialState

FURTHEST = 11  # powers of two by which a sample is scaled at most (our choice)
OPTIONS = ("seeds", "layers", "structure", "split", "scores")  # of an init that starts from an extraction
SEEDS = 32  # examples, as in the reference (Zhong et al. 2024, n_sample of its sampling script)


def _undeclared(*_: Any) -> NoReturn:
    raise ValueError("an init asked for what its kind does not declare (InitKind.needs)")


@dataclass(frozen=True)
class InitContext:
    """What an init may use. Of the last four, those that its kind declares
    (`core.init_kinds.InitKind.needs`) can be called; they load, or make, what they give when it is asked for.

    Attributes:
        stream: first names of the run's random streams (`RunSpec.stream`).
        fresh: gives a module as the library initialises it, from the run's own seed.
        change: module -> Frobenius norm of the logit change it makes against the bare host, on training
            inputs.
        calibration_examples: how many of these inputs there are.
        port: gives the module that was trained on the origin host, fitted to the receiving host.
        extraction: gives what the extraction's run left: its pairs, and the cuts behind them where the method
            takes these off.
        teacher: cuts pairs out of the origin host's weights; gives the report too.
        external: gives the module of an adapter's folder.
    """

    receiving: HostSpec
    method: MethodSpec
    seed: int
    stream: tuple[object, ...]
    fresh: Callable[[], ModuleState]
    change: Callable[[ModuleState], float] = _undeclared
    calibration_examples: int = 0
    port: Callable[[], Port] = _undeclared
    extraction: Callable[[], tuple[ModuleState, ModuleState | None]] = _undeclared
    teacher: Callable[[], tuple[ModuleState, ExtractReport]] = _undeclared
    external: Callable[[], ModuleState] = _undeclared


Init = Callable[[InitContext, Mapping[str, Any]], InitialState]  # the mapping is `InitSpec.options`


def scratch(context: InitContext, options: Mapping[str, Any]) -> InitialState:
    """The library's own initialisation (of LoRA: Hu et al. 2021, section 4.1)."""
    return InitialState(context.fresh())


def external(context: InitContext, options: Mapping[str, Any]) -> InitialState:
    """A module that was trained elsewhere, on its own base: what stands for an origin's."""
    return InitialState(context.external())


def ported(context: InitContext, options: Mapping[str, Any]) -> InitialState:
    """The origin's trained module, fitted by the port strategy (Sabry & Belz 2024, abstract)."""
    done = context.port()
    return InitialState(done.module, report=done.report)


def shuffled(context: InitContext, options: Mapping[str, Any]) -> InitialState:
    """The ported module with its layers in a random other order, per stack (our control: does the order
    matter?).

    Raises:
        UserError: every layer is like every other, so there is nothing to shuffle.
    """
    done, generator = context.port(), stream(*context.stream, "shuffle")
    return InitialState(shuffle_layers(done.module, context.receiving, lambda stack: generator),
                        report=done.report)


def shuffle_layers(
    module: ModuleState, host: HostSpec, generator: Callable[[str], torch.Generator]
) -> ModuleState:
    """A module with each stack's layers in another order, of those that the stack's generator draws the first
    that changes something: a port may fill two layers with the same tensors.

    Raises:
        UserError: every layer is like every other, so there is nothing to exchange.
    """
    tensors = dict(module.tensors)
    for stack, depth in host.shape.layers.items():
        own, draw = {s: t for s, t in module.tensors.items() if s.stack == stack}, generator(stack)
        for _ in range(100):
            order = torch.randperm(depth, generator=draw).tolist()
            moved = {slot: own[slot._replace(layer=order[slot.layer])].clone() for slot in own}
            if any(not torch.equal(moved[slot], own[slot]) for slot in own):
                tensors |= moved
                break
    if equal(shuffled := module.map(tensors), module):
        raise UserError(f"the start on '{host.name}' has no layers to exchange: all are alike")
    return shuffled


# ---- another module with the numbers of the ported one


def sampled(context: InitContext, options: Mapping[str, Any]) -> InitialState:
    """Numbers from the same distribution as the ported module (Sabry & Belz 2024, abstract; which
    distribution is our choice).

    Per tensor, on the carried entries only and before any padding: ``law: normal`` draws from N(mean, std)
    with std of ddof 0, ``law: permute`` shuffles the entries. With ``match: function_norm`` the whole module
    is then scaled so that it changes the logits as much as the ported one (D-09).

    Raises:
        UserError: unknown law or match.
    """
    done = context.port()
    law = validate_choice(str(options.get("law")), DISTRIBUTIONS, "law of sampling "
                          "(init.sampled.options.law)")
    generator = stream(*context.stream, "sample")
    tensors = {}
    for slot, tensor in done.module.tensors.items():
        mask, drawn = done.carried[slot], tensor.clone()
        if mask.any():
            drawn[mask] = DISTRIBUTIONS[law](tensor[mask], generator)
        tensors[slot] = drawn
    module = done.module.map(tensors)
    if (match := options.get("match")) is None:
        return InitialState(module, report=done.report)
    validate_choice(str(match), ("function_norm",), "match of sampling")
    target = context.change(done.module)
    module = match_change(module, target, context.change)
    fraction = context.change(module) / target if target else 1.0
    return InitialState(module, report=replace(done.report, effect_fraction=fraction,
                                         calibration_examples=context.calibration_examples))


def _normal(entries: Tensor, generator: torch.Generator) -> Tensor:
    """(n,) entries from the normal distribution with the mean and standard deviation of these (n,)."""
    noise = torch.randn(entries.shape, generator=generator, dtype=entries.dtype)
    return entries.mean() + noise * entries.std(correction=0)


DISTRIBUTIONS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "normal": _normal,
    "permute": lambda entries, generator: entries[torch.randperm(entries.numel(), generator=generator)],
}


def match_change(module: ModuleState, target: float, change: Callable[[ModuleState], float]) -> ModuleState:
    """The module times one factor, with which it changes the logits by `target`.

    The factor is found by bisection in log2 between the first two powers of two, going outwards from 1, that
    have the target between them. Where none up to 2^FURTHEST has, it is the power whose change comes nearest
    (D-122).

    Args:
        change: module -> norm of the logit change it makes.
    """
    def scaled(power: float) -> ModuleState:
        return module.map({slot: tensor * 2.0**power for slot, tensor in module.tensors.items()})

    changes = {0.0: change(module)}
    reached = changes[0.0] >= target
    step = -1.0 if reached else 1.0
    for power in step * np.arange(FURTHEST):  # outwards, because far out the change may turn back
        changes[power + step] = change(scaled(power + step))
        if (changes[power + step] >= target) != reached:
            low, high = sorted((power, power + step))
            break
    else:
        return scaled(min(changes, key=lambda power: abs(changes[power] - target)))
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if change(scaled(middle)) < target else (low, middle)
    return scaled((low + high) / 2)


# ---- cut out of a host's own weights, and the controls to compare them with


def extraction_options(method: MethodSpec, init: InitSpec) -> ExtractionOptions:
    """The options of an init for a method: rank and sites are the method's, so that the pairs fit it.

    Raises:
        UserError: an unknown option or value, or a method that cannot take a start off the host.
    """
    if method.library != "portability":
        raise UserError(f"init '{init.name}' starts from pairs that are taken off the host, which method "
                        f"'{method.name}' of library {method.library} cannot do; use one of library "
                        "portability (method=lora_all)")
    for name in init.options:
        validate_choice(str(name), OPTIONS, f"option of init '{init.name}'")
    settings = lora_settings(method.settings, method.name)
    blocks, count = settings.subtract == "block", init.options.get("seeds", SEEDS)
    if type(count) is not int or count < 1:
        raise UserError(f"init '{init.name}': seeds must be a whole number from 1 on, got {count!r}")
    if blocks and not init.traits.subtracts_blocks:
        raise UserError(f"init '{init.name}' has no block to take off the host, only pairs; leave it out "
                        f"(grid.inits), or set method.{method.name}.settings.subtract=product")
    values: dict[str, Any] = {name: str(value) for name, value in init.options.items() if name != "seeds"}
    return ExtractionOptions(rank=settings.r, sites=settings.sites, blocks=blocks, **values)


def extraction(context: InitContext, options: Mapping[str, Any]) -> InitialState:
    """Pairs cut out of the teacher's weights, at the places that seed examples choose (Zhong et al. 2024,
    section 3)."""
    module, report = context.teacher()
    return InitialState(module, report=report, frozen=report.blocks or module)


def extracted(context: InitContext, options: Mapping[str, Any]) -> InitialState:
    """The pairs of an extraction (Zhong et al. 2024, section 3). What is taken off is their own product, as
    in the released code, or the cuts behind them, as in the paper's formula."""
    module, blocks = context.extraction()
    return InitialState(module, frozen=blocks or module)


def extracted_shuffled(context: InitContext, options: Mapping[str, Any]) -> InitialState:
    """The extracted pairs, and the cuts behind them, with each stack's layers in another order (our control:
    does the order matter?)."""
    generator = partial(stream, context.seed, "extraction", "shuffle")  # pairs and blocks in the same order
    module, blocks = (found and shuffle_layers(found, context.receiving, generator)
                      for found in context.extraction())
    assert module is not None
    return InitialState(module, frozen=blocks or module)


def extracted_noise(context: InitContext, options: Mapping[str, Any]) -> InitialState:
    """Gaussian pairs whose products have the extracted products' norms (our control: is it more than
    size?)."""
    module = noise(context.extraction()[0], context.seed)
    return InitialState(module, frozen=module)


def pissa(context: InitContext, options: Mapping[str, Any]) -> InitialState:
    """The receiving host's own largest singular triples (control: PiSSA, Meng et al. 2024, arXiv
    2404.02948)."""
    chosen = extraction_options(context.method, InitSpec("pissa", "pissa", options))
    module = context.fresh().map(singular_pairs(context.receiving, chosen))
    return InitialState(module, frozen=module)


def singular_pairs(host: HostSpec, options: ExtractionOptions) -> dict[Slot, Tensor]:
    """A host's own largest singular triples, split as the extracted ones (PiSSA: Meng et al. 2024, arXiv
    2404.02948): is it the teacher, or only a large, well-conditioned start? Nothing is drawn."""
    weights = Weights(host)
    tensors: dict[Slot, Tensor] = {}
    for place in weights.places(options):
        pair = low_rank(weights.matrix(place), options.rank, options.split)[:2]
        for role, part in zip("AB", pair, strict=True):
            slot, tensor, _ = in_slot(place, role, part, options.rank, host.shape)
            tensors[slot] = tensor
    return tensors


def noise(module: ModuleState, seed: int) -> ModuleState:
    """Gaussian pairs: A with the Frobenius norm of the extracted A, B so scaled that the product has that of
    the extracted product, slot by slot (our choice).

    Shapes: A (r, *in), B (*out, r).
    """
    tensors = dict(module.tensors)
    for slot in [slot for slot in tensors if slot.role == "A"]:
        other = slot._replace(role="B")
        generator = stream(seed, "extraction", "noise", slot.key)
        tensors[slot], tensors[other] = drawn_pair(
            tensors[slot], [tensors[other]], [tensors[one].shape for one in (slot, other)], generator)
    return module.map(tensors)


_ALL = (scratch, external, ported, sampled, shuffled, extraction, extracted, extracted_shuffled,
        extracted_noise, pissa)
INITS: dict[str, Init] = {init.__name__: init for init in _ALL} | {"compute_matched": scratch}
