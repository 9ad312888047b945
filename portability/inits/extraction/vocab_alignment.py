"""Tokens that two hosts' tokenizers share, by their text."""

import torch
from torch import Tensor

from portability.core.errors import UserError
from portability.inits.extraction.weights import Weights


def shared_tokens(teacher: Weights, student: Weights, sizes: tuple[int, int], rank: int) -> Tensor:
    """Rows of the teacher's and the student's embedding that belong to the same token.

    Where both tokenizers and sizes are equal that is every row, also those beyond the tokenizer's last token;
    else the tokens whose text both have, in the student's order.

    Args:
        sizes: rows of the teacher's and of the student's matrix.
        rank: of the pairs, which need as many tokens at least.

    Returns:
        (2, S) int64: rows of the teacher, and of the student; S is at least `rank`.

    Raises:
        UserError: too few tokens in common, or a tokenizer that cannot be loaded.
    """
    words = [_vocabulary(host) for host in (teacher, student)]
    if words[0] == words[1] and sizes[0] == sizes[1]:
        return torch.arange(sizes[0]).expand(2, -1)
    pairs = [(words[0][text], row) for text, row in sorted(words[1].items(), key=lambda item: item[1])
             if text in words[0] and words[0][text] < sizes[0] and row < sizes[1]]
    if len(pairs) < rank:
        count = {0: "no token", 1: "only 1 token"}.get(len(pairs), f"only {len(pairs)} tokens")
        raise UserError(f"teacher '{teacher.spec.name}' and student '{student.spec.name}' have {count} in "
                        f"common, too few for pairs of rank {rank}; leave out embedding and head (the sites "
                        "of the method)")
    return torch.tensor(pairs).T


def _vocabulary(host: Weights) -> dict[str, int]:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(host.folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"host '{host.spec.name}': its tokenizer cannot be loaded from {host.folder}: "
                        f"{error}") from error
    return tokenizer.get_vocab()
