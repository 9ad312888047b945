"""Pairs to compare an extraction with, on the same slots: without the teacher, its layers' order, or its
sensitivity."""

import torch
from torch import Tensor

from portability.core.architectures import Slot
from portability.core.errors import UserError
from portability.core.seeds import stream
from portability.core.specs import HostSpec
from portability.inits.extraction.extractor import in_slot
from portability.inits.extraction.factors import low_rank
from portability.inits.extraction.options import ExtractionOptions
from portability.inits.extraction.weights import Weights
from portability.methods.module import ModuleState, equal


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


def shuffle_layers(module: ModuleState, teacher: HostSpec, student: HostSpec, seed: int) -> ModuleState:
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
        raise UserError(f"control 'layers_shuffled' is the same as the extraction from '{teacher.name}' to "
                        f"'{student.name}': these hosts leave it nothing to change")
    return shuffled


def _product_norm(pair_a: Tensor, pair_b: Tensor) -> Tensor:
    """Frobenius norm of B A, without making it: its square is tr(B^T B A A^T)."""
    flat_a, flat_b = pair_a.flatten(1).double(), pair_b.flatten(0, -2).double()
    return ((flat_b.T @ flat_b) * (flat_a @ flat_a.T)).sum().clamp_min(0).sqrt().float()
