"""Strategy "random": noise as large as the module, a control for what any change of that size does."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from portability.core.architectures import Slot
from portability.core.errors import UserError
from portability.core.seeds import stream
from portability.methods.drawn import drawn_like, drawn_pair
from portability.methods.module import ModuleState
from portability.porting.axes import Filling, LayerwiseStrategy, Placed, stays_as_begun
from portability.porting.base import Port, PortContext, no_options
from portability.porting.layer_maps import average_layers

NOTE = "random: the numbers are drawn, and nothing of the origin is in them but how large its tensors are"


class Random(LayerwiseStrategy):
    """Each tensor is Gaussian, with the Frobenius norm of the origin's tensor that it stands for; of a
    low-rank pair A has the norm of A, and the product that of the product (AdaLoRA's E is in it, and 1
    afterwards). Several layers that become one are averaged before. Any sizes; drawn by the port's seed and
    the slot.

    The report's fractions say what the draws stand for: nothing of the origin's numbers is carried.

    Source: our choice (D-133).
    """

    def fit(self, module: ModuleState, context: PortContext) -> Port:
        """See LayerwiseStrategy.fit; there are no options."""
        no_options(context.spec)
        done = super().fit(module, context)
        done.report.notes.append(NOTE)
        return done

    def place(self, work: Filling, found: Sequence[Mapping[Slot, Slot]]) -> dict[Slot, Placed]:
        """See LayerwiseStrategy.place.

        Raises:
            UserError: numbers that multiply the host's, or stand in place of its own.
        """
        have = work.module.tensors
        for one in found:
            for slot, source in one.items():
                with work.refusing(slot, tuple(have[source].shape)):
                    work.check_axes(slot, source)
                    if stays_as_begun(slot.role):
                        raise UserError("its numbers multiply the host's or stand in their place, and noise "
                                        "would undo the host: turn it into a LoRA first (--via lora)")
                work.use(source, have[source])
        values = average_layers([{slot.role: have[source] for slot, source in one.items()} for one in found],
                                work.context.sums)
        drawn = _drawn(values, {slot.role: slot for slot in found[0]}, work.context)
        fresh = work.context.fresh.tensors
        return {slot: Placed(drawn[slot.role].to(fresh[slot].dtype),
                             torch.ones(fresh[slot].shape, dtype=torch.bool), "drawn") for slot in found[0]}


def _drawn(values: Mapping[str, Tensor], slots: Mapping[str, Slot],
           context: PortContext) -> dict[str, Tensor]:
    """Noise for the tensors of one site, by role."""
    def draws(role: str) -> torch.Generator:
        return stream(context.seed, "port", "random", slots[role].key)

    shapes = {role: context.fresh.tensors[slot].shape for role, slot in slots.items()}
    outs = sorted(role for role in values if "A" in values and (role == "B" or role.startswith("B_")))
    paired = ["A", *outs] if outs else []
    found = {role: drawn_like(value, shapes[role], draws(role)) for role, value in values.items()
             if role not in paired}
    if outs:
        into = values["A"]
        if "E" in values:
            into = into * values["E"].reshape(-1, *[1] * (into.ndim - 1))
            found["E"] = torch.ones(shapes["E"])
        pair = drawn_pair(into, [values[out] for out in outs], [shapes[role] for role in paired], draws("A"))
        found |= dict(zip(paired, pair, strict=True))
    return found


RANDOM = Random()
