"""Low-rank pairs of a matrix: its truncated singular value decomposition (Zhong et al. 2024, section 3.2)."""

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

from portability.core.errors import UserError
from portability.inits.extraction.threads import share, total

DENSE = 512  # smaller side up to which the whole decomposition is made (measured: 0.2 s at 512, 2 s at 1,024)
LINES = 256  # of a Gram matrix that are made, or multiplied, at a time (measured: 128 to 512 are alike)
TOLERANCE = 1e-8  # of eigenvalues: singular vectors differ by 7e-10 from those at machine precision


def low_rank(matrix: Tensor, rank: int, split: str) -> tuple[Tensor, Tensor, float]:
    """The best pair of this rank: A, B with B A near `matrix`, and the share of its squared norm that they
    hold.

    Args:
        matrix: (m, n), fp32.
        split: "reference": A = V_r^T, B = U_r S_r; "balanced": A = S_r^(1/2) V_r^T, B = U_r S_r^(1/2).

    Returns:
        A (r, n), B (m, r), fp32, and a share in [0, 1], which is 1 for a matrix of zeros. Of each singular
        pair's two signs, the one where the largest entry of its row of A is positive, so that machines can be
        compared.

    Raises:
        UserError: the rank is larger than the smaller side.
    """
    if rank > min(matrix.shape):
        raise UserError(f"rank {rank} is larger than the smaller side of a {matrix.shape[0]} x "
                        f"{matrix.shape[1]} matrix; lower the extraction's rank")
    exact = matrix.double()
    norm = total(exact.square())
    if min(matrix.shape) <= max(DENSE, 4 * rank):
        left, values, right = torch.linalg.svd(exact, full_matrices=False)
        left, values, right = left[:, :rank], values[:rank], right[:rank]
    else:
        left, values, right = _largest_triples(exact, rank)
    signs = right.gather(1, right.abs().argmax(1, keepdim=True)).sign()
    right, left = right * signs, left * signs.T
    share = float(values.square().sum()) / norm if norm else 1.0
    root = values.sqrt()
    if split == "balanced":
        return (root[:, None] * right).float(), (left * root).float(), share
    return right.float(), (left * values).float(), share


def _largest_triples(exact: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The largest singular triples, from the eigenvectors of the smaller Gram matrix by Lanczos' method."""
    wide = exact.shape[0] < exact.shape[1]
    gram = _gram(exact if wide else exact.T)
    start = np.random.default_rng(0).standard_normal(len(gram))
    operator = LinearOperator(gram.shape, matvec=lambda x: _times(gram, x), dtype=np.float64)
    squares, vectors = eigsh(operator, k=rank, v0=start, ncv=max(4 * rank, 20), tol=TOLERANCE)
    order = np.argsort(-squares)
    near = torch.from_numpy(vectors[:, order].copy()).to(exact.device)  # (smaller side, r)
    far = exact.T @ near if wide else exact @ near
    values = far.norm(dim=0)
    far = far / values.clamp_min(torch.finfo(torch.float64).tiny)
    return (near, values, far.T) if wide else (far, values, near.T)


def _gram(wide: Tensor) -> Tensor:
    """(m, m) products of the rows of an (m, n) matrix, of which only the blocks below the diagonal and on it
    are made."""
    gram = wide.new_empty(len(wide), len(wide))
    share(lambda part: torch.mm(wide[part], wide[: part.stop].T, out=gram[part, : part.stop]), _lines(gram))
    return gram


def _times(gram: Tensor, vector: np.ndarray) -> np.ndarray:
    """A Gram matrix times a vector; each block is read once, for its own place and for its mirrored one."""
    there, blocks = torch.from_numpy(vector).to(gram.device), _lines(gram)
    sums = gram.new_zeros(len(blocks), len(gram))

    def work(place: int) -> None:
        own, lines = blocks[place], gram[blocks[place]]
        torch.mv(lines[:, : own.start].T, there[own], out=sums[place, : own.start])
        torch.mv(lines[:, : own.stop], there[: own.stop], out=sums[place, own])

    share(work, range(len(blocks)))
    return sums.sum(0).cpu().numpy()


def _lines(gram: Tensor) -> list[slice]:
    """Lines that are worked on together, the longest first."""
    return [slice(first, min(first + LINES, len(gram))) for first in range(0, len(gram), LINES)][::-1]
