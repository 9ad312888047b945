"""What a port by `procrustes` takes of memory and time, before any work: by the spaces that it maps, the
texts that both hosts read, and the rates of this machine."""

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from portability.core.specs import HostShape, HostSpec, PortSpec
from portability.hosts.host import load_skeleton
from portability.methods.folder import AdapterFolder
from portability.porting.activations import BATCH, LENGTH, Pair, check_tokens
from portability.porting.adapter import begin
from portability.porting.calibration import Calibration
from portability.porting.layer_maps import MEASURED
from portability.porting.measured import read_at
from portability.porting.roles import by_roles
from portability.porting.spaces import STREAM, Space
from portability.porting.strategies.procrustes import PROCRUSTES

SAMPLES = 1024, 512  # widths of the matrices whose products, and whose decomposition, are timed
Sizes = tuple[int, int]


@dataclass(frozen=True)
class PortSize:
    """What a port takes.

    Attributes:
        weights: bytes of both hosts, in fp32.
        beside: bytes at most beside them.
        tokens: that both hosts read.
        passes: how often they do.
        flops: of reading, of moments (fp64), and of singular value decompositions (fp64).
    """

    weights: int
    beside: int
    tokens: int
    passes: int
    flops: tuple[float, float, float]

    @property
    def seconds(self) -> float:
        """On as many threads as torch has, by rates that are measured in about a second."""
        return sum(flops / rate for flops, rate in zip(self.flops, rates(), strict=True))


def size_of(adapter: AdapterFolder, origin: HostSpec, receiving: HostSpec, how: PortSpec,
            texts: Calibration) -> PortSize | None:
    """What a port takes; None of another strategy than `procrustes` with its own decompositions.

    Raises:
        UserError: as `adapter.begin`, or too few tokens for the widest space.

    Source: counts of operations after Golub & Van Loan (2013), table 8.6.1 (thin SVD: 14 m n^2 + 8 n^3); of
        memory, LAPACK's gesdd beside what is alive here (D-143).
    """
    if how.strategy != "procrustes" or how.options.get("ridge") is not None:
        return None
    if how.layer_map == MEASURED:  # takes as many layers
        how = replace(how, layer_map="stretch")
    begun = begin(adapter, origin, receiving, how, texts=texts)
    module, _ = by_roles(begun.module, begun.context.fresh, origin.shape)
    parts, shapes = PROCRUSTES.begun(module, begun.context).parts, (origin.shape, receiving.shape)
    found = [{pair: read_at(pair) for pair in part} for part in parts]
    sizes = {one: (one[0].size(shapes[0]), one[1].size(shapes[1]))
             for part in found for many in part.values() for one in many}
    check_tokens(texts.tokens, max(map(max, sizes.values())))
    models = [load_skeleton(host).model for host in (origin, receiving)]
    weights = [sum(one.numel() for one in model.parameters()) for model in models]
    layers = [whole - model.get_input_embeddings().weight.numel()
              for whole, model in zip(weights, models, strict=True)]
    reading = sum(2.0 * texts.tokens * count * max(_depth(pair[side], shapes[side]) for pair in part)
                  for part in parts for side, count in enumerate(layers))
    products = sum(2.0 * texts.tokens * one * other for one, other in sizes.values())
    solving = sum(_flops([sizes[one] for one in many], shapes)
                  for part in found for many in dict.fromkeys(part.values()))
    beside = max(_bytes(list(dict.fromkeys(part.values())), sizes, shapes, texts.tokens) for part in found)
    return PortSize(4 * sum(weights), beside, texts.tokens, len(parts), (reading, products, solving))


def _depth(space: Space, shape: HostShape) -> float:
    """Share of a host that a forward pass up to a space goes through."""
    whole = space.stack not in shape.layers or space.layer < 0 or len(shape.layers) > 1
    return 1.0 if whole else (space.layer + 1) / shape.layers[space.stack]


def _flops(many: Sequence[Sizes], shapes: tuple[HostShape, HostShape]) -> float:
    """Of the decomposition of a space, or of the heads of an attention."""
    few, most = sorted(many[0])
    if len(many) > 1:
        return 22.0 * few * most * min(shape.head_dim for shape in shapes)
    return 14.0 * most * few**2 + 8.0 * few**3


def _bytes(places: Sequence[tuple[Pair, ...]], sizes: dict[Pair, Sizes], shapes: tuple[HostShape, HostShape],
           tokens: int) -> int:
    """At most at once while the maps of a part of the layers are made: moments while texts are read; or what
    is left of them, the maps so far, and one solver's own."""
    cells = {pair: sizes[pair][0] * sizes[pair][1] for many in places for pair in many}
    spaces = {(side, pair[side]): sizes[pair][side] for pair in cells for side in (0, 1)}
    shape = max(shapes, key=lambda one: one.hidden)
    rows, caught = min(tokens, BATCH * LENGTH), [0, 0]
    for (side, _), size in spaces.items():
        caught[side] += 4 * size
    folded = sum(4 * size for (_, space), size in spaces.items()
                 if space.kind == "hidden" and space.side == "in" and space.site != STREAM)
    passing = 4 * max(2 * (shape.hidden + shape.ffn), 3 * shape.heads * LENGTH)
    # a host is asked while the other's states wait; then both wait beside a product and its fp64 factors
    asked = rows * (sum(caught) + max(caught[1] + folded, passing))
    added = rows * (sum(caught) + folded + 8 * max(map(sum, sizes.values()))) + 8 * max(cells.values())
    most = 8 * sum(cells.values()) + max(asked, added)
    left, made = 8 * sum(cells.values()), 0
    for many in places:
        own, beside = cells[many[0]], cells[many[-1]]  # of an attention: queries, and values
        few, whole = min(sizes[many[0]]), sum(sizes[many[0]])
        maps, solver = (own, own + few * whole + 3 * few**2) if len(many) == 1 else (
            2 * (own + beside), 5 * own + 4 * beside)
        most = max(most, left + made + 8 * solver)
        left, made = left - 8 * sum(cells[one] for one in many), made + 8 * maps
    return most


@functools.cache
def rates() -> tuple[float, float, float]:
    """Operations a second here, the better of two tries: of products of fp32 and of fp64 matrices, and of a
    singular value decomposition in fp64."""
    wide, narrow = (torch.randn(size, size, generator=torch.Generator().manual_seed(0)) for size in SAMPLES)
    double = wide.double()

    def rate(flops: float, work: Callable[[], object]) -> float:
        taken = []
        for _ in range(2):
            began = time.perf_counter()
            work()
            taken.append(time.perf_counter() - began)
        return flops / min(taken)

    product = 2.0 * SAMPLES[0] ** 3
    return (rate(product, lambda: wide @ wide), rate(product, lambda: double @ double),
            rate(22.0 * SAMPLES[1] ** 3, lambda: torch.linalg.svd(narrow.double(), full_matrices=False)))
