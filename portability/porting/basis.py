"""Do two hosts write in the same coordinates? What their embeddings of shared tokens tell, before any work.

Only the embeddings are read, from the hosts' files.
"""

from dataclasses import dataclass

import torch
from safetensors import safe_open
from torch import Tensor

from portability.core.architectures import FAMILIES
from portability.core.errors import UserError
from portability.core.specs import HostSpec
from portability.hosts.host import load_tokenizer
from portability.hosts.sources import folder_of, weight_files

TOKENS = 8192  # shared tokens that are looked at, evenly over the vocabulary (our choice)
INHERITED = 0.5  # share of coordinates that answer to themselves, from which on a basis counts as the same
ROTATED = 1024  # widest hosts whose rotation is computed


@dataclass(frozen=True)
class Basis:
    """How two hosts' coordinates lie to each other.

    Attributes:
        shared: share of the receiving vocabulary that the origin has, too, in [0, 1].
        tokens: how many of these were looked at.
        identity: of hosts of one width, the share of the receiving coordinates whose most correlated
            coordinate of the origin is the one of the same number, in [0, 1]; else None.
        rotation: of hosts of one width d up to `ROTATED`, |polar(E_o^T E_r) - I| / sqrt(2 d), in what the
            tokens span: 0 where the bases are the same, about 1 where they are unrelated; else None.
    """

    shared: float
    tokens: int
    identity: float | None
    rotation: float | None

    @property
    def inherited(self) -> bool:
        """Whether the one host's coordinates mean what the other's do."""
        return self.identity is not None and self.identity >= INHERITED

    @property
    def words(self) -> str:
        """In one sentence."""
        said = f"{self.shared:.1%} of the receiving vocabulary is the origin's, too"
        if self.tokens < 2:
            return f"{said}; too few tokens to compare coordinates on"
        if self.identity is None:
            return f"{said}; the widths differ, so that coordinates cannot be the same"
        turned = "" if self.rotation is None else f", rotation {self.rotation:.2f} of 1"
        kind = "the same coordinates" if self.inherited else "other coordinates"
        return f"{said}; {self.identity:.1%} of the coordinates answer to themselves{turned}: {kind}"


def basis(origin: HostSpec, receiving: HostSpec) -> Basis | None:
    """What the embeddings of shared tokens tell; None where a host's cannot be read as plain numbers, or a
    tokenizer is not there.

    Raises:
        UserError: the embeddings of a shared token are not finite.

    Source: our choice (D-133).
    """
    try:
        tables = [embedding(spec) for spec in (origin, receiving)]
        words = [load_tokenizer(spec).get_vocab() for spec in (origin, receiving)]
    except UserError:
        return None
    rows = shared_tokens(*words, *(len(table) for table in tables))
    shared = len(rows) / max(1, len(words[1]))
    picks = rows[torch.linspace(0, len(rows) - 1, min(TOKENS, len(rows))).long()] if len(rows) else rows
    one, other = (_looked_at(spec, table, picks[:, side])
                  for side, (spec, table) in enumerate(zip((origin, receiving), tables, strict=True)))
    if one.shape[1] != other.shape[1] or len(picks) < 2:
        return Basis(shared, len(picks), None, None)
    width = one.shape[1]
    rotation = None
    if width <= ROTATED:  # fewer tokens than coordinates tell it of what they span
        left, sizes, right = torch.linalg.svd(one.double().T @ other.double(), full_matrices=False)
        there = sizes > 1e-9 * sizes[0]
        rotation = float((left[:, there] - right[there].T).norm()) / (2 * max(1, int(there.sum()))) ** 0.5
    found = (_standard(one).T @ _standard(other)).abs().argmax(0)
    return Basis(shared, len(picks), float((found == torch.arange(width)).float().mean()), rotation)


def _looked_at(spec: HostSpec, table: Tensor, rows: Tensor) -> Tensor:
    found = table[rows].float()
    if not found.isfinite().all():
        row = int(rows[~found.isfinite().all(1)][0])
        raise UserError(f"host '{spec.name}' has embeddings that are not finite (the first of token {row}): "
                        "its weights are damaged; copy or download it again, or name another host")
    return found


def _standard(table: Tensor) -> Tensor:
    centred = table - table.mean(0)
    return centred / centred.norm(dim=0).clamp_min(1e-12)


def shared_tokens(origin: dict[str, int], receiving: dict[str, int], rows: int, others: int) -> Tensor:
    """Numbers (N, 2) of the tokens that both vocabularies have, in the order of the receiving one, of those
    that stand in embeddings of so many rows."""
    found = [(origin[token], number) for token, number in receiving.items()
             if token in origin and origin[token] < rows and number < others]
    return torch.tensor(sorted(found, key=lambda pair: pair[1]), dtype=torch.long).reshape(-1, 2)


def embedding(spec: HostSpec) -> Tensor:
    """A host's table of embeddings (V, d), as its files have it.

    Raises:
        UserError: they hold none, or not as plain numbers.
    """
    path = next(path for path, site in FAMILIES[spec.shape.family].shared.items() if site == "embedding")
    folder = folder_of(spec)
    for file in weight_files(spec.name, folder):
        with safe_open(file, "pt") as weights:
            for name in weights.keys():
                if f".{name}".endswith(f".{path}.weight"):
                    table: Tensor = weights.get_tensor(name)
                    if table.is_floating_point() and table.shape[1] == spec.shape.hidden:
                        return table
    raise UserError(f"host '{spec.name}': there is no embedding of plain numbers in {folder}")
