"""Members of a method on a host, and prompts to answer."""

import torch

from portability.tasks.readers import Reader
from support.lora import method
from support.tiny import METHODS, noisy

STOP = 1
ALL = {**METHODS, "own": method()}


class Bench:
    """A method on a host, four noisy members of it, and prompts of different lengths."""

    def __init__(self, attached):
        self.attached, self.model, self.family = attached, attached.host.model, attached.host.family
        self.reader = Reader(attached.host)
        self.members = []
        for seed in range(4):
            module = noisy(attached, seed)
            found = attached.to_parameters(module.map({slot: 3 * tensor
                                                       for slot, tensor in module.tensors.items()}))
            if attached.frozen:
                found |= attached.to_frozen(noisy(attached, seed + 10))
            self.members.append({f"model.{name}": value for name, value in found.items()})
        draw = torch.Generator().manual_seed(5)
        self.lengths = torch.randint(1, 10, (16,), generator=draw)
        self.mask = (torch.arange(9) < self.lengths[:, None]).long()
        self.ids = torch.randint(3, 30, (16, 9), generator=draw) * self.mask

    def stacked(self, *which):
        return {name: torch.stack([self.members[index][name] for index in which]) for name in self.members[0]}

    def lone(self, member, *args, **kwargs):
        """The library's own model with one member's parameters in it, called plainly."""
        given = {name.removeprefix("model."): value for name, value in self.members[member].items()}
        return torch.func.functional_call(self.model, given, args, kwargs, tie_weights=False)

    def next_logits(self, member, prompt, written):
        """Logits (V,) after a prompt and what was written so far, everything read anew."""
        with torch.no_grad():
            if self.family == "t5":
                read = torch.tensor([[0, *written]])
                return self.lone(member, input_ids=prompt[None], decoder_input_ids=read).logits[0, -1]
            read = torch.tensor([[*prompt.tolist(), *written]])
            return self.lone(member, input_ids=read).logits[0, -1]
