"""From a teacher's weights and seed examples to a student's start values."""

import time
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from portability.core.architectures import LORA_AXES, Slot
from portability.core.errors import UserError
from portability.core.seeds import stream
from portability.core.specs import HostShape, HostSpec
from portability.inits.extraction.aligned import Pending, pending_cuts, residual_offset, shared_pending
from portability.inits.extraction.cuts import CUTS, LAYER_CHOICES, Cut
from portability.inits.extraction.factors import low_rank
from portability.inits.extraction.fit import check_family, check_fit
from portability.inits.extraction.options import ExtractionOptions, ExtractReport, Place, Seed
from portability.inits.extraction.sensitivity import SCORES, Head, Scores
from portability.inits.extraction.sizes import needs
from portability.inits.extraction.spill import Spill
from portability.inits.extraction.threads import threads, total
from portability.inits.extraction.tokens import shared_tokens
from portability.inits.extraction.weights import Weights, matrices
from portability.methods.module import Axes, ModuleState


def extract(
    teacher: HostSpec, student: HostSpec, seeds: Sequence[Seed], options: ExtractionOptions, seed: int,
    head: Head | None = None, device: str = "cpu", free: Callable[[], int] = lambda: 1,
) -> tuple[ModuleState, ExtractReport]:
    """Low-rank pairs for the student, cut out of the teacher by sensitivity and factorised.

    Args:
        seeds: examples in the teacher's tokens; not looked at where ``options.scores`` is "ones".
        seed: of the random layers and cuts, where the options have any.
        head: an encoder teacher's classification head, "head.weight" (C, d) and "head.bias" (C,).
        device: where gradients, cuts and factors are computed ("cpu", "cuda:N").
        free: how many threads may be used now (on a CPU); no number depends on it.

    Returns:
        The module: for each matrix of the student a pair of fp32 tensors, A ("rank", *in) and B (*out, "rank"), so that the
        matrix's change is B A. An embedding's matrix is taken as (hidden, vocabulary): its weight changes by (B A)^T. Slots of
        embedding and head are ("shared", 0, site). A teacher that ties them gives the same cut to both.

    Raises:
        UserError: hosts of two families, a student larger than the teacher, sites that one of them lacks, too few tokens in
            common, a rank that does not fit, weights that are not finite, or what `sensitivity` raises.

    Source: Zhong et al. (ICLR 2024), section 3; "aligned", unequal vocabularies and balanced splits are our choice.
    """
    started = time.perf_counter()
    hosts = Weights(teacher, device), Weights(student, device)
    check_family(*hosts)
    with torch.device(device), threads(free if device == "cpu" else lambda: 1), Spill(device) as spill:
        work = _Extraction(hosts, options, seed, spill)
        scores = SCORES[options.scores](hosts[0], seeds, options, head)
        report = ExtractReport(len(seeds), *needs(*hosts, seeds, options))
        work.cut(scores)
        module = work.factorise(report)
    report.seconds = time.perf_counter() - started
    return module, report


def peak_bytes(
    teacher: HostSpec, student: HostSpec, seeds: Sequence[Seed], options: ExtractionOptions, head: Head | None = None
) -> tuple[int, int]:
    """Memory that `extract` will take beyond what the process holds, and disk under TMPDIR, in bytes (extraction/sizes.py);
    no weight is read.

    Raises:
        UserError: as `extract`, where that can be said without weights.
    """
    hosts = Weights(teacher), Weights(student)
    check_family(*hosts)
    check_fit(*hosts, options)
    SCORES[options.scores](hosts[0], seeds, options, head)
    return needs(*hosts, seeds, options)


class _Extraction:
    """Two hosts that fit each other, and the cuts of the teacher's matrices as its layers go by; cuts are spilled, because
    some are as large as the student."""

    def __init__(self, hosts: tuple[Weights, Weights], options: ExtractionOptions, seed: int, spill: Spill):
        self.teacher, self.student = hosts
        self.options, self.seed, self.spill = options, seed, spill
        self.have, self.want = check_fit(*hosts, options)
        self.shapes = self.teacher.spec.shape, self.student.spec.shape
        self.totals = {stack: [0.0] * depth for stack, depth in self.shapes[0].layers.items()}
        self.cuts: dict[Place, tuple[tuple[int, int] | None, float]] = {}  # offset and captured share
        self.pending: dict[Place, Pending] = {}
        self.tokens: tuple[Tensor, Tensor] | None = None
        if any(place.stack == "shared" for place in self.want):
            sizes = [host.shapes[host.shared["embedding"]][0] for host in hosts]
            self.tokens = shared_tokens(*hosts, (sizes[0], sizes[1]), options.rank)
            for site in {place.site for place in self.want if place.stack == "shared"}:
                _check_rows(self.teacher, site, self.tokens[0])

    def layers(self) -> dict[str, list[int]]:
        """Per stack, the teacher layers behind the student's, by the totals so far."""
        choice = LAYER_CHOICES[self.options.layers]
        return {stack: choice(self.totals[stack], depth, stream(self.seed, "extraction", "layers", stack))
                for stack, depth in self.shapes[1].layers.items()}

    def cut(self, scores: Iterable[Scores]) -> None:
        """Choose the cuts of every layer that may be chosen, and the layers."""
        fixed = None if self.options.layers == "sensitivity" else self.layers()
        for stack, layer, tensors in scores:
            if stack == "shared":
                self._cut_shared(tensors)
            else:
                self.totals[stack][layer] = sum(map(total, tensors.values()))
                if fixed is None or layer in fixed[stack]:
                    self._cut_layer(stack, layer, tensors)
            tensors.clear()  # freed before the next layer is scored
        if self.pending:
            self._cut_residual()

    def _cut_layer(self, stack: str, layer: int, tensors: dict[str, Tensor]) -> None:
        found = matrices(self.teacher.family, stack, layer, tensors)
        scores = {site: matrix for site, matrix in found.items() if Place(stack, layer, site) in self.have}
        if self.options.structure == "aligned":
            pending = pending_cuts(scores, *self.shapes)
            self.pending |= {Place(stack, layer, site): matrix for site, matrix in pending.items()}
            return
        for site, matrix in scores.items():
            self._cut_matrix(Place(stack, layer, site), matrix, self.want[Place(stack, 0, site)])

    def _cut_shared(self, tensors: dict[str, Tensor]) -> None:
        """Cuts of embedding and head, of the rows of shared tokens; a tied matrix is both."""
        assert self.tokens is not None
        width = self.shapes[1].hidden
        for site, scores in tensors.items():
            rows = scores[self.tokens[0]]
            both = ("embedding", "head") if self.teacher.tied else (site,)
            for place in [Place("shared", 0, one) for one in both if Place("shared", 0, one) in self.want]:
                if self.options.structure == "aligned":
                    self.pending[place] = shared_pending(rows)
                else:
                    self._cut_matrix(place, rows, (len(rows), width), Place("shared", 0, site))

    def _cut_matrix(self, place: Place, scores: Tensor, size: tuple[int, int], drawn_as: Place | None = None) -> None:
        generator = stream(self.seed, "extraction", "cut", (drawn_as or place).key)
        cut = CUTS[self.options.structure](scores, size, generator)
        self._keep(place, cut, cut.share(scores))

    def _cut_residual(self) -> None:
        """The cut of the residual stream, and with it all aligned cuts."""
        layers = self.layers()
        chosen = {place: matrix for place, matrix in self.pending.items()
                  if place.stack == "shared" or place.layer in layers[place.stack]}
        width = self.shapes[1].hidden
        offset = residual_offset(chosen.values(), width)
        for place, matrix in chosen.items():
            self._keep(place, *matrix.cut(offset, width))

    def _keep(self, place: Place, cut: Cut, captured: float) -> None:
        self.spill.put(place.key, {"rows": cut.rows, "columns": cut.columns})
        self.cuts[place] = cut.offset, captured

    def factorise(self, report: ExtractReport) -> ModuleState:
        """The module out of the chosen layers; what was done goes into the report."""
        report.layers, report.totals = self.layers(), self.totals
        report.shared_tokens = None if self.tokens is None else len(self.tokens[0])
        tensors: dict[Slot, Tensor] = {}
        axes: dict[Slot, Axes] = {}
        blocks: tuple[dict[Slot, Tensor], dict[Slot, Axes]] = {}, {}
        for place in self.want:
            inside = place.stack != "shared"
            source = place._replace(layer=report.layers[place.stack][place.layer]) if inside else place
            offset, report.captured[place] = self.cuts[source]
            cut = Cut(**self.spill.get(source.key), offset=offset)
            turned = offset is not None and place.site == "embedding"  # whose cut is made in (tokens, hidden)
            report.offsets[place] = (offset[1], offset[0]) if turned else offset
            matrix = cut.of(self.teacher.matrix(source)) if inside else self._shared_matrix(place, cut)
            pair_a, pair_b, report.kept[place] = low_rank(matrix, self.options.rank, self.options.split)
            if not inside:
                pair_a, pair_b = self._all_tokens(place, pair_a, pair_b)
            if self.options.blocks:
                slot = Slot(*place, "D")
                blocks[0][slot], blocks[1][slot] = self._block(place, matrix)
            for role, tensor, labels in pair_parts(place, pair_a, pair_b, self.shapes[1]):
                tensors[Slot(*place, role)], axes[Slot(*place, role)] = tensor.cpu(), labels
        report.blocks = ModuleState(*blocks) if self.options.blocks else None
        return ModuleState(tensors, axes)

    def _block(self, place: Place, matrix: Tensor) -> tuple[Tensor, Axes]:
        """A cut in the shape of its slot, over all the student's tokens, with its labels."""
        into, out = LORA_AXES[place.site.removeprefix("cross_")]
        if place.stack == "shared":
            assert self.tokens is not None
            along = 1 if place.site == "embedding" else 0
            matrix = torch.zeros(self.want[place]).index_copy_(along, self.tokens[1], matrix)
        sizes = [self.shapes[1].size(axis) or self.want[place][int(axis in into)] for axis in out + into]
        return matrix.reshape(sizes).clone().cpu(), (*out, *into)

    def _shared_matrix(self, place: Place, cut: Cut) -> Tensor:
        """The cut of an embedding (hidden, shared tokens) or head (shared tokens, hidden)."""
        assert self.tokens is not None
        rows = cut.of(self.teacher.read(self.teacher.shared[place.site], self.tokens[0]))
        return rows.T if place.site == "embedding" else rows

    def _all_tokens(self, place: Place, pair_a: Tensor, pair_b: Tensor) -> tuple[Tensor, Tensor]:
        """A pair over the student's whole vocabulary: zero where the teacher has no such token."""
        assert self.tokens is not None
        if place.site == "embedding":
            wide = torch.zeros(len(pair_a), self.want[place][1])
            return wide.index_copy_(1, self.tokens[1], pair_a), pair_b
        tall = torch.zeros(self.want[place][0], pair_b.shape[1])
        return pair_a, tall.index_copy_(0, self.tokens[1], pair_b)


def _check_rows(teacher: Weights, site: str, rows: Tensor) -> None:
    """Refuse rows of the embedding or head that are to be cut and are not finite."""
    try:
        teacher.read(teacher.shared[site], rows)
    except UserError as error:
        raise UserError(f"{error}, or leave out embedding and head (the sites of the method)") from error


def pair_parts(place: Place, pair_a: Tensor, pair_b: Tensor, shape: HostShape) -> list[tuple[str, Tensor, Axes]]:
    """Role, tensor in its slot's shape, and labels of A (r, in) and B (out, r) on a host of this shape."""
    into, out = LORA_AXES[place.site.removeprefix("cross_")]
    sizes = {axis: shape.size(axis) for axis in into + out} | {"vocab": -1}
    parts = []
    for role, tensor, labels in (("A", pair_a, ("rank", *into)), ("B", pair_b, (*out, "rank"))):
        size = [len(pair_a) if axis == "rank" else sizes[axis] for axis in labels]
        parts.append((role, tensor.reshape([int(one or 0) for one in size]).contiguous(), labels))
    return parts
