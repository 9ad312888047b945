"""Pairs to compare an extraction with, on the same slots: without the teacher, its layers' order, or its sensitivity."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from portability.core.architectures import Slot
from portability.core.errors import UserError, choose
from portability.core.seeds import stream, stream_seed
from portability.core.specs import HostSpec
from portability.inits.extraction.extractor import extract, pair_parts
from portability.inits.extraction.factors import low_rank
from portability.inits.extraction.options import ExtractionOptions
from portability.inits.extraction.weights import Weights
from portability.methods.module import ModuleState, equal


@dataclass(frozen=True)
class Extracted:
    """An extraction, and what it was made of."""

    module: ModuleState
    teacher: HostSpec
    student: HostSpec
    options: ExtractionOptions


def control(name: str, extracted: Extracted, seed: int) -> ModuleState:
    """The pairs of a control, of the slots, axes and sizes of the extracted ones.

    Args:
        name: one of CONTROLS.
        seed: of what the control draws.

    Raises:
        UserError: unknown name, or a control that would not differ from the extraction.
    """
    module = CONTROLS[choose(name, CONTROLS, "control of an extraction")](extracted, seed)
    if equal(module, extracted.module):
        raise UserError(f"control '{name}' is the same as the extraction from '{extracted.teacher.name}' to "
                        f"'{extracted.student.name}': these hosts leave it nothing to change")
    return module


def pissa(extracted: Extracted, seed: int) -> ModuleState:
    """The student's own largest singular triples, split alike (PiSSA: Meng et al. 2024, arXiv 2404.02948): is it the
    teacher, or only a large, well-conditioned start? Nothing is drawn."""
    weights, options = Weights(extracted.student), extracted.options
    tensors: dict[Slot, Tensor] = {}
    for place in weights.places(options):
        pair = low_rank(weights.matrix(place), options.rank, options.split)[:2]
        tensors |= {Slot(*place, role): part for role, part, _ in pair_parts(place, *pair, extracted.student.shape)}
    return extracted.module.map(tensors)


def noise(extracted: Extracted, seed: int) -> ModuleState:
    """Gaussian pairs: A with the Frobenius norm of the extracted A, B so scaled that the product has that of the extracted
    product, slot by slot (our choice)."""
    tensors = dict(extracted.module.tensors)
    for slot in [slot for slot in tensors if slot.role == "A"]:
        other = slot._replace(role="B")
        generator = stream(seed, "extraction", "noise", slot.key)
        drawn = [torch.randn(tensors[one].shape, generator=generator) for one in (slot, other)]
        drawn[0] *= tensors[slot].norm() / drawn[0].norm()
        drawn[1] *= _product_norm(tensors[slot], tensors[other]) / _product_norm(*drawn)
        tensors[slot], tensors[other] = drawn
    return extracted.module.map(tensors)


def layers_shuffled(extracted: Extracted, seed: int) -> ModuleState:
    """The extracted pairs with each stack's layers in another order; a stack of one layer stays."""
    tensors = dict(extracted.module.tensors)
    for stack, depth in extracted.student.shape.layers.items():
        generator = stream(seed, "extraction", "shuffle", stack)
        order = list(range(depth))
        while depth > 1 and order == list(range(depth)):
            order = torch.randperm(depth, generator=generator).tolist()
        tensors |= {slot: extracted.module.tensors[slot._replace(layer=order[slot.layer])].clone()
                    for slot in tensors if slot.stack == stack}
    return extracted.module.map(tensors)


def random(extracted: Extracted, seed: int) -> ModuleState:
    """Random layers and random blocks of the same teacher: does sensitivity matter? Drawn again where small hosts' few
    choices gave the extraction itself."""
    options = replace(extracted.options, layers="random", structure="random_block", scores="ones")
    if extracted.teacher.shape == extracted.student.shape:
        return extracted.module
    for draw in range(20):
        drawn = stream_seed(seed, "extraction", "random", draw)
        module = extract(extracted.teacher, extracted.student, (), options, drawn)[0]
        if not equal(module, extracted.module):
            break
    return module


CONTROLS: dict[str, Callable[[Extracted, int], ModuleState]] = {
    "pissa": pissa, "noise": noise, "layers_shuffled": layers_shuffled, "random": random,
}


def _product_norm(pair_a: Tensor, pair_b: Tensor) -> Tensor:
    """Frobenius norm of B A, without making it: its square is tr(B^T B A A^T)."""
    flat_a, flat_b = pair_a.flatten(1).double(), pair_b.flatten(0, -2).double()
    return ((flat_b.T @ flat_b) * (flat_a @ flat_a.T)).sum().clamp_min(0).sqrt().float()
