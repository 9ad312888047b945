"""Strategy "svd_subspace": what a module does beside a matrix is cut down to that matrix's largest singular
directions."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from portability.core.architectures import LORA_AXES
from portability.core.errors import UserError, validate_choice
from portability.hosts.host import Host
from portability.methods.module import ModuleState
from portability.porting.activations import Pair
from portability.porting.base import Port, PortContext
from portability.porting.maps import MapStrategy
from portability.porting.spaces import STREAM, Space, fold, weight_of

OPTIONS = ("energy",)
ENERGY = 0.8


class SingularSubspace(MapStrategy):
    """With W = U S V^T the matrix that a tensor stands beside, and its first k singular vectors: T_in = V_r
    V_r^T and T_out = U_r U_r^T where the sizes are equal, else T_in = V_o V_r^T and T_out = U_o U_r^T,
    vectors paired in order, as many as both have. Gains of RMSNorms are left where they are, as published.

    Each matrix has its own T, so that it is no map of the coordinates that matrices share. It finds no basis:
    between hosts that compute the same in two bases the port is about as far off as none (relative error
    about 1), and on the identical host it is a shrunken copy. It is here because it is published.

    Options:
        energy: k is the least number of singular values that have this share of the sum of squares, in (0, 1]
            (.8, our choice).

    Source: LoRA-X (arXiv 2501.16559) and ProLoRA (arXiv 2506.04244): the projectors; Cross-LoRA (arXiv
        2508.05232): unequal sizes. Which sign a singular vector has is no one's to say; here the largest
        entry of each v is positive (our choice, D-133).
    """

    needs = frozenset({"origin_weights", "receiving_weights"})
    apart = True

    def fit(self, module: ModuleState, context: PortContext) -> Port:
        """See MapStrategy.fit.

        Raises:
            UserError: a tensor that stands beside no matrix; names it.
        """
        for slot in module.tensors:
            if slot.role == "prompt" or not all(part.removeprefix("cross_") in LORA_AXES
                                                for part in slot.site.split("+")):
                raise UserError(f"port strategy 'svd_subspace' {context.pair}: {slot.key} stands beside no "
                                "matrix of the host, whose singular vectors it could be written in; use "
                                "embed, or procrustes with texts")
        return super().fit(module, context)

    def maps(self, context: PortContext, pairs: Sequence[Pair]) -> Mapping[Pair, Tensor]:
        """See MapStrategy.maps."""
        options = context.spec.options
        for name in options:
            validate_choice(str(name), OPTIONS, f"option of port '{context.spec.name}' (svd_subspace)")
        energy = options.get("energy", ENERGY)
        if not (type(energy) in (int, float) and 0 < energy <= 1):
            raise UserError(f"port.{context.spec.name}.options.energy must be a share in (0, 1], got "
                            f"{energy!r}")
        hosts = context.origin_host(), context.receiving_host()
        found = {}
        for pair in pairs:
            if any(space.site == STREAM for space in pair):
                raise UserError(f"port strategy 'svd_subspace' {context.pair}: no matrix has the residual "
                                "stream's singular vectors; use head=fresh")
            own = singular(hosts[1], pair[1], energy)
            theirs = own if pair[0].size(context.origin.shape) == len(own) else singular(hosts[0], pair[0],
                                                                                         energy)
            count = min(own.shape[1], theirs.shape[1])
            found[pair] = _unfolded(theirs[:, :count] @ own[:, :count].T, hosts, pair)
        return found


def singular(host: Host, space: Space, energy: float) -> Tensor:
    """The first singular vectors (d, k), float64, of the matrix whose input or output the space is."""
    weight = weight_of(host, space).double()
    if space.site == "embedding":  # takes a token to its vector
        weight = weight.T
    left, sizes, right = torch.linalg.svd(weight, full_matrices=False)
    share = sizes.square().cumsum(0) / sizes.square().sum()
    count = int((share < energy * (1 - 1e-12)).sum()) + 1
    signs = right.gather(1, right.abs().argmax(1, keepdim=True)).sign()
    vectors = right.T if space.side == "in" else left
    return (vectors * signs.T)[:, :count]


def _unfolded(matrix: Tensor, hosts: tuple[Host, Host], pair: Pair) -> Tensor:
    """The map of folded coordinates that is `matrix` in the hosts' own."""
    ahead, behind = (fold(host, space) for host, space in zip(hosts, pair, strict=True))
    inward = pair[0].side == "in"
    if ahead is not None:
        matrix = matrix * (ahead if inward else 1 / ahead)[:, None]
    if behind is not None:
        matrix = matrix * (1 / behind if inward else behind)
    return matrix


SVD_SUBSPACE = SingularSubspace()
