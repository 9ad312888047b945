"""One host's matrix of several sites, such as query+key+value, against another host's separate ones."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from portability.core.architectures import Slot
from portability.core.errors import UserError
from portability.core.specs import HostShape
from portability.methods.module import Axes, ModuleState, Place
from portability.porting.layer_maps import stack_map


def by_roles(module: ModuleState, fresh: ModuleState, origin: HostShape) -> tuple[ModuleState, list[str]]:
    """A module with its parts at the sites of a fresh module of another host, and what a report is to say.

    Beside a matrix of several sites there is one A, and a B of each site. Taken apart, each site gets that A
    and its own B, which is exact. Put together, the sites' different As stand one under the other, and each B
    reads its own rows, which is exact too where the fresh module's rank has room for them; else they are the
    best approximation of that rank (truncated singular value decomposition of the sites' products, one
    under the other), and the share of the squared norm that this loses is said. A site beside which the
    origin has no pair gets a B of zeros; where its B is of zeros and the receiving host has no such site, it
    is left out. Numbers that go with the origin's own widths stay as they are.

    Args:
        module: on the origin host, whose shape `origin` is.

    Raises:
        UserError: other numbers than a low-rank pair's that meet what goes into separate matrices, and
            differ.

    Source: our choice (D-133).
    """
    wanted, stacks = {slot.site for slot in fresh.tensors}, set(stack_map(module, fresh).values())
    into = {site: whole for whole in sorted(wanted) if "+" in whole for site in whole.split("+")}
    tensors: dict[Slot, Tensor] = {}
    axes: dict[Slot, Axes] = {}
    separate: dict[Place, dict[str, dict[str, Slot]]] = defaultdict(lambda: defaultdict(dict))
    for slot, tensor in module.tensors.items():
        sites, labels = slot.site.split("+"), module.axes[slot]
        if slot.stack in stacks and slot.site not in wanted and not any(" at " in label for label in labels):
            if slot.site in into:
                separate[slot.stack, slot.layer, into[slot.site]][slot.site][slot.role] = slot
                continue
            if set(sites) & wanted:
                for site, role in _apart(slot.role, sites):
                    if site not in wanted and _idle(module, slot, site):
                        continue
                    new = slot._replace(site=site, role=role)
                    tensors[new], axes[new] = tensor, labels
                continue
        tensors[slot], axes[slot] = tensor, labels
    kept: dict[str, tuple[float, float]] = {}
    for place, parts in separate.items():
        made, squares = _together(module, fresh, place, parts, origin)
        for slot, (tensor, labels) in made.items():
            tensors[slot], axes[slot] = tensor, labels
        if squares:
            one, other = kept.get(place[2], (0.0, 0.0))
            kept[place[2]] = one + squares[0], other + squares[1]
    return ModuleState(tensors, axes), [_words(site, *squares) for site, squares in sorted(kept.items())]


def _apart(role: str, sites: Sequence[str]) -> list[tuple[str, str]]:
    """The sites that a role beside a matrix of several belongs to, and its name there."""
    for site in sites:
        if role.endswith(f"_{site}"):
            return [(site, role.removesuffix(f"_{site}"))]
    return [(site, role) for site in sites]


def _idle(module: ModuleState, slot: Slot, site: str) -> bool:
    """Whether the pair of a site beside a matrix of several does nothing."""
    out = module.tensors.get(slot._replace(role=f"B_{site}"))
    return out is not None and not out.any()


def _words(site: str, kept: float, whole: float) -> str:
    lost = 1 - kept / whole if whole else 0.0
    return (f"{site} is one matrix of the receiving host: the pairs beside the origin's separate ones became "
            f"one, which loses {max(0.0, lost):.2%} of the squared norm of their products")


def different(tensors: Sequence[Tensor]) -> tuple[list[Tensor], list[int]]:
    """The tensors without repetition, and which of them each one is.

    Example:
        >>> different([torch.ones(2), torch.zeros(2), torch.ones(2)])[1]
        [0, 1, 0]
    """
    found: list[Tensor] = []
    places = []
    for tensor in tensors:
        place = next((place for place, one in enumerate(found) if torch.equal(one, tensor)), len(found))
        if place == len(found):
            found.append(tensor)
        places.append(place)
    return found, places


Made = dict[Slot, tuple[Tensor, Axes]]


def _together(module: ModuleState, fresh: ModuleState, place: Place, parts: Mapping[str, Mapping[str, Slot]],
              origin: HostShape) -> tuple[Made, tuple[float, float] | None]:
    """The slots beside one matrix, and of low-rank pairs the squared norms of its products and of those of
    the parts."""
    stack, layer, whole = place
    like = {slot.role: slot for slot in fresh.tensors if slot.site == whole}
    sites = whole.split("+")
    roles = {role for own in parts.values() for role in own}
    pair = {"A", "B"} <= roles
    made: Made = {}
    for role in sorted(roles - ({"A", "B", "E"} if pair else set())):
        own = {site: slots[role] for site, slots in parts.items() if role in slots}
        if any(f"{role}_{site}" in like for site in sites):
            made |= {Slot(stack, layer, whole, f"{role}_{site}"): (module.tensors[slot], module.axes[slot])
                     for site, slot in own.items()}
            continue
        found, _ = different([module.tensors[slot] for slot in own.values()])
        if len(found) > 1 or own.keys() != set(sites):
            raise UserError(f"{whole} is one matrix of the receiving host, with one {role} for all, and the "
                            f"origin's differ at {stack}.{layer}: turn the module into a LoRA first (--via "
                            "lora)")
        slot = next(iter(own.values()))
        made[Slot(stack, layer, whole, role)] = module.tensors[slot], module.axes[slot]
    if not pair:
        return made, None
    ranks = [tensor.shape[0] for slot, tensor in fresh.tensors.items() if (slot.site, slot.role) == (whole,
                                                                                                     "A")]
    a, bs, squares = _pair(module, {site: parts[site] for site in sites if site in parts}, max(ranks))
    slot = next(iter(parts.values()))["A"]
    made[Slot(stack, layer, whole, "A")] = a, module.axes[slot]
    if "E" in roles:
        made[Slot(stack, layer, whole, "E")] = a.new_ones(len(a), 1), ("rank", "one")
    for site in sites:
        labels = fresh.axes[like[f"B_{site}"]]
        sizes = [origin.size(label) or len(a) for label in labels]
        made[Slot(stack, layer, whole, f"B_{site}")] = bs.get(site, a.new_zeros(sizes)), labels
    return made, squares


def _pair(module: ModuleState, parts: Mapping[str, Mapping[str, Slot]],
          rank: int) -> tuple[Tensor, dict[str, Tensor], tuple[float, float]]:
    """One A (r, *in) and the B of each site (*out, r) for pairs of separate matrices, with r at most `rank`,
    and the squared norms of its products and of theirs."""
    have = module.tensors
    scales = [have[slots["E"]] if "E" in slots else 1 for slots in parts.values()]
    found, places = different([have[slots["A"]].flatten(1) * scale
                               for slots, scale in zip(parts.values(), scales, strict=True)])
    ends = torch.tensor([0, *(len(one) for one in found)]).cumsum(0).tolist()
    bs = {}
    for (site, slots), place in zip(parts.items(), places, strict=True):
        own = have[slots["B"]]
        wide = own.new_zeros(*own.shape[:-1], ends[-1])
        wide[..., ends[place]:ends[place + 1]] = own
        bs[site] = wide
    into = torch.cat(found)
    shape = have[next(iter(parts.values()))["A"]].shape[1:]
    under = torch.cat([b.reshape(-1, ends[-1]) for b in bs.values()]).double()
    if len(into) <= rank:
        whole = float(((under.T @ under) * (into.double() @ into.double().T)).sum())
        return into.reshape(-1, *shape), bs, (whole, whole)
    left, inner = torch.linalg.qr(under)
    right, outer = torch.linalg.qr(into.double().T)
    u, values, vh = torch.linalg.svd(inner @ outer.T, full_matrices=False)
    whole, values = float(values.square().sum()), values[:rank]
    a, b = values.sqrt()[:, None] * (vh[:rank] @ right.T), left @ u[:, :rank] * values.sqrt()
    usual = torch.stack([one.double().norm() for one in found]).mean()  # A keeps the size that it had
    ratio = usual / a.norm() if a.norm() > 0 else 1.0
    rows = (b / ratio).to(into.dtype).split([one[..., 0].numel() for one in bs.values()])
    shaped = {site: part.reshape(*bs[site].shape[:-1], -1) for site, part in zip(bs, rows, strict=True)}
    return (a * ratio).to(into.dtype).reshape(-1, *shape), shaped, (float(values.square().sum()), whole)
