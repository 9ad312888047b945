"""ReFT of the `adapters` library (Wu et al. 2024, arXiv 2404.03592, section 3): a text's first and last
states are edited behind each layer,

    h + R^T (act(W h + b) - R h),    R and W (rank, hidden), b (rank,)

The units are the library's. Which states they edit is read here off each stack's own mask before it runs:
the library reads it off a mask of (texts, tokens), which hosts are not given, and keeps the places of a first
stack for a second one, where they may lie outside of the text.

LoReft's R has orthonormal rows. The library makes them so out of any matrix that it is given, by a QR
decomposition; then it trains turns about the result, and keeps a basis of the whole space (hidden, hidden) in
its folders. Here the matrix itself is trained and is the module's, and the same decomposition makes R of it
in every pass, so that a module is R and nothing that is drawn (our choice, D-136). A folder gets R as the
beginning of a basis, with no turn.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal
from torch.utils.hooks import RemovableHandle

from portability.core.architectures import Slot, within_layer
from portability.core.errors import UserError
from portability.core.specs import HostShape
from portability.hosts.attention import kept_as, stacks
from portability.hosts.host import Host
from portability.methods.base import SlotLayout
from portability.methods.drawn import orthonormal
from portability.methods.module import ROTATION

TURNED = "projection.parametrizations.weight.original"  # ending of R's name in a host
TURN, BASE = "weight.original", "weight.0.base"  # endings of the two tensors that stand for R in a folder
PARTS = {  # ending of a name -> role, axes
    "learned_source.weight": ("source_weight", ("rank", "hidden")),
    "learned_source.bias": ("source_bias", ("rank",)),
    "projection.weight": ("projection", ("rank", "hidden")),  # without orthonormal rows (NoReft)
    TURNED: (ROTATION, ("rank", "hidden")),
}
SITES = ("first_states", "last_states")  # of units; one for both is at "states"
ROUNDED = 1e-2  # largest deviation of R R^T from the identity of an R that was stored in 16 bits


class Orthonormal(nn.Module):
    """A matrix (rank, hidden) with its rows made orthonormal, as a parametrisation."""

    def forward(self, matrix: Tensor) -> Tensor:
        """Of a matrix's QR decomposition the part with orthonormal rows."""
        return orthonormal(matrix)


@dataclass
class Ends:
    """Which states of the texts that a stack reads are edited, (B or 1, T, 1) bool."""

    first: Tensor | None = None
    last: Tensor | None = None


def mount(host: Host, name: str) -> list[RemovableHandle]:
    """Make the units of an adapter on a host edit each stack's own first and last states, by orthonormal rows
    where they are to be; gives the hooks on its stacks."""
    ends = {stack: Ends() for stack in host.spec.shape.layers}
    hooks: dict[str, RemovableHandle] = {}
    modules = stacks(host.model, host.family)
    for path, reft in list(host.model.named_modules()):
        if not path.endswith(f".refts.{name}"):
            continue
        inside = within_layer(host.family, f"{path}.x")
        assert inside is not None
        stack = inside[0]
        reft.forward = partial(_edited, reft, ends[stack])
        for unit in reft.units:
            if unit.orthogonal:
                rows = unit.projection.weight.detach()
                unit.projection.parametrizations.weight[0] = Orthonormal()
                unit.projection.parametrizations.weight.original.data = rows
        if stack not in hooks:
            note = partial(_note, ends[stack], reft.prefix_positions, reft.suffix_positions)
            hooks[stack] = modules[stack].register_forward_pre_hook(note, with_kwargs=True)
    return list(hooks.values())


def _edited(reft: Any, ends: Ends, states: Tensor) -> Tensor:
    """States (B, T, d) behind a layer; the last ones' unit has the last word, as in the library."""
    units, edited = list(reft.units), states
    for unit, chosen in ((units[0], ends.first), (units[-1], ends.last)):
        if chosen is not None:
            edited = torch.where(chosen, unit(states).to(states.dtype), edited)
    return edited


def _note(ends: Ends, first: int, last: int, module: Any, args: tuple[Any, ...],
          given: Mapping[str, Any]) -> None:
    """Find out which states a stack is to edit of what it is given, padded on the right."""
    ids, cache = given["input_ids"], given.get(kept_as(module))
    past = 0 if cache is None else cache.get_seq_length()
    places = given.get("position_ids")
    if places is None:
        places = torch.arange(past, past + ids.shape[1], device=ids.device)[None]
    if last and past:
        raise UserError("a text that is still being written has no last states: ReFT with suffix_positions "
                        "other than 0 reads texts and writes none (conf/method)")
    ends.first = (places < first)[..., None] if first else None
    ends.last = None
    if last:
        mask = given.get("attention_mask")
        count = _real(torch.ones_like(ids) if mask is None else mask).sum(-1, keepdim=True)
        ends.last = ((places < count) & (places >= count - last))[..., None]


def _real(mask: Tensor) -> Tensor:
    """Real tokens (B, T) by a mask of 1 and 0, (B, T) or (B, 1, T), or one to add to scores, (B, 1, 1 or T,
    T), whose last row sees them all."""
    return mask[:, 0, -1] >= 0 if mask.ndim == 4 else mask.flatten(1) > 0


# ---- names and slots


def check_reft(config: Any, kind: str, host: HostShape) -> None:
    """Refuse what no module can be made of.

    Raises:
        UserError: says why.
    """
    if not config.subtract_projection:
        raise UserError(f"{kind} cannot be ported: adapters writes into no folder that the projection is not "
                        "subtracted, and loads it as a NoReft; use LoReftConfig or NoReftConfig")
    if config.prefix_positions < 0 or config.suffix_positions < 0 or not (
            config.prefix_positions or config.suffix_positions):
        raise UserError(f"{kind} edits no state: prefix_positions and suffix_positions are numbers from 0 "
                        "on, and one of them is at least 1")
    if not 0 < config.r < host.hidden:
        raise UserError(f"{kind}: r must be from 1 to less than the width {host.hidden}, got {config.r}")


def reft_slots(name: str, config: Any, host: HostShape, place: tuple[str, int, str]) -> list[SlotLayout]:
    """The slot of a unit's parameter.

    Args:
        config: the library's; None where the method has no ReFT.

    Raises:
        UserError: there is no such part.
    """
    stack, layer, _ = place
    found = re.search(r"\.units\.([01])\.(.+)$", name)
    if config is None or found is None or found[2] not in PARTS:
        raise UserError(f"no meaning is known for parameter {name} (portability/methods/adapters_reft.py)")
    role, axes = PARTS[found[2]]
    site = "states" if config.tied_weights else SITES[int(found[1])]
    return [SlotLayout(Slot(stack, layer, site, role), axes,
                       tuple(config.r if axis == "rank" else host.hidden for axis in axes))]


# ---- in a folder


def from_file(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Key -> tensor of a folder, with R in the place of its turn and basis.

    Raises:
        UserError: one of the two is missing or of another shape, or the rows are not orthonormal.
    """
    found = {key: tensor for key, tensor in tensors.items() if not key.endswith(BASE)}
    for key in [key for key in tensors if key.endswith((TURN, BASE))]:
        turn, base = (tensors.get(key.removesuffix(TURN).removesuffix(BASE) + end) for end in (TURN, BASE))
        if turn is None or base is None or turn.ndim != 2 or base.shape != (turn.shape[1],) * 2 or (
                turn.shape[0] >= turn.shape[1]):
            raise UserError(f"{key} of a ReFT and the tensor beside it are no turn (rank, hidden) and basis "
                            "(hidden, hidden) of one projection")
        if key.endswith(TURN):
            found[key] = rows = (base @ _turned(turn).mT).mT
            if not float((rows @ rows.mT - torch.eye(len(rows))).abs().max()) <= ROUNDED:
                raise UserError(f"{key}: the rows of the projection are not orthonormal, which LoReft's are; "
                                "weight decay in training puts them out")
    return found


def _turned(turn: Tensor) -> Tensor:
    """The first rows (rank, hidden) of a space after a turn, by torch's parametrisation."""
    linear: Any = nn.Linear(turn.shape[1], turn.shape[0], bias=False)
    orthogonal(linear, orthogonal_map="householder", use_trivialization=False)
    with torch.no_grad():
        linear.parametrizations.weight.original.copy_(turn)
        rows: Tensor = linear.weight.detach()
    return rows


def to_file(key: str, value: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of a folder by key for a parameter: R becomes a basis that begins with it, and no turn. The
    two keep fp32, as the library does, because torch turns nothing in 16 bits."""
    if not key.endswith(TURNED):
        return {key: value.to(dtype).contiguous().clone()}
    exact = float((value @ value.mT - torch.eye(len(value))).abs().max()) < 1e-5
    rows = value if exact else orthonormal(value)
    linear: Any = nn.Linear(value.shape[1], value.shape[0], bias=False)
    linear.weight.data = rows.clone()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        orthogonal(linear)  # completes the basis by noise
    parts = linear.parametrizations.weight
    base = torch.cat([rows.mT, parts[0].base[:, len(rows):]], 1)
    start = key.removesuffix(TURN)
    return {f"{start}{TURN}": parts.original.detach().clone(), f"{start}{BASE}": base.contiguous()}
