"""What two hosts make of the same texts: cross-moments of their spaces, streamed, never the activations
themselves.

Texts are read by both hosts; of their tokens those count that end at the same character in both
(`alignment`). Moments are summed in double precision.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from portability.core.architectures import FAMILIES
from portability.core.errors import UserError
from portability.data.examples import plain
from portability.hosts.attention import body, causal_mask, computing, text_mask
from portability.hosts.host import Host
from portability.porting.alignment import Aligned, align
from portability.porting.calibration import Calibration
from portability.porting.spaces import Space, fold, place_of

LENGTH = 128  # tokens of a text that are read at most (our choice)
BATCH = 16  # texts in a forward pass; does not change results beyond rounding
Pair = tuple[Space, Space]


@dataclass
class Moments:
    """Sums over aligned tokens of two spaces' folded coordinates, rows x (d_o,) and y (d_r,), in float64.

    Attributes:
        cross: of x^T y, (d_o, d_r).
        sums: of x and of y.
        squares: of x^2 and of y^2.
        gram: of x^T x, (d_o, d_o), where it is wanted; else empty.
        tokens: how many were summed.
    """

    cross: Tensor
    sums: tuple[Tensor, Tensor]
    squares: tuple[Tensor, Tensor]
    gram: Tensor
    tokens: int = 0

    @classmethod
    def of(cls, origin: int, receiving: int, grams: bool = False) -> "Moments":
        """No tokens yet."""
        def zeros(*sizes: int) -> Tensor:
            return torch.zeros(sizes, dtype=torch.float64)

        return cls(zeros(origin, receiving), (zeros(origin), zeros(receiving)),
                   (zeros(origin), zeros(receiving)), zeros(origin, origin) if grams else zeros(0, 0))

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add tokens (T, d_o) and (T, d_r)."""
        x, y = x.double(), y.double()
        self.cross += x.T @ y
        for side, rows in enumerate((x, y)):
            self.sums[side].add_(rows.sum(0))
            self.squares[side].add_(rows.square().sum(0))
        if self.gram.numel():
            self.gram += x.T @ x
        self.tokens += len(x)

    @property
    def centred(self) -> Tensor:
        """Cross-moments about the means, (d_o, d_r)."""
        return self.cross - torch.outer(*self.sums) / max(1, self.tokens)

    @property
    def correlation(self) -> Tensor:
        """Pearson's correlation of each unit with each, (d_o, d_r); 0 for a unit that never changes."""
        left, right = ((squares - sums.square() / max(1, self.tokens)).clamp_min(0).sqrt()
                       for squares, sums in zip(self.squares, self.sums, strict=True))
        spread = torch.outer(left, right)
        return torch.where(spread > 1e-12 * spread.max(), self.centred / spread.clamp_min(1e-300), 0.0)


def moments(origin: Host, receiving: Host, pairs: Sequence[Pair], texts: Calibration,
            grams: bool = False) -> dict[Pair, Moments]:
    """Moments of each pair of spaces over the texts, which both hosts read once.

    Raises:
        UserError: a space that a host lacks, fewer tokens than twice the widest space, tokenizers that cannot
            be aligned, or a host that gives numbers that are not finite.
    """
    pairs = list(dict.fromkeys(pairs))
    sizes = {pair: (pair[0].size(origin.spec.shape), pair[1].size(receiving.spec.shape)) for pair in pairs}
    widest = max(max(size) for size in sizes.values())
    batches = list(aligned_batches(origin, receiving, texts))
    tokens = sum(aligned.tokens for aligned in batches)
    if tokens < min(texts.tokens, 2 * widest):
        raise UserError(f"calibration texts '{texts.name}' give {tokens} tokens that both hosts have, and "
                        f"the widest space of hosts '{origin.spec.name}' and '{receiving.spec.name}' has "
                        f"{widest} coordinates: at least {2 * widest} are needed; name more texts")
    check_tokens(tokens, widest)
    found = {pair: Moments.of(*sizes[pair], grams) for pair in pairs}
    readers = (Reader(origin, [one for one, _ in pairs]), Reader(receiving, [other for _, other in pairs]))
    for aligned in batches:
        x, y = (reader.read(ids, mask, picks) for reader, (ids, mask, picks) in zip(
            readers, (aligned.origin, aligned.receiving), strict=True))
        for one, other in pairs:
            found[one, other].add(x[one], y[other])
    return found


def check_tokens(tokens: int, widest: int) -> None:
    """Refuse to compare spaces of so many coordinates on fewer tokens than twice that."""
    if tokens < 2 * widest:
        raise UserError(f"{tokens} tokens are too few to compare spaces of {widest} coordinates: at least "
                        f"{2 * widest} are needed; raise the number of tokens (--calibrate-tokens; in a "
                        "study port.NAME.calibration.tokens)")


def aligned_batches(origin: Host, receiving: Host, texts: Calibration) -> Iterator[Aligned]:
    """Texts in the order of the calibration, until it has its tokens."""
    seen = 0
    limit = min(_length(origin), _length(receiving))
    for first in range(0, len(texts.texts), BATCH):
        if seen >= texts.tokens:
            return
        some = [plain(text) for text in texts.texts[first:first + BATCH]]
        aligned = align(origin.tokenizer, receiving.tokenizer, some, limit)
        seen += aligned.tokens
        if aligned.tokens:
            yield aligned


def _length(host: Host) -> int:
    config = host.model.config
    limits = [getattr(config, name, None) for name in ("max_position_embeddings", "sliding_window")]
    return min([LENGTH, *(limit - 2 for limit in limits if limit)])


class _Enough(Exception):
    """All that is wanted of a forward pass was seen."""


class Reader:
    """Reads a host's spaces in a forward pass, up to the last one that is wanted."""

    def __init__(self, host: Host, spaces: Sequence[Space]):
        self.host = host
        self.places = {space: place_of(host, space) for space in dict.fromkeys(spaces)}
        self.folds = {space: fold(host, space) for space in self.places}
        self.activation = activation_of(host)

    @torch.inference_mode()
    def read(self, ids: Tensor, mask: Tensor, picks: tuple[Tensor, Tensor]) -> dict[Space, Tensor]:
        """Folded coordinates of each space at the picked tokens, (T, d).

        Args:
            ids, mask: (B, T), padded on the right.
            picks: row and column of each token that counts.

        Raises:
            UserError: they are not finite.
        """
        caught: dict[tuple[str, str], Tensor] = {}
        wanted = {(place.module, place.side) for place in self.places.values()}
        hooks = [_hook(self.host, name, side, caught, len(wanted)) for name, side in wanted]
        device = self.host.device
        try:
            with computing(device, self.host.precision), suppress(_Enough):
                _forward(self.host, ids.to(device), mask.to(device),
                         any(space.site == "head" for space in self.places))
        finally:
            for hook in hooks:
                hook.remove()
        found = {}
        for space, place in self.places.items():
            states = caught[place.module, place.side].cpu().float()
            if states.ndim == 2:  # OPT's feed-forward networks read the tokens of all texts as one
                states = states.unflatten(0, (len(ids), -1))
            if states.shape[1] > ids.shape[1]:  # of a decoder that began at its start token
                states = states[:, 1:]
            part = states[picks[0], picks[1]][:, place.start:place.start + place.size]
            if space.site == "ffn_gate":  # before the activation its coordinates do not fill the space
                part = self.activation(part)
            scale = self.folds[space]
            found[space] = part if scale is None else part.double() * scale
            if not found[space].isfinite().all():
                raise UserError(f"host '{self.host.spec.name}' gives numbers that are not finite at "
                                f"{space.words}; it cannot be compared with another")
        return found


def activation_of(host: Host) -> Callable[[Tensor], Tensor]:
    """What stands between the matrices of a host's feed-forward network."""
    from transformers.activations import ACT2FN

    config = host.model.config
    names = ("hidden_activation", "hidden_act", "dense_act_fn", "activation_function", "activation")
    name = next(value for one in names if (value := getattr(config, one, None)))
    found: Callable[[Tensor], Tensor] = ACT2FN[name]
    return found


def _hook(host: Host, name: str, side: str, caught: dict[tuple[str, str], Tensor],
          wanted: int) -> torch.utils.hooks.RemovableHandle:
    """Keep what a module reads or gives, and end the forward pass once so many are kept."""
    module = host.model.get_submodule(name)

    def keep(value: object) -> None:
        states = value[0] if isinstance(value, tuple) else value
        assert isinstance(states, Tensor)
        caught[name, side] = states.detach()
        if len(caught) == wanted:
            raise _Enough

    if side == "in":
        return module.register_forward_pre_hook(lambda module, given: keep(given))
    return module.register_forward_hook(lambda module, given, out: keep(out))


def _forward(host: Host, ids: Tensor, mask: Tensor, head: bool) -> None:
    """The texts through the whole host; an encoder-decoder writes them behind its start token, so that its
    decoder has read as much of a text at a token as a decoder alone has."""
    seen = text_mask(host.family, mask)
    model = host.model
    if model.config.is_encoder_decoder:
        start = torch.full_like(ids[:, :1], model.config.decoder_start_token_id)
        written, real = torch.cat([start, ids], 1), torch.cat([torch.ones_like(mask[:, :1]), mask], 1)
        model(input_ids=ids, attention_mask=seen, decoder_input_ids=written,
              decoder_attention_mask=causal_mask(real), use_cache=False)
    elif FAMILIES[host.family].scoring == "head":
        model(input_ids=ids, attention_mask=seen)
    else:
        # OPT would count them by the mask, which is ready-made
        places = torch.arange(ids.shape[1], device=ids.device)[None]
        (model if head else body(model))(input_ids=ids, attention_mask=seen, position_ids=places,
                                         use_cache=False)
