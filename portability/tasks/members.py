"""How a function of one member is applied to a stack of them: by `vmap`, or one at a time where a method's
library computes by steps that vmap refuses."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import tree_flatten, tree_map

MemberMap = Callable[..., Callable[..., Any]]  # of vmap's form: (function, in_dims) -> function of a stack


def one_at_a_time(function: Callable[..., Any], in_dims: Any = 0) -> Callable[..., Any]:
    """As `vmap`: the members' results, (K, ...) each, of a function of one member.

    Args:
        in_dims: 0 for all arguments, or a tuple with 0 for one with a member axis and None for a shared one.

    Example:
        >>> one_at_a_time(lambda a, b: a * b, in_dims=(0, None))(torch.tensor([1, 2]), torch.tensor(3))
        tensor([3, 6])
    """
    def of_stack(*given: Any) -> Any:
        dims = in_dims if isinstance(in_dims, tuple) else (in_dims,) * len(given)
        leaves, _ = tree_flatten([value for value, dim in zip(given, dims, strict=True) if dim == 0])
        found = [function(*(value if dim is None else tree_map(lambda part, k=member: part[k], value)
                            for value, dim in zip(given, dims, strict=True)))
                 for member in range(len(leaves[0]))]
        return tree_map(lambda *parts: torch.stack(parts), *found)

    return of_stack


def member_map(scorer: Any, start: dict[str, Tensor], rows: Sequence[Tensor]) -> tuple[MemberMap, str | None]:
    """`vmap`, or `one_at_a_time` with vmap's reason, found out on a stack of two members: a loss with its
    gradient where each has rows of its own, and logits where both read the same.

    Args:
        scorer: a `tasks.base.TaskScorer`.
        start: one member's parameters.
        rows: a batch as the scorer makes it, (B, ...) each.
    """
    two = {name: value.repeat(2, *[1] * value.ndim).requires_grad_() for name, value in start.items()}
    try:
        loss = vmap(scorer.loss)(two, *(part.repeat(2, *[1] * part.ndim) for part in rows)).sum()
        if loss.requires_grad:
            torch.autograd.grad(loss, list(two.values()), allow_unused=True)
        vmap(scorer.logits, in_dims=(0, *[None] * len(rows)))(two, *rows)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        return one_at_a_time, str(error).split("\n")[0]
    return vmap, None
