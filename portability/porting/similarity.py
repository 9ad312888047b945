"""How alike two hosts are: in what they make of the same texts, in their weights, and in their shape."""

import contextlib
import math
import time
from collections.abc import Sequence
from statistics import mean
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from portability.core.architectures import within_layer
from portability.core.errors import UserError
from portability.core.specs import HostShape, HostSpec, TaskSpec, Text
from portability.data.sampling import by_length, pad
from portability.data.tokenization import encode
from portability.hosts.attention import causal_mask, text_mask
from portability.hosts.host import Host, load_host
from portability.hosts.sources import folder_of, weight_files
from portability.methods.adapters_backend import prepare
from portability.porting.basis import basis
from portability.porting.layer_maps import stretch
from portability.tasks.base import check_length

BATCH = 16  # texts in a forward pass; does not change results beyond rounding
FEWEST = 4  # texts: the unbiased estimate divides by n (n - 3)
# "text" and, where the host answers, "answer" -> what each layer makes of N texts
Readings = dict[str, list[Tensor]]


def compare_hosts(
    one: HostSpec, other: HostSpec, texts: Sequence[Text], task: TaskSpec,
    known: dict[str, Readings] | None = None
) -> dict[str, Any]:
    """How alike two hosts are; which is named first makes no difference (the result names them by
    fingerprint).

    Args:
        texts: N of them, at least 4, or pairs; both hosts read each in the task's template, cut to its
            length.
        known: readings of these texts by fingerprint; what is missing is added. One host is loaded at a time,
            and of it N x N numbers a layer are kept.

    Returns:
        `cka`, the mean of `cka_layers` (see `cka`); `weight_distance` and `compared_fraction` (see
        `weight_distance`), and in `weight_reason` why the first is None; `shape_distance`;
        `rotation` (porting.basis; None where it is not defined); `texts`, N; names and fingerprints of both;
        `seconds`.

    Raises:
        UserError: too few texts, or a host that cannot be loaded, sees a text longer than it has positions
            for, or is not finite.
    """
    start = time.monotonic()
    if len(texts) < FEWEST:
        raise UserError(f"hosts are compared on at least {FEWEST} texts, got {len(texts)}")
    one, other = sorted((one, other), key=lambda host: (host.fingerprint, host.name))
    known = {} if known is None else known
    for host in (one, other):
        if host.fingerprint not in known:
            known[host.fingerprint] = readings(host, texts, task)
    first, second = known[one.fingerprint], known[other.fingerprint]
    # each layer of the shallower host with that of the deeper at the same relative depth, from 0
    layers: list[dict[str, Any]] = [
        {"reading": reading, "one": i, "other": j, "cka": cka(first[reading][i], second[reading][j])}
        for reading in sorted(first.keys() & second.keys())
        for i, j in match(len(first[reading]), len(second[reading]))]
    distance, fraction, reason = weight_distance(one, other)
    return {
        "one": one.name, "other": other.name, "one_fingerprint": one.fingerprint,
        "other_fingerprint": other.fingerprint,
        "cka": mean(layer["cka"] for layer in layers), "cka_layers": layers,
        "weight_distance": distance, "compared_fraction": fraction, "weight_reason": reason,
        "shape_distance": shape_distance(one.shape, other.shape), "rotation": _rotation(one, other),
        "texts": len(texts), "seconds": round(time.monotonic() - start, 2),
    }


# ---- what hosts make of the texts


def readings(spec: HostSpec, texts: Sequence[Text], task: TaskSpec) -> Readings:
    """What each layer of a host makes of the texts, as unit vectors of (N, N) to be compared by their inner
    product.

    "text": the mean state of a text's real tokens, in the stack that reads it (the encoder, or the decoder
    where there is no other). "answer": the state at which the answer's first token is scored (an
    encoder-decoder's first step, a decoder's last token). A layer's state is what it hands on; the last one's
    is taken after the host's final norm.
    """
    host = prepare(load_host(spec))
    check_length(host, task.max_length)
    encoded = encode([(text, 0) for text in texts], host.tokenizer, task, True)
    batches, parts = by_length(encoded.lengths, BATCH), dict[str, list[Tensor]]()
    for picks in batches:
        for reading, states in _states(host, *pad(encoded, picks, int(encoded.lengths[picks].max()))).items():
            parts.setdefault(reading, []).append(states)
    back = torch.from_numpy(np.argsort(np.concatenate(batches)))
    found = {reading: [gram(layer) for layer in torch.cat(states, 1)[:, back]]
             for reading, states in parts.items()}
    if not all(layer.isfinite().all() for layers in found.values() for layer in layers):
        raise UserError(f"the states of host '{spec.name}' are not finite, or the same for all texts; it "
                        f"cannot be compared")
    return found


@torch.inference_mode()
def _states(host: Host, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """States of a batch by reading, each (layers, B, hidden); ids and mask (B, T) padded on the right."""
    real, seen = mask.unsqueeze(-1).float(), text_mask(host.family, mask)
    if host.model.config.is_encoder_decoder:
        start = torch.full_like(ids[:, :1], host.model.config.decoder_start_token_id)
        out = host.model(input_ids=ids, attention_mask=seen, decoder_input_ids=start,
                         decoder_attention_mask=causal_mask(torch.ones_like(start)), use_cache=False,
                         output_hidden_states=True)
        text, answer = out.encoder_hidden_states[1:], [layer[:, 0] for layer in out.decoder_hidden_states[1:]]
    else:
        text = host.model.base_model(input_ids=ids, attention_mask=seen,
                                     output_hidden_states=True).hidden_states[1:]
        answer = [] if host.scoring == "head" else [layer[torch.arange(len(ids)), mask.sum(1) - 1]
                                                    for layer in text]
    pooled = {"text": torch.stack([(layer * real).sum(1) / real.sum(1) for layer in text])}
    return pooled | ({"answer": torch.stack(answer)} if answer else {})


def gram(states: Tensor) -> Tensor:
    """Inner products of N texts' states (N, hidden), centred as the unbiased estimate of HSIC wants it
    (Szekely and Rizzo 2014, eq. 2.2) and scaled to norm 1: (N, N) in double precision."""
    count = len(states)
    centred = states.double() - states.double().mean(0)
    inner = (centred @ centred.T).fill_diagonal_(0)
    sums = inner.sum(0)
    inner += sums.sum() / ((count - 1) * (count - 2)) - (sums[:, None] + sums) / (count - 2)
    inner.fill_diagonal_(0)
    return inner / inner.norm()


def cka(one: Tensor, other: Tensor) -> float:
    """Linear CKA of two layers' `gram`: 1 for states equal up to rotation and scale, about 0 for unrelated
    ones.

    Kornblith et al. (ICML 2019), with the unbiased estimate of HSIC (Song et al. 2012) as in Nguyen et al.
    (ICLR 2021), which may fall a little below 0: the plain estimate is near 1 for any two hosts that are
    wider than there are texts.
    """
    return float((one * other).sum())


def match(one: int, other: int) -> list[tuple[int, int]]:
    """Layers of two stacks of these depths that are compared: each of the shallower's once, first with first,
    last with last.

    Example:
        >>> match(3, 6), match(6, 3)
        ([(0, 0), (1, 2), (2, 5)], [(0, 0), (2, 1), (5, 2)])
    """
    if one > other:
        return [(i, j) for j, i in match(other, one)]
    return [(i, layers[0]) for i, layers in enumerate(stretch(other, one))]


# ---- weights


def weight_distance(one: HostSpec, other: HostSpec) -> tuple[float | None, float, str | None]:
    """Distance of two hosts' weights, the share of the larger host's entries that was compared, and why there
    is none.

    sqrt(sum |A - B|^2 / sum (|A|^2 + |B|^2)) over the matrices A and B of matched layers (`match`) that have
    one name, on their common leading block where shapes differ: 0 for equal hosts, about 1 for unrelated
    ones, at most sqrt(2). Vectors are left out, since norms' scales are alike in any host, and embeddings,
    whose squares outweigh all layers (our choice). Weights are read from the files, a block at a time.

    Raises:
        UserError: a weight is not finite.
    """
    with contextlib.ExitStack() as files:
        (ours, total), (theirs, more) = (_matrices(host, files) for host in (one, other))
        difference = squares = entries = 0.0
        for stack in sorted(one.shape.layers.keys() & other.shape.layers.keys()):
            pairs = match(one.shape.layers[stack], other.shape.layers[stack])
            for a, b in ((ours[key], theirs[stack, j, key[2]]) for i, j in pairs for key in sorted(ours)
                         if key[:2] == (stack, i) and (stack, j, key[2]) in theirs):
                rows, columns = map(min, a.get_shape(), b.get_shape())
                left, right = (matrix[:rows, :columns].float() for matrix in (a, b))
                difference += _square(left - right)
                squares += _square(left) + _square(right)
                entries += rows * columns
    if not entries:
        return None, 0.0, "no weight of the one has the name of one of the other"
    if not (math.isfinite(squares) and squares):
        raise UserError(f"weights of host '{one.name}' or '{other.name}' are not finite, or all zero; they "
                        f"cannot be compared")
    return math.sqrt(difference / squares), entries / max(total, more), None


def _matrices(spec: HostSpec, files: contextlib.ExitStack) -> tuple[dict[tuple[str, int, str], Any], int]:
    """A host's matrices (slices of safetensors) by stack, layer and name within the layer, and how many
    entries it has."""
    folder, found, total = folder_of(spec), {}, 0
    for path in weight_files(spec.name, folder):
        file = files.enter_context(safe_open(path, "pt"))
        for name in file.keys():
            matrix = file.get_slice(name)
            total += math.prod(matrix.get_shape())
            inside = within_layer(spec.shape.family, name)
            if inside and len(matrix.get_shape()) == 2 and name.endswith(".weight"):
                found[inside] = matrix
    return found, total


def _square(matrix: Tensor) -> float:
    return float(torch.linalg.vector_norm(matrix, dtype=torch.float64)) ** 2


def _rotation(one: HostSpec, other: HostSpec) -> float | None:
    found = basis(one, other)
    return None if found is None else found.rotation


# ---- shape


def shape_distance(one: HostShape, other: HostShape) -> float:
    """Mean of |log2 of the ratio| over depth, hidden, ffn, heads and head_dim: 0 for equal shapes, 1 if
    everything doubles.

    Depth counts once for each stack that both have; of two hosts without a common one, their whole depths are
    compared (our choice).

    Example:
        >>> base = HostShape("t5", {"encoder": 2, "decoder": 2}, 64, 128, 4, 4, 16)
        >>> shape_distance(base, HostShape("t5", {"encoder": 4, "decoder": 4}, 64, 256, 4, 4, 16))
        0.5
    """
    common = sorted(one.layers.keys() & other.layers.keys())
    sizes = [(one.layers[stack], other.layers[stack]) for stack in common] or [
        (sum(one.layers.values()), sum(other.layers.values()))]
    sizes += [(getattr(one, axis), getattr(other, axis)) for axis in ("hidden", "ffn", "heads", "head_dim")]
    return mean(abs(math.log2(a / b)) for a, b in sizes)
