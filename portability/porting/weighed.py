"""What two hosts' weights alone say of their spaces: embeddings of the tokens that both have, and matrices
out of which RMSNorms' gains are folded."""

from typing import NamedTuple

from torch import Tensor

from portability.core.errors import UserError
from portability.hosts.host import Host
from portability.porting.basis import shared_tokens
from portability.porting.spaces import SAME_INPUT, Space, fold, place_of, weight_of


class Folded(NamedTuple):
    """A matrix (out, in) as the host has it, without a copy where the host is in ordinary memory, and what
    `fold` gives of what it reads and writes."""

    weight: Tensor
    into: Tensor | None
    out: Tensor | None

    def matrix(self) -> Tensor:
        """The matrix (out, in), float64, between the folded coordinates."""
        weight = self.weight.double()
        if self.into is not None:
            weight = weight / self.into
        return weight if self.out is None else weight * self.out[:, None]


def folded(host: Host, stack: str, layer: int, site: str) -> Folded:
    """A host's matrix at a site.

    Raises:
        UserError: as `weight_of`.
    """
    return Folded(weight_of(host, Space(stack, layer, site, "out")),
                  fold(host, Space(stack, layer, SAME_INPUT.get(site, site), "in")),
                  fold(host, Space(stack, layer, site, "out")))


def has_site(host: Host, stack: str, layer: int, site: str) -> bool:
    """Whether a host has this matrix."""
    try:
        place_of(host, Space(stack, layer, site, "out"))
    except UserError:
        return False
    return True


def shared_embeddings(origin: Host, receiving: Host) -> tuple[Tensor, Tensor]:
    """Rows (N, d_o) and (N, d_r), float64, of the tokens that are the same string in both vocabularies.

    Raises:
        UserError: a host whose embeddings are not as wide as its residual stream, or not finite.
    """
    tables = []
    for host in (origin, receiving):
        table = host.model.get_input_embeddings().weight.detach().cpu()
        if (width := table.shape[1]) != host.spec.shape.hidden:
            raise UserError(f"the embeddings of host '{host.spec.name}' have {width} coordinates, its "
                            f"residual stream has {host.spec.shape.hidden}: they say nothing of each other")
        if not table.isfinite().all():
            raise UserError(f"host '{host.spec.name}' has embeddings that are not finite; it cannot be "
                            "compared with another")
        tables.append(table)
    words = [host.tokenizer.get_vocab() for host in (origin, receiving)]
    rows = shared_tokens(*words, *map(len, tables))
    one, other = (table[rows[:, side]].double() for side, table in enumerate(tables))
    return one, other
