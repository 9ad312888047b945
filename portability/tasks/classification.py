"""From a batch of texts, or pairs of texts, to logits, losses and predictions: one forward pass for every
host family, for all training and evaluation of texts with labels."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from portability.core.architectures import FAMILIES
from portability.core.errors import UserError
from portability.core.specs import HostSpec, TaskSpec
from portability.data.examples import each, plain
from portability.data.sampling import Batch, Bucket, pad, pad_rows, padded
from portability.data.splits import StudyData, rows
from portability.data.tokenization import Encoded, encode, joined
from portability.hosts.attention import text_mask
from portability.hosts.host import Host, label_ids, label_tokens, load_tokenizer
from portability.tasks.base import HEAD, SCORE_ROWS, SHOWN, Answered, Parameters, Predictions, Told, check_ids
from portability.tasks.metrics import score
from portability.tasks.readers import Reader, in_order, in_parts


class Classification:
    """Texts with labels, answered by label words, or by a head where the host has no language-model head."""

    def __init__(self, spec: TaskSpec):
        self.spec = spec

    def scorer(self, host: Host) -> "Scorer":
        return Scorer(host, self.spec)

    def training(self, host: Host, data: StudyData, name: str) -> Encoded:
        return self.test(host, data, name, "train", 0)

    def test(self, host: Host, data: StudyData, name: str, split: str, limit: int) -> Encoded:
        texts = rows(data, name, split, limit)
        found = encode(texts, host.tokenizer, self.spec, host.scoring == "label")
        check_ids(host, found.ids)
        return found

    def metrics(
        self, found: Predictions, labels: np.ndarray | None, asked: Sequence[str]
    ) -> dict[str, float | str]:
        return score(np.asarray(found.margin), found.nll, found.invalid, np.asarray(labels), asked)

    def too_long(self, training: object, test: object) -> dict[str, int]:
        return {}  # a text is cut, an answer is one token

    def example(
        self, host: Host, data: StudyData, name: str, split: str, limit: int
    ) -> tuple[str, list[str], list[list[int]], list[int]]:
        first = rows(data, name, split, limit)[0]
        read = encode([first], host.tokenizer, self.spec, host.scoring == "label").row(0).tolist()
        parts, _ = first
        given = each(parts, lambda part: f"{part[:SHOWN]} ..." if len(part) > SHOWN else part)
        if host.scoring == "head":
            return plain(given), [], [], read
        words, template, alone = (
            self.spec.label_words, self.spec.template, FAMILIES[host.family].seq2seq)
        text = self.spec.asked(given)
        answers = [word if alone else joined(text, word) for word in words]
        return text, answers, label_tokens(host.tokenizer, words, alone, template), read

    def answered(
        self, host: HostSpec, data: StudyData, name: str, draw: Callable[[int], Sequence[int]]
    ) -> list[Answered]:
        texts, tokenizer = rows(data, name, "train", 0), load_tokenizer(host)
        family, labelled = host.shape.family, FAMILIES[host.shape.family].scoring == "label"
        found = encode([texts[i] for i in draw(len(texts))], tokenizer, self.spec, labelled)
        if found.types is not None:
            raise UserError(f"data set '{name}' has pairs of texts, and examples of an encoder host such as "
                            f"'{host.name}' are read without telling the two apart; take single texts, or a "
                            "host with a language-model head")
        pairs = [(found.row(i).tolist(), int(label)) for i, label in enumerate(found.labels)]
        if not labelled:
            return [Answered(ids, label=label) for ids, label in pairs]
        seq2seq = FAMILIES[family].seq2seq
        answers = label_ids(tokenizer, self.spec.label_words, seq2seq, self.spec.template)
        if seq2seq:
            return [Answered(ids, target=[answers[label]]) for ids, label in pairs]
        return [Answered([*ids, answers[label]], start=len(ids)) for ids, label in pairs]


class Scorer(Reader):
    """Logits of one answer per text.

    Hosts with a language-model head give logits over their vocabulary for the answer's first token (T5: the
    first decoder step; decoder-only hosts: after the last real token). Encoders give a logit for each label
    from a linear head over the mean of the real tokens' states (our choice, D-11); the head is handed in like
    a module. Encoders that know segments are told those of a pair.
    """

    def __init__(self, host: Host, task: TaskSpec):
        super().__init__(host, task.max_length)
        self.hidden, self.count = host.spec.shape.hidden, len(task.label_words)
        if self.has_head:
            self.head = nn.Linear(self.hidden, self.count, device=self.device)
            self.head.requires_grad_(False)
        self.label_ids = tuple(range(self.count)) if self.has_head else label_ids(
            host.tokenizer, task.label_words, self.seq2seq, task.template)
        self.segments = self.has_head and getattr(host.model.config, "type_vocab_size", 0) > 1

    def label_logits(self, input_ids: Tensor, attention_mask: Tensor, *types: Tensor) -> Tensor:
        """Logits (B, V), or (B, C) for C labels, always in fp32; as the methods of a reader, run by
        `forward`.

        Args:
            input_ids: (B, T) token ids, padded on the right.
            attention_mask: (B, T) 1 for real tokens, 0 for padding.
            types: (B, T), of pairs where the host knows segments: 1 for the second text.
        """
        if not self.has_head:
            answer = input_ids[:, :1], attention_mask[:, :1]  # a token, whichever
            return self.answer_logits(Batch(input_ids, attention_mask, attention_mask.sum(1), *answer))[:, 0]
        seen = text_mask(self.family, attention_mask)
        told = {"token_type_ids": types[0]} if types else {}
        states = self.model(input_ids=input_ids, attention_mask=seen, **told).last_hidden_state
        states = states.to(self.device)
        weights = attention_mask.to(states.dtype).unsqueeze(-1)
        return self.head((states * weights).sum(1) / weights.sum(1)).float()

    def rows(
        self, encoded: Encoded, picks: np.ndarray, real: int, bucket: Bucket
    ) -> tuple[Tensor, ...]:
        """The picked texts as ids and mask (*picks.shape, T), the target's index among the logits
        (*picks.shape), and of pairs, where the host knows segments, the types (*picks.shape, T).

        Args:
            picks: (..., B) indices of examples.
            real: how many of the B are to have a loss; the others fill up.
            bucket: whose longest text the batch is padded to.
        """
        ids, mask = pad(encoded, picks, bucket.length)
        target = torch.tensor(self.label_ids)[torch.from_numpy(encoded.labels[picks])]
        target[..., real:] = -100  # has no loss (default of cross_entropy)
        if encoded.types is None or not self.segments:
            return ids, mask, target
        return ids, mask, target, padded(encoded.types, encoded.offsets[picks], encoded.lengths[picks],
                                         bucket.length)[0]

    def logits(self, parameters: Parameters, *rows: Tensor) -> Tensor:
        """Logits (B, V) of one member."""
        logits: Tensor = self.of_member(parameters, "label_logits", *rows[:2], *rows[3:])
        return logits

    def loss(self, parameters: Parameters, *rows: Tensor, by_token: bool = False) -> Tensor:
        """Mean loss of one member's batch, in nats; an answer has one token."""
        return F.cross_entropy(self.logits(parameters, *rows), rows[2])

    def weight(self, *rows: Tensor, by_token: bool = False) -> Tensor:
        """Number of examples that have a loss."""
        return (rows[2] >= 0).sum()

    def stacked_logits(self, parameters: Parameters, *rows: Tensor) -> Tensor:
        """Logits (K, B, V) of all members on the same batch."""
        if not parameters:
            return self.logits({}, *rows)[None]
        return self.each(self.logits, in_dims=(0, *[None] * len(rows)))(dict(parameters), *rows)

    def scoring_bytes(self, test: Encoded, batch_size: int) -> int:
        """Bytes that scoring one member takes at most: its logits, twice, which training takes more than (our
        choice)."""
        return 4 * 2 * batch_size * (self.count if self.has_head else self.model.config.vocab_size)

    @torch.inference_mode()
    def predict(
        self, parameters: Parameters, encoded: Encoded, batch_size: int, on_part: Told = lambda part: None
    ) -> Predictions:
        """Every test example as every member answers it, in the order of the examples. What stands before the
        first of a module's sites is the same for all members, and `vmap` computes it once a batch.

        Args:
            parameters: stacked, (K, ...) each; empty for the bare host, which counts as one member.
            on_part: called after each batch with the part of the work that is done.
        """
        words, out = torch.tensor(self.label_ids, device=self.device), []
        for picks in in_parts(encoded.lengths, batch_size, on_part):
            longest = Bucket(picks, int(encoded.lengths[picks].max()))
            batch = [part.to(self.device) for part in self.rows(encoded, pad_rows(picks, SCORE_ROWS),
                                                                len(picks), longest)]
            scores = self.stacked_logits(parameters, *batch)[:, : len(picks)].float().log_softmax(-1)
            target = batch[2][: len(picks)].expand(len(scores), -1)
            nll, best = -scores.gather(-1, target[..., None]).squeeze(-1), scores.argmax(-1)
            odds = scores[..., words[1:]] - scores[..., words[:1]]
            out.append((odds if self.count > 2 else odds[..., 0], nll, ~torch.isin(best, words)))
        margin, losses, invalid = (in_order(part, encoded.lengths).numpy() for part in zip(*out, strict=True))
        return Predictions(losses, invalid, margin)

    def fresh_head(self, seed: int) -> dict[str, Tensor]:
        """A new head from this seed, N(0, 0.02) with zero bias; nothing for hosts that score label words."""
        if not self.has_head:
            return {}
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(self.count, self.hidden, generator=generator) * 0.02
        return dict(zip(HEAD, (weight, torch.zeros(self.count)), strict=True))
