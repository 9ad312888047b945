"""From a batch of texts to logits, losses and predictions: one forward pass for every host family, for all training and
evaluation of texts with labels. What `tasks.scorer.AnswerScorer` does for prompts with answers has the same four methods."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional as F

from portability.core.errors import UserError
from portability.core.specs import TaskSpec
from portability.data.sampling import Bucket, fill, pad
from portability.data.tokenization import Encoded
from portability.hosts.attention import causal_mask, computing, text_mask
from portability.hosts.host import Host, label_ids

HEAD = ("head.weight", "head.bias")
SCORE_ROWS = 16  # scored batches are filled up to a multiple of so many examples (batches.fill)
Parameters = Mapping[str, Tensor]


@dataclass
class Predictions:
    """Per member and example, (K, N), or per example (N,): negative log-likelihood of the right answer (nats; of a written
    answer or a choice, a token), and whether the output is invalid (its best token begins no label word, or it never ends).

    `margin` is the log-odds of positive, or of the right choice against the best wrong one; `score` in [0, 1] is what an
    answer is worth. Texts with labels have no scores, written answers no margins.
    """

    nll: np.ndarray
    invalid: np.ndarray
    margin: np.ndarray | None = None
    score: np.ndarray | None = None

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """What there is, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def of(self, members: int | list[int]) -> "Predictions":
        """Those of some members, in this order, or of one."""
        return Predictions(**{name: value[members] for name, value in self.columns.items()})


def check_length(host: Host, task: TaskSpec) -> None:
    """Refuse inputs longer than the host has positions for (T5's are relative, so it has no limit)."""
    positions = getattr(host.model.config, "max_position_embeddings", None)
    if positions is not None and task.max_length > positions - 2 * (host.family == "roberta"):
        raise UserError(f"task.max_length is {task.max_length}, but host '{host.spec.name}' has {positions} positions")


class Scorer(nn.Module):
    """Logits of one answer per text.

    Hosts with a language-model head give logits over their vocabulary for the answer's first token (T5: the first
    decoder step; decoder-only hosts: after the last real token). Encoders give two logits from a linear head over
    the mean of the real tokens' states (our choice, D-11); the head is handed in like a module.
    """

    def __init__(self, host: Host, task: TaskSpec):
        super().__init__()
        self.model = host.model
        self.device = host.model.device
        self.precision = host.precision
        self.family = host.family
        self.hidden = host.spec.shape.hidden
        check_length(host, task)
        self.has_head = host.scoring == "head"
        if self.has_head:
            self.head = nn.Linear(self.hidden, 2, device=self.device)
            self.head.requires_grad_(False)
            self.label_ids = (0, 1)
        else:
            self.label_ids = label_ids(host.tokenizer, task.label_words, self.family == "t5", task.template)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits (B, V) or (B, 2), always in fp32.

        Args:
            input_ids: (B, T) token ids, padded on the right.
            attention_mask: (B, T) 1 for real tokens, 0 for padding.
        """
        with computing(self.device, self.precision):
            return self._logits(input_ids, attention_mask).float()

    def _logits(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        seen = text_mask(self.family, attention_mask)
        if self.family == "t5":
            start = torch.full_like(input_ids[:, :1], self.model.config.decoder_start_token_id)
            return self.model(
                input_ids=input_ids, attention_mask=seen, use_cache=False,
                decoder_input_ids=start, decoder_attention_mask=causal_mask(torch.ones_like(start)),
            ).logits[:, 0]
        if self.has_head:
            states = self.model(input_ids=input_ids, attention_mask=seen).last_hidden_state
            weights = attention_mask.to(states.dtype).unsqueeze(-1)
            return self.head((states * weights).sum(1) / weights.sum(1))
        states = self.model.base_model(
            input_ids=input_ids, attention_mask=seen, use_cache=False
        ).last_hidden_state
        last = (attention_mask.sum(1) - 1).view(-1, 1, 1).expand(-1, 1, states.shape[-1])
        return self.model.lm_head(states.gather(1, last).squeeze(1))

    def rows(self, encoded: Encoded, picks: np.ndarray, real: int, bucket: Bucket) -> tuple[Tensor, Tensor, Tensor]:
        """The picked texts as ids and mask (*picks.shape, T), and the target's index among the logits (*picks.shape).

        Args:
            picks: (..., B) indices of examples.
            real: how many of the B are to have a loss; the others fill up.
            bucket: whose longest text the batch is padded to.
        """
        ids, mask = pad(encoded, picks, bucket.length)
        target = torch.tensor(self.label_ids)[torch.from_numpy(encoded.labels[picks])]
        target[..., real:] = -100  # has no loss (default of cross_entropy)
        return ids, mask, target

    def logits(self, parameters: Parameters, *rows: Tensor) -> Tensor:
        """Logits (B, V) of one member. `tie_weights` is off because adapters shares its prefix pool between layers under
        several names, and swapping all of them leaves a dead tensor behind."""
        return functional_call(self, dict(parameters), rows[:2], tie_weights=False)

    def loss(self, parameters: Parameters, *rows: Tensor) -> Tensor:
        """Mean loss of one member's batch, in nats."""
        return F.cross_entropy(self.logits(parameters, *rows), rows[2])

    def stacked_logits(self, parameters: Parameters, ids: Tensor, mask: Tensor) -> Tensor:
        """Logits (K, B, V) of all members on the same batch."""
        if not parameters:
            return self.logits({}, ids, mask)[None]
        return vmap(lambda p, i, m: self.logits(p, i, m), in_dims=(0, None, None))(dict(parameters), ids, mask)

    def scoring_bytes(self, test: Encoded, batch_size: int) -> int:
        """Bytes that scoring one member takes at most: its logits, twice, which training takes more than (our choice)."""
        return 4 * 2 * batch_size * (2 if self.has_head else self.model.config.vocab_size)

    @torch.inference_mode()
    def predict(
        self, parameters: Parameters, encoded: Encoded, batch_size: int, on_part: Callable[[float], None] = lambda part: None
    ) -> Predictions:
        """Score every example with every member, in the order of the examples.

        What stands before the first of a module's sites is the same for all members, and `vmap` does it once a batch.

        Args:
            parameters: stacked, (K, ...) each, frozen ones among them; empty for the bare host, which counts as one member.
            on_part: see engine.predict.
        """
        order = np.argsort(encoded.lengths, kind="stable")
        labels = torch.from_numpy(encoded.labels)
        negative, positive = self.label_ids
        targets, out = torch.tensor(self.label_ids), []
        for first in range(0, len(order), batch_size):
            picks = order[first : first + batch_size]
            batch = pad(encoded, fill(picks, SCORE_ROWS), int(encoded.lengths[picks].max()))
            ids, mask = (part.to(self.device) for part in batch)
            logits = self.stacked_logits(parameters, ids, mask)[:, : len(picks)]
            scores = logits.float().log_softmax(-1)
            target = targets[labels[picks]].to(self.device).expand(len(scores), -1)
            nll = -scores.gather(-1, target[..., None]).squeeze(-1)
            best = scores.argmax(-1)
            out.append((scores[..., positive] - scores[..., negative], nll, (best != negative) & (best != positive)))
            on_part((first + len(picks)) / len(order))
        back = np.argsort(order)
        margin, nll, invalid = (torch.cat(part, 1).cpu().numpy()[:, back] for part in zip(*out, strict=True))
        return Predictions(nll, invalid, margin)

    def fresh_head(self, seed: int) -> dict[str, Tensor]:
        """A new head from this seed, N(0, 0.02) with zero bias; nothing for hosts that score label words."""
        if not self.has_head:
            return {}
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(2, self.hidden, generator=generator) * 0.02
        return dict(zip(HEAD, (weight, torch.zeros(2)), strict=True))
