"""Memory and disk that an extraction needs, from shapes alone, before a weight is read."""

import math
from collections.abc import Sequence

from portability.inits.extraction.layerwise_forward import LAYERWISE
from portability.inits.extraction.options import ExtractionOptions, Place, Seed
from portability.inits.extraction.weights import EMBEDDING, Weights

FP32, FP64 = 4, 8  # bytes a number


def needs(
    teacher: Weights, student: Weights, seeds: Sequence[Seed], options: ExtractionOptions
) -> tuple[int, int]:
    """Most memory that `extract` takes beyond what the process holds before it, and disk under TMPDIR, in
    bytes.

    The stages come one after another, so the largest counts:

    - a layer's backward pass: its weights and the sums of its gradients, its largest matrix twice more (its
      absolute values, and what the allocator keeps), and a batch's activations;
    - choosing cuts: the layer's scores, and sums over windows of the largest matrix in float64;
    - head and embedding, if extracted: the matrix, its sums, one example's gradient, one answer's logits;
    - factors: the largest matrix, its cut in fp32 and float64, and a Gram matrix of the cut's smaller side;
      all cuts, if they are asked for.

    Disk holds each stack's states at every boundary, the gradients at one and at the embedding, and a T5's at
    its biases.
    """
    shape, family = teacher.spec.shape, teacher.family
    wanted, student_sizes = teacher.places(options), student.places(options)
    layers = [sum(math.prod(teacher.shapes[name]) for name in names.values())
              for names in teacher.layers.values()]
    every = teacher.places(ExtractionOptions())
    inside = [math.prod(size) for place, size in every.items() if place.stack != "shared"]
    largest = max(inside)
    cut = max((math.prod(size) for place, size in wanted.items() if place.stack != "shared"), default=0)
    blocks = FP32 * sum(map(math.prod, student_sizes.values())) if options.blocks else 0
    stages = [FP32 * max(layers) + 3 * FP64 * cut, _factors(wanted, student_sizes) + blocks]
    disk = 0
    if options.scores == "sensitivity" and seeds:
        longest, tokens = _lengths(teacher, seeds, options.batch_size)
        stages.append(FP32 * (2 * max(layers) + 2 * largest) + _activations(teacher, longest))
        if any(place.stack == "shared" for place in wanted):
            vocabulary = teacher.shapes[EMBEDDING[family]][0]
            stages.append(FP32 * (4 * vocabulary * shape.hidden + 3 * vocabulary * longest[-1][1]))
        disk = FP32 * tokens * shape.hidden * sum(depth + 3 for depth in shape.layers.values())
        if family == "t5":
            disk += FP32 * len(seeds) * 2 * shape.heads * max(length for _, length in longest) ** 2
    return max(stages), disk


def _lengths(teacher: Weights, seeds: Sequence[Seed], batch: int) -> tuple[list[tuple[int, int]], int]:
    """Per stack, examples and tokens of the largest batch; tokens of all seeds, each padded to the
    longest."""
    model = LAYERWISE[teacher.family](teacher)
    inputs = [model.example(seed)[0] for seed in seeds]
    longest = [max(len(one[stack]) for one in inputs) for stack in model.stacks]
    return [(min(batch, len(seeds)), length) for length in longest], len(seeds) * max(longest)


def _activations(teacher: Weights, batches: Sequence[tuple[int, int]]) -> int:
    """Bytes that a layer's pass over a batch keeps, forward and backward: states, heads, feed-forward units,
    and attention scores, of which a T5 has those to its encoder too, and gradients of its biases.

    The counts are fitted to measured passes of all families, from above: 0.7 to 0.9 of this was taken (our
    choice).
    """
    shape, stacks = teacher.spec.shape, len(batches)
    examples, tokens = batches[0][0], max(length for _, length in batches)
    scores = (3 if stacks == 1 else 9) * shape.heads * tokens
    a_token = 8 * shape.hidden + 6 * stacks * shape.heads * shape.head_dim + 6 * shape.ffn + scores
    return FP32 * examples * tokens * a_token


def _factors(teacher: dict[Place, tuple[int, int]], student: dict[Place, tuple[int, int]]) -> int:
    """Bytes of the largest factorisation: the teacher's matrix, its cut three times, and a Gram matrix or
    singular vectors."""
    most = 0
    for place, size in student.items():
        source = max(math.prod(have) for at, have in teacher.items() if at.site == place.site)
        cut, side = math.prod(size), min(size)
        vectors = 2 * cut if side <= 512 else 0
        most = max(most, FP32 * (source + 2 * cut) + FP64 * (cut + 2 * side * side + vectors))
    return most
