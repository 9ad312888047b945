"""How a run's module starts: one function for each kind of init; what planning knows of them is in
core/init_kinds.py."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from portability.core.architectures import Slot
from portability.core.errors import UserError, choose
from portability.core.seeds import stream
from portability.core.specs import HostSpec, InitSpec, MethodSpec
from portability.inits.base import Init, InitContext, InitialModule
from portability.inits.extraction import ExtractionOptions
from portability.inits.extraction.extractor import in_slot
from portability.inits.extraction.factors import low_rank
from portability.inits.extraction.weights import Weights
from portability.methods.module import ModuleState, equal
from portability.methods.subtractive_lora import lora_settings

FURTHEST = 11  # powers of two by which a sample is scaled at most (our choice)
OPTIONS = ("seeds", "layers", "structure", "split", "scores")  # of an init that starts from an extraction
SEEDS = 32  # examples, as in the reference (Zhong et al. 2024, n_sample of its sampling script)


def scratch(context: InitContext, options: Mapping[str, Any]) -> InitialModule:
    """The library's own initialisation (of LoRA: Hu et al. 2021, section 4.1)."""
    return InitialModule(context.fresh())


def ported(context: InitContext, options: Mapping[str, Any]) -> InitialModule:
    """The origin's trained module, fitted by the port strategy (Sabry & Belz 2024, abstract)."""
    done = context.port()
    return InitialModule(done.module, done.report)


def shuffled(context: InitContext, options: Mapping[str, Any]) -> InitialModule:
    """The ported module with its layers in a random other order, per stack (our control: does the order
    matter?).

    Raises:
        UserError: every layer is like every other, so there is nothing to shuffle.
    """
    done = context.port()
    generator = stream(*context.stream, "shuffle")
    tensors = dict(done.module.tensors)
    for stack, depth in context.receiving.shape.layers.items():
        tensors |= _reordered({s: t for s, t in tensors.items() if s.stack == stack}, depth, generator)
    module = done.module.map({slot: tensor.clone() for slot, tensor in tensors.items()})
    if equal(module, done.module):
        raise UserError(f"init 'shuffled' has no layers to exchange: all layers of the port to "
                        f"'{context.receiving.name}' are alike")
    return InitialModule(module, done.report)


def _reordered(tensors: Mapping[Slot, Tensor], depth: int, generator: torch.Generator) -> dict[Slot, Tensor]:
    """One stack's tensors with the layers in an order that changes something, or as they are where none does.

    A port may fill two layers with the same tensors, so an exchange of these two would be no change.
    """
    for _ in range(100):
        order = torch.randperm(depth, generator=generator).tolist()
        moved = {slot: tensors[slot._replace(layer=order[slot.layer])] for slot in tensors}
        if any(not torch.equal(moved[slot], tensors[slot]) for slot in tensors):
            return moved
    return dict(tensors)


# ---- another module with the numbers of the ported one


def sampled(context: InitContext, options: Mapping[str, Any]) -> InitialModule:
    """Numbers from the same distribution as the ported module (Sabry & Belz 2024, abstract; which
    distribution is our choice).

    Per tensor, on the carried entries only and before any padding: ``law: normal`` draws from N(mean, std)
    with std of ddof 0, ``law: permute`` shuffles the entries. With ``match: function_norm`` the whole module
    is then scaled so that it changes the logits as much as the ported one (D-09).

    Raises:
        UserError: unknown law or match.
    """
    done = context.port()
    law = choose(str(options.get("law")), DISTRIBUTIONS, "law of sampling (init.sampled.options.law)")
    generator = stream(*context.stream, "sample")
    tensors = {}
    for slot, tensor in done.module.tensors.items():
        mask, drawn = done.carried[slot], tensor.clone()
        if mask.any():
            drawn[mask] = DISTRIBUTIONS[law](tensor[mask], generator)
        tensors[slot] = drawn
    module = done.module.map(tensors)
    if (match := options.get("match")) is None:
        return InitialModule(module, done.report)
    choose(str(match), ("function_norm",), "match of sampling")
    target = context.change(done.module)
    module = match_change(module, target, context.change)
    fraction = context.change(module) / target if target else 1.0
    return InitialModule(module, replace(done.report, effect_fraction=fraction,
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
        choose(str(name), OPTIONS, f"option of init '{init.name}'")
    settings = lora_settings(method.settings, method.name)
    blocks, count = settings.subtract == "block", init.options.get("seeds", SEEDS)
    if type(count) is not int or count < 1:
        raise UserError(f"init '{init.name}': seeds must be a whole number from 1 on, got {count!r}")
    if blocks and not init.traits.subtracts_blocks:
        raise UserError(f"init '{init.name}' has no block to take off the host, only pairs; leave it out "
                        f"(grid.inits), or set method.{method.name}.settings.subtract=product")
    values: dict[str, Any] = {name: str(value) for name, value in init.options.items() if name != "seeds"}
    return ExtractionOptions(rank=settings.r, sites=settings.sites, blocks=blocks, **values)


def extraction(context: InitContext, options: Mapping[str, Any]) -> InitialModule:
    """Pairs cut out of the teacher's weights, at the places that seed examples choose (Zhong et al. 2024,
    section 3)."""
    module, report = context.teacher()
    return InitialModule(module, report, report.blocks or module)


def extracted(context: InitContext, options: Mapping[str, Any]) -> InitialModule:
    """The pairs of an extraction (Zhong et al. 2024, section 3). What is taken off is their own product, as
    in the released code, or the cuts behind them, as in the paper's formula."""
    module, blocks = context.extraction()
    return InitialModule(module, frozen=blocks or module)


def extracted_shuffled(context: InitContext, options: Mapping[str, Any]) -> InitialModule:
    """The extracted pairs, and the cuts behind them, with each stack's layers in another order (our control:
    does the order matter?)."""
    module, blocks = (found and shuffle_layers(found, context.receiving, context.seed)
                      for found in context.extraction())
    assert module is not None
    return InitialModule(module, frozen=blocks or module)


def extracted_noise(context: InitContext, options: Mapping[str, Any]) -> InitialModule:
    """Gaussian pairs whose products have the extracted products' norms (our control: is it more than
    size?)."""
    module = noise(context.extraction()[0], context.seed)
    return InitialModule(module, frozen=module)


def pissa(context: InitContext, options: Mapping[str, Any]) -> InitialModule:
    """The receiving host's own largest singular triples (control: PiSSA, Meng et al. 2024, arXiv
    2404.02948)."""
    chosen = extraction_options(context.method, InitSpec("pissa", "pissa", options))
    module = context.fresh().map(singular_pairs(context.receiving, chosen))
    return InitialModule(module, frozen=module)


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
        drawn = [torch.randn(tensors[one].shape, generator=generator) for one in (slot, other)]
        drawn[0] *= tensors[slot].norm() / drawn[0].norm()
        drawn[1] *= _product_norm(tensors[slot], tensors[other]) / _product_norm(*drawn)
        tensors[slot], tensors[other] = drawn
    return module.map(tensors)


def shuffle_layers(module: ModuleState, student: HostSpec, seed: int) -> ModuleState:
    """A module with each stack's layers in another order; a stack of one layer stays. Of one seed, pairs and
    blocks get the same order.

    Raises:
        UserError: nothing changed.
    """
    tensors = dict(module.tensors)
    for stack, depth in student.shape.layers.items():
        generator = stream(seed, "extraction", "shuffle", stack)
        order = list(range(depth))
        while depth > 1 and order == list(range(depth)):
            order = torch.randperm(depth, generator=generator).tolist()
        tensors |= {slot: module.tensors[slot._replace(layer=order[slot.layer])].clone()
                    for slot in tensors if slot.stack == stack}
    shuffled = module.map(tensors)
    if equal(shuffled, module):
        raise UserError(f"shuffled layers are the same as the extraction: '{student.name}' leaves nothing to "
                        "exchange")
    return shuffled


def _product_norm(pair_a: Tensor, pair_b: Tensor) -> Tensor:
    """Frobenius norm of B A, without making it: its square is tr(B^T B A A^T)."""
    flat_a, flat_b = pair_a.flatten(1).double(), pair_b.flatten(0, -2).double()
    return ((flat_b.T @ flat_b) * (flat_a @ flat_a.T)).sum().clamp_min(0).sqrt().float()


INITS: dict[str, Init] = {
    "scratch": scratch,
    "ported": ported,
    "sampled": sampled,
    "shuffled": shuffled,
    "extracted": extracted,
    "extracted_shuffled": extracted_shuffled,
    "extracted_noise": extracted_noise,
    "pissa": pissa,
    "compute_matched": scratch,
    "extraction": extraction,
}
