"""An ordinary training loop, one module at a time: the slower, second way of doing what the engine does."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from portability.core.specs import TrainSpec
from portability.tasks.classification import HEAD, Scorer


class PlainLoop:
    """torch's AdamW, `clip_grad_norm_` and a linear warm-up around a library's own module."""

    def __init__(self, scorer: Scorer, start: Mapping[str, Tensor], spec: TrainSpec, rate: float):
        """`start` holds module and head by the scorer's names; it is copied in and trained in place."""
        self.scorer, self.spec = scorer.to(scorer.device), spec  # adapters leaves most modules in ordinary memory
        known = dict(scorer.named_parameters())
        with torch.no_grad():
            for name, value in start.items():
                known[name].copy_(value)
        self.parameters: list[nn.Parameter] = [known[name].requires_grad_(True) for name in start]
        parts = {"module": [known[name] for name in start if name not in HEAD], "head": [known[n] for n in start if n in HEAD]}
        rates = {"module": rate, "head": spec.head_learning_rate}
        groups = [{"params": part, "lr": rates[name]} for name, part in parts.items() if part]
        self.optimizer = torch.optim.AdamW(groups, betas=spec.betas, eps=spec.eps, weight_decay=spec.weight_decay)
        self.warm = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: min(1.0, (step + 1) / max(1, spec.warmup)))

    def loss(self, ids: Tensor, mask: Tensor, target: Tensor) -> Tensor:
        """Mean loss of a batch (B, T), with its gradients left on the parameters."""
        loss = F.cross_entropy(self.scorer(ids, mask), target)
        self.optimizer.zero_grad()
        loss.backward()
        return loss.detach()

    def update(self, ids: Tensor, mask: Tensor, target: Tensor) -> Tensor:
        """One optimiser update; the loss before it."""
        loss = self.loss(ids, mask, target)
        nn.utils.clip_grad_norm_(self.parameters, self.spec.clip)
        self.optimizer.step()
        self.warm.step()
        return loss
