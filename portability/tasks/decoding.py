"""Losses of answers, likelihoods of choices, and answers written greedily, by a member or by K stacked
members at once.

One member goes through `functional_call` over the reader, a stack through `vmap` over that, the host
unmapped, as in `training.trainer`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.func import functional_call, vmap

from portability.core.errors import UserError
from portability.tasks.padding import Batch
from portability.tasks.readers import Reader

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Parameters = Mapping[str, Tensor]


def answer_loss(of: Reader, parameters: Parameters, rows: Batch) -> Tensor:
    """Loss of one member's batch, nats: the mean over an answer's tokens, then over examples, so that a long
    answer counts no more than a short one (our choice; Trainer takes the mean over all of a batch's tokens).

    Args:
        rows: tensors without leading axes; examples without an answer token do not count, and at least one
            has some.
    """
    nll = _nll(functional_call(of, dict(parameters), ("answer_logits", rows), tie_weights=False), rows)
    lengths = rows.answer_mask.sum(1)
    return (nll.sum(1) / lengths.clamp(min=1)).sum() / (lengths > 0).sum()


def _nll(logits: Tensor, rows: Batch) -> Tensor:
    """Negative log-likelihood of each answer token, (B, A), 0 for padding."""
    # no second (B, A, V)
    scores = logits.gather(-1, rows.answers[..., None]).squeeze(-1) - logits.logsumexp(-1)
    return torch.where(rows.answer_mask > 0, -scores, 0.0)


def _each(of: Reader, parameters: Parameters) -> Callable[..., Any]:
    """A method of the reader for all members: name, inputs that all share, inputs with a member axis. The
    bare host, without parameters, is one member."""
    members = len(next(iter(parameters.values()))) if parameters else 1

    def run(method: str, shared: tuple[Any, ...], own: tuple[Any, ...] = ()) -> Any:
        def one(given: Parameters, _: Tensor, inputs: tuple[Any, ...]) -> Any:
            return functional_call(of, dict(given), (method, *shared, *inputs), tie_weights=False)

        return vmap(one)(dict(parameters), torch.zeros(members), own)

    return run


@torch.inference_mode()
def answer_scores(of: Reader, parameters: Parameters, rows: Batch) -> Tensor:
    """Summed log-probability of each row's answer under each member, (K, B), nats.

    Args:
        parameters: stacked, (K, ...) each, frozen ones among them; empty for the bare host, which counts as
            one member.
        rows: tensors without leading axes, on the reader's device; all members read the same.
    """
    logits = _each(of, parameters)("answer_logits", (rows,))
    return -vmap(_nll, in_dims=(0, None))(logits, rows).sum(-1)


@torch.inference_mode()
def greedy(
    of: Reader, parameters: Parameters, ids: Tensor, mask: Tensor, new_tokens: int, stops: Sequence[int]
) -> Tensor:
    """The answers that each member writes by taking the likeliest token every time, (K, B, new_tokens) int64.

    Keys and values of what was read are kept, not computed anew. A finished answer is filled up with
    ``stops[0]``.

    Args:
        parameters: stacked, (K, ...) each, frozen ones among them; empty for the bare host, which counts as
            one member.
        ids: (B, T) prompts, padded on the right, on the reader's device; all members read the same.
        mask: (B, T) 1 for real tokens, at least one a row.
        new_tokens: most tokens of an answer, at least 1, the stop among them.
        stops: tokens that end an answer, at least one.

    Raises:
        UserError: the host has not as many positions.
    """
    if of.positions is not None and ids.shape[1] + new_tokens > of.positions:
        raise UserError(f"prompts of {ids.shape[1]} tokens and answers of {new_tokens} exceed the "
                        f"{of.positions} positions of "
                        f"host '{of.name}'; lower max_length or new_tokens of the data set's answers")
    run, ends = _each(of, parameters), torch.tensor(list(stops), device=ids.device)
    logits, past = run("begin", (ids, mask))
    written = torch.full((*logits.shape[:2], new_tokens), stops[0], device=ids.device)
    finished = torch.zeros(logits.shape[:2], dtype=torch.bool, device=ids.device)
    for done in range(1, new_tokens + 1):
        tokens = logits.argmax(-1).masked_fill(finished, stops[0])
        written[..., done - 1] = tokens
        finished |= torch.isin(tokens, ends)
        if done == new_tokens or bool(finished.all()):
            break
        logits, past = run("follow", (mask, done), (tokens, past))
    return written


def texts(written: Tensor, tokenizer: "PreTrainedTokenizerBase", stops: Sequence[int]) -> list[list[str]]:
    """Written answers (K, B, new_tokens) as texts up to their stop, by member, without blanks around them."""
    found = []
    for member in written.tolist():
        cut = [row[: next((at for at, token in enumerate(row) if token in stops), len(row))]
               for row in member]
        plain = tokenizer.batch_decode(cut, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        found.append([text.strip() for text in plain])
    return found
