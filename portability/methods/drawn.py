"""Noise as large as what it stands for, and matrices with orthonormal rows."""

from collections.abc import Sequence

import torch
from torch import Size, Tensor


def orthonormal(matrix: Tensor) -> Tensor:
    """A matrix (r, d), r at most d, with its rows made orthonormal one after the other: Q^T of the QR
    decomposition of its transpose whose R has a positive diagonal."""
    basis, factor = torch.linalg.qr(matrix.mT)
    return (basis * factor.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)).mT


def drawn_like(tensor: Tensor, shape: Size, generator: torch.Generator) -> Tensor:
    """Gaussian numbers of a shape, with the Frobenius norm of a tensor."""
    noise = torch.randn(shape, generator=generator)
    return noise * (tensor.norm() / noise.norm())


def drawn_pair(into: Tensor, outs: Sequence[Tensor], shapes: Sequence[Size],
               generator: torch.Generator) -> list[Tensor]:
    """A Gaussian low-rank pair: A with the Frobenius norm of `into`, and the B of each site beside it, so
    scaled that the product has the norm of the product that it stands for (our choice).

    Shapes: A (r, *in), B (*out, r); `shapes`: of the A and of each B that are wanted.
    """
    noise = [torch.randn(shape, generator=generator) for shape in shapes]
    noise[0] *= into.norm() / noise[0].norm()
    if not into.any():  # noise of no size, whatever stands beside it
        return [noise[0], *(torch.zeros(shape) for shape in shapes[1:])]
    ratio = _product_norm(into, outs) / _product_norm(noise[0], noise[1:])
    return [noise[0], *(one * ratio for one in noise[1:])]


def _product_norm(into: Tensor, outs: Sequence[Tensor]) -> Tensor:
    """Frobenius norm of B A, without making it: its square is tr(B^T B A A^T)."""
    flat_a, flat_b = into.flatten(1).double(), torch.cat([one.flatten(0, -2) for one in outs]).double()
    return ((flat_b.T @ flat_b) * (flat_a @ flat_a.T)).sum().clamp_min(0).sqrt().float()
