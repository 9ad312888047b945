"""Strategy "gradmask": another strategy, of whose weight changes those entries stay along which the receiving
host's loss falls."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from portability.core.architectures import Slot
from portability.core.errors import UserError
from portability.data.examples import LabelledText
from portability.data.sampling import Bucket, by_length
from portability.hosts.host import Host
from portability.methods.module import ModuleState
from portability.porting.base import Port, PortContext
from portability.porting.spaces import Place, place_of, runs
from portability.porting.trained import ComposedStrategy, bare, drawn, encoded, task_of

TIED = ("embedding", "head")


class GradMask(ComposedStrategy):
    """Of each pair's change B A (out, in) of a weight W those entries stay whose sign is that of -dL/dW, L
    the receiving host's loss on a few labelled examples without a module; the rest is zero. What stays is
    split again into B and A of the same rank by a truncated SVD, with the norm of A kept.

    Options:
        of, of_options: the strategy that gives the change (pad).
        examples: labelled examples, drawn by the port's seed without replacement (32).
        batch_size: examples of a backward pass (8); does not change results beyond rounding.
        sign: of the "mean" gradient, or the "majority" of the examples' own signs, one backward pass each; an
            entry without a majority is zero.

    Source: GradFix (arXiv 2510.09658), whose variant for few examples is the majority. The split into a pair
        of the same rank is our choice (D-133).
    """

    needs = frozenset({"receiving_weights", "labels", "forward_passes"})
    own = {"examples": 32, "batch_size": 8, "sign": ("mean", "majority")}

    def fit(self, module: ModuleState, context: PortContext) -> Port:
        """See Strategy.fit; the report's notes say what share of the change stayed, and of that in the pairs.

        Raises:
            UserError: as `ComposedStrategy.fit_of`, a method that is no low-rank pair, no labelled examples
                or too few of them, or nothing stays.
        """
        options = self.options(context)
        task_of(context)
        pairs, rows = _pairs(context), context.labelled()
        if len(rows) < options["examples"]:
            raise UserError(f"port strategy 'gradmask' {context.pair} asks for {options['examples']} "
                            f"labelled examples, and there are {len(rows)}; give more, or set a smaller "
                            f"port.{context.spec.name}.options.examples")
        done = self.fit_of(module, context)
        few = drawn(rows, options["examples"], context.seed)
        out = {slot: runs(slot, context.fresh.axes[slot])[0].space for many in pairs.values() for slot in many
               if done.carried[slot].any()}
        host = context.receiving_host()
        slopes = _slopes(context, host, {slot: place_of(host, space) for slot, space in out.items()}, few,
                         options["batch_size"], options["sign"] == "majority")
        tensors = dict(done.module.tensors)
        counts, squares = np.zeros(2), np.zeros(3)  # entries: all, staying; squared norms: and in the pairs
        for into, outs in pairs.items():
            if not all(slot in slopes for slot in outs):
                continue
            first, rank = tensors[into], len(tensors[into])
            change = torch.cat([tensors[slot].reshape(-1, rank) for slot in outs]).double() @ first.reshape(
                rank, -1).double()
            slope = torch.cat([slopes[slot] for slot in outs]).double()
            if slope.shape != change.shape:
                raise UserError(f"port strategy 'gradmask' {context.pair}: the weight beside {into.key} has "
                                f"shape {tuple(slope.shape)}, its change {tuple(change.shape)}")
            stays = change * slope < 0
            rest = torch.where(stays, change, 0.0)
            a, b = split(rest, rank, float(first.double().norm()))
            counts += int((change != 0).sum()), int(stays.sum())
            squares += [float(one.square().sum()) for one in (change, rest, b @ a)]
            if stays.any():
                tensors[into] = a.to(first.dtype).reshape(first.shape) * done.carried[into]
            for slot, part in zip(outs, b.split([tensors[slot].numel() // rank for slot in outs]),
                                  strict=True):
                old = tensors[slot]
                tensors[slot] = part.to(old.dtype).reshape(old.shape) * done.carried[slot]
        if not counts[1]:
            raise UserError(f"port strategy 'gradmask' {context.pair}: no entry of the change has the sign "
                            "of the receiving host's negative gradient; give other examples")
        done.module = done.module.map(tensors)
        done.report.calibration_examples += len(few)
        done.report.notes.append(
            f"gradient signs of {len(few)} labelled examples ({options['sign']}): of the change stay "
            f"{counts[1] / counts[0]:.1%} of the entries and {squares[1] / squares[0]:.1%} of the squared "
            f"norm, of which pairs of the same rank hold {squares[2] / squares[1]:.1%}")
        return done


def split(change: Tensor, rank: int, norm: float) -> tuple[Tensor, Tensor]:
    """A (rank, in) of this norm and B (out, rank), whose product is the best of this rank for a change (out,
    in)."""
    left, sizes, right = torch.linalg.svd(change, full_matrices=False)
    root = sizes[:rank].sqrt()
    a, b = change.new_zeros(rank, change.shape[1]), change.new_zeros(len(change), rank)
    a[: len(root)], b[:, : len(root)] = root[:, None] * right[:rank], left[:, :rank] * root
    ratio = norm / float(a.norm()) if a.any() and norm else 1.0
    return a * ratio, b / ratio


def _pairs(context: PortContext) -> dict[Slot, list[Slot]]:
    """Of each A of the receiving module the Bs beside it, one under the other."""
    method = context.for_task().methods[1]
    found: dict[Slot, list[Slot]] = {}
    for slot in context.fresh.tensors:
        if slot.role != "A" and slot.role.split("_")[0] != "B":
            raise UserError(f"port strategy 'gradmask' {context.pair} masks the weight changes of low-rank "
                            f"pairs (LoRA, rsLoRA), and method '{method.name}' ({method.config}) has "
                            f"{slot.key}; use another strategy, or turn the module into a LoRA first "
                            "(--via lora)")
        into = slot._replace(role="A")
        found.setdefault(into, []).extend([slot] if slot != into else [])
    return found


@torch.enable_grad()
def _slopes(context: PortContext, host: Host, places: Mapping[Slot, Place],
            rows: Sequence[LabelledText], batch_size: int, majority: bool) -> dict[Slot, Tensor]:
    """dL/dW (out, in) of each site's weight, or the sum of its signs over the examples.

    Raises:
        UserError: a weight that serves as embedding and as head, whose gradients cannot be told apart, or a
            gradient that is not finite.
    """
    model = host.model
    ends = [part.weight for part in (model.get_input_embeddings(), model.get_output_embeddings())
            if part is not None]
    tied = len(ends) == 2 and ends[0] is ends[1]
    for slot in places:
        if tied and slot.site in TIED:
            raise UserError(f"port strategy 'gradmask' {context.pair}: host '{host.spec.name}' has one "
                            f"weight for embedding and head, so that {slot.key} has no gradient of its own; "
                            "leave it out of the method's sites")
    scorer, head = bare(context, 1, host)
    found = encoded(host, task_of(context), rows)
    modules = {name: model.get_submodule(name) for name in dict.fromkeys(p.module for p in places.values())}
    weights = [module.weight for module in modules.values()]
    total = [torch.zeros_like(weight, dtype=torch.float32) for weight in weights]
    try:
        for weight in weights:
            weight.requires_grad_(True)
        for picks in by_length(found.lengths, 1 if majority else batch_size):
            bucket = Bucket(picks, int(found.lengths[picks].max()))
            batch = [part.to(scorer.device) for part in scorer.rows(found, picks, len(picks), bucket)]
            slopes = torch.autograd.grad(scorer.loss(head, *batch) * len(picks), weights, allow_unused=True,
                                         materialize_grads=True)
            for held, slope in zip(total, slopes, strict=True):
                held += slope.sign() if majority else slope / len(found)
    finally:
        for weight in weights:
            weight.requires_grad_(False)
    if wrong := next((name for name, held in zip(modules, total, strict=True) if not held.isfinite().all()),
                     None):
        raise UserError(f"port strategy 'gradmask' {context.pair}: the gradient of {wrong} of host "
                        f"'{host.spec.name}' is not finite")
    whole = {name: (held.T if _turned(module) else held).cpu()
             for (name, module), held in zip(modules.items(), total, strict=True)}
    return {slot: whole[place.module][place.start:place.start + place.size] if place.size
            else whole[place.module] for slot, place in places.items()}


def _turned(module: nn.Module) -> bool:
    """Whether its weight is (in, out)."""
    return isinstance(module, nn.Embedding) or type(module).__name__ == "Conv1D"


GRADMASK = GradMask()
