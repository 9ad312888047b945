"""From prompts with answers to losses, scores and predictions.

An answer that is written is written greedily; a choice is the likeliest of all. Hosts need a language-model
head.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from portability.core.architectures import FAMILIES
from portability.core.specs import AnswerSpec, HostSpec
from portability.data.answer_scores import choice, exact_match, margins, rouge_l
from portability.data.examples import Example
from portability.data.sampling import Batch, Bucket, batch, pad_rows
from portability.data.splits import StudyData, rows
from portability.data.tokenization import Sequences, encode_answers, encode_choices, encode_prompts, shown
from portability.hosts.host import Host, load_tokenizer
from portability.tasks.base import SCORE_ROWS, SHOWN, Answered, Parameters, Predictions, Told, check_ids
from portability.tasks.metrics import score_answers
from portability.tasks.readers import Reader, answer_loss, answer_scores, greedy, in_order, in_parts, texts


@dataclass(frozen=True)
class PromptSet:
    """A test set of prompts in a host's tokens.

    Attributes:
        asked: prompts to continue, a row an example; or a row a choice of each example.
        right: prompts with their right answers, a row an example; None where `asked` holds them.
        answers: (N,) the right answers' texts.
    """

    asked: Sequences
    right: Sequences | None
    answers: Sequence[str]

    labels = None  # classes are of texts with labels

    def __len__(self) -> int:
        return len(self.answers)


class Generation:
    """Prompts with answers, which are written or, where there are choices, chosen by their likelihood."""

    def __init__(self, spec: AnswerSpec):
        self.spec = spec

    def scorer(self, host: Host) -> "AnswerScorer":
        return AnswerScorer(host, self.spec)

    def training(self, host: Host, data: StudyData, name: str) -> Sequences:
        found = self._encoded(rows(data, name, "train", 0), host.tokenizer, host.family, self.spec.too_long)
        check_ids(host, found.ids, found.answer_ids)
        return found

    def test(self, host: Host, data: StudyData, name: str, split: str, limit: int) -> PromptSet:
        found = self.prompts(rows(data, name, split, limit), host.tokenizer, host.family)
        for part in (found.asked, found.right or found.asked):
            check_ids(host, part.ids, part.answer_ids)
        return found

    def prompts(self, asked: Sequence[Example], tokenizer: PreTrainedTokenizerBase,
                family: str) -> PromptSet:
        """A test set as a host reads it: all of its examples, whatever is too long in training. What an
        answer is worth is said by its text; where answers may be too long, the likelihood of the right one is
        that of its beginning.

        Raises:
            UserError: what `encode_choices`, `encode_prompts` and `encode_answers` raise.
        """
        answers, length = [example.answer for example in asked], self.spec.max_length
        if self.spec.new_tokens is None:
            return PromptSet(encode_choices(asked, tokenizer, family, length, self.spec.chat), None, answers)
        prompts = encode_prompts(asked, tokenizer, family, length, self.spec.new_tokens, self.spec.chat)
        too_long = "refuse" if self.spec.too_long == "refuse" else "truncate"
        return PromptSet(prompts, self._encoded(asked, tokenizer, family, too_long), answers)

    def _encoded(
        self, chosen: Sequence[Example], tokenizer: PreTrainedTokenizerBase, family: str, too_long: str
    ) -> Sequences:
        return encode_answers(chosen, tokenizer, family, self.spec.max_length, too_long,
                              self.spec.new_tokens or 1, self.spec.chat)

    def metrics(self, found: Predictions, labels: object, asked: object) -> dict[str, float]:
        return score_answers(np.asarray(found.score), found.nll, found.invalid, self.spec.scoring)

    def too_long(self, training: Sequences | None, test: PromptSet) -> dict[str, int]:
        """Of training, answers left out or cut; of the test, cut for their likelihood; nothing where they are
        refused."""
        if self.spec.too_long == "refuse":
            return {}
        assert test.right is not None  # choices are never too long: they are refused
        found = {"test_truncated": test.right.truncated}
        if training is None:
            return found
        return {"train_dropped": training.dropped, "train_truncated": training.truncated, **found}

    def example(
        self, host: Host, data: StudyData, name: str, split: str, limit: int
    ) -> tuple[str, list[str], list[list[int]], list[int]]:
        first = rows(data, name, split, limit)[0]
        asked = self.prompts([first], host.tokenizer, host.family).asked
        read = asked.row(0)[: asked.starts[0] or None].tolist()  # a prompt of T5 stands alone
        text, answer, ids = shown(first, host.tokenizer, host.family, self.spec.chat)
        return f"... {text[-SHOWN:]}" if len(text) > SHOWN else text, [answer], [ids], read

    def answered(
        self, host: HostSpec, data: StudyData, name: str, draw: Callable[[int], Sequence[int]]
    ) -> list[Answered]:
        """Whole answers, the end token among them; examples that training leaves out are not drawn."""
        family, tokenizer = host.shape.family, load_tokenizer(host)
        asked = rows(data, name, "train", 0)
        if self.spec.too_long == "drop":
            asked = [asked[i] for i in self._encoded(asked, tokenizer, family, "drop").group]
        found = self._encoded([asked[i] for i in draw(len(asked))], tokenizer, family, self.spec.too_long)
        out = []
        for i, begin in enumerate(found.answer_begins):
            ids = found.row(i).tolist()
            answer = found.answer_ids[begin : begin + found.answer_lengths[i]].tolist()
            out.append(Answered(ids, target=answer) if FAMILIES[family].seq2seq
                       else Answered(ids, start=int(found.starts[i])))
        return out


class AnswerScorer(Reader):
    """Losses of right answers, and scores of a member's own, over one host."""

    def __init__(self, host: Host, task: AnswerSpec):
        super().__init__(host, task.max_length)
        self.tokenizer, self.task, shape = host.tokenizer, task, host.spec.shape
        # of keys, and of values
        self.depth_times_width = sum(shape.layers.values()) * shape.kv_heads * shape.head_dim

    def fresh_head(self, seed: int) -> dict[str, Tensor]:
        """No head: the host has its own."""
        return {}

    def rows(self, encoded: Sequences, picks: np.ndarray, real: int, bucket: Bucket) -> Batch:
        """The picked prompts with their answers, padded to the longest prompt and the longest answer of the
        bucket.

        Args:
            picks: (..., B) indices of examples.
            real: how many of the B are to have a loss; the others fill up.
        """
        found = batch(encoded, picks, bucket.length, int(encoded.answer_lengths[bucket.members].max()))
        found.answer_mask[..., real:, :] = 0
        return found

    def logits(self, parameters: Parameters, *rows: Tensor) -> Tensor:
        """Logits (B, A, V) of one member for each token of the right answers, 0 for padding."""
        found = Batch(*rows)
        logits: Tensor = self.of_member(parameters, "answer_logits", found)
        return logits * found.answer_mask[..., None]

    def loss(self, parameters: Parameters, *rows: Tensor, by_token: bool = False) -> Tensor:
        """Mean loss of one member's batch, in nats (see readers.answer_loss)."""
        return answer_loss(self, parameters, Batch(*rows), by_token)

    def weight(self, *rows: Tensor, by_token: bool = False) -> Tensor:
        """Number of examples that have a loss, or of their answers' tokens."""
        real = Batch(*rows).answer_mask
        return real.sum() if by_token else (real.sum(1) > 0).sum()

    def scoring_bytes(self, test: PromptSet, batch_size: int) -> int:
        """Bytes that scoring one member takes at most: logits of a batch's answers and as much again for
        their sums, or keys and values of its prompts and answers (our choice: counted, not measured)."""
        config, spec = self.model.config, self.task
        rows = test.asked if test.right is None else test.right
        count = min(len(rows), batch_size) + SCORE_ROWS
        logits = 2 * count * int(rows.answer_lengths.max()) * config.vocab_size
        tokens = int(test.asked.lengths.max()) + (spec.new_tokens or 0)
        kept = 2 * count * tokens * self.depth_times_width if spec.new_tokens else 0
        return 4 * max(logits, kept)

    def predict(
        self, parameters: Parameters, test: PromptSet, batch_size: int, on_part: Told = lambda part: None
    ) -> Predictions:
        """Every test example as every member answers it, in the order of the examples, in batches of so many
        prompts or choices. Of the work, a token that is written counts as much as all of a right answer.

        Args:
            parameters: stacked, (K, ...) each; empty for the bare host, which counts as one member.
            on_part: called after each batch with the part of the work that is done.
        """
        if test.right is None:
            return self._chosen(parameters, test.asked, batch_size, on_part)
        count = int(self.task.new_tokens or 0)
        passes, stop, found = 1 + count, int(self.tokenizer.eos_token_id), []
        sums = self._likelihoods(parameters, test.right, batch_size, lambda part: on_part(part / passes))
        for part, real in self._parts(
                test.asked, batch_size, lambda part: on_part((1 + part * count) / passes)):
            found.append(greedy(self, parameters, part.ids, part.mask, count, [stop])[:, :real])
        written = in_order(found, test.asked.lengths)
        score = np.stack([self._worth(own, test.answers) for own in texts(written, self.tokenizer, [stop])])
        nll, ended = -sums / test.right.answer_lengths, (written == stop).any(-1).numpy()
        return Predictions(nll.astype(np.float32), ~ended, score=score.astype(np.float32))

    def _worth(self, written: list[str], answers: Sequence[str]) -> np.ndarray:
        """Score (N,) of one member's answers."""
        if self.task.scoring == "rouge_l":
            return rouge_l(written, answers)
        return exact_match(written, answers, str(self.task.normaliser))

    def _chosen(self, parameters: Parameters, rows: Sequences, batch_size: int, on_part: Told) -> Predictions:
        sums = self._likelihoods(parameters, rows, batch_size, on_part)
        nll = -(sums / rows.answer_lengths)[:, rows.right]  # one row an example, in order
        wrong = ~np.isfinite(sums).all(1)  # a member that diverged: its own run fails, its neighbours' stand
        sums[wrong] = 0.0
        margin = margins(sums, rows.answer_lengths, rows.group, rows.right, str(self.task.likelihood))
        score = choice(margin)
        nll[wrong], margin[wrong], score[wrong] = np.nan, np.nan, np.nan
        whole = np.zeros(margin.shape, dtype=bool)
        return Predictions(nll.astype(np.float32), whole, margin.astype(np.float32), score.astype(np.float32))

    def _likelihoods(self, parameters: Parameters, rows: Sequences, batch_size: int,
                     on_part: Told) -> np.ndarray:
        """Summed log-probability of each row's answer, (K, R) float64, nats."""
        found = [answer_scores(self, parameters, part)[:, :real]
                 for part, real in self._parts(rows, batch_size, on_part)]
        return in_order(found, rows.lengths).double().numpy()

    def _parts(self, rows: Sequences, batch_size: int, on_part: Told) -> Iterator[tuple[Batch, int]]:
        """Batches on the device, filled up (sampling.pad_rows), each with its number of rows."""
        for picks in in_parts(rows.lengths, batch_size, on_part):
            longest = int(rows.lengths[picks].max()), max(1, int(rows.answer_lengths[picks].max()))
            whole = batch(rows, pad_rows(picks, SCORE_ROWS), *longest)
            yield Batch(*(part.to(self.device) for part in whole)), len(picks)
