"""From a teacher's weights and seed examples to a student's start values."""

import math
import time
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from portability.core.architectures import LORA_AXES, Slot
from portability.core.errors import UserError
from portability.core.seeds import stream
from portability.core.specs import HostShape, HostSpec
from portability.inits.extraction.cuts import CUTS, LAYER_CHOICES, Cut, Pending, pending_cuts, residual_offset
from portability.inits.extraction.factors import low_rank
from portability.inits.extraction.options import ExtractionOptions, ExtractReport, Place
from portability.inits.extraction.sensitivity import Head, Offload, Scores, check_seeds, ones, sensitivity
from portability.inits.extraction.threads import threads, total
from portability.inits.extraction.weights import Weights, before_work, check_fit, shared_tokens
from portability.methods.module import Axes, ModuleState
from portability.tasks.base import Answered


def extract(
    teacher: HostSpec, student: HostSpec, seeds: Sequence[Answered], options: ExtractionOptions, seed: int,
    head: Head | None = None, device: str = "cpu", free: Callable[[], int] = lambda: 1,
) -> tuple[ModuleState, ExtractReport]:
    """Low-rank pairs for the student, cut out of the teacher by sensitivity and factorised.

    Args:
        seeds: examples with their answers (section 3.1) in the teacher's tokens; not looked at where
            ``options.scores`` is "ones".
        seed: of the random layers and cuts, where the options have any.
        head: an encoder teacher's classification head, "head.weight" (C, d) and "head.bias" (C,).
        device: where gradients, cuts and factors are computed ("cpu", "cuda:N").
        free: how many threads may be used now (on a CPU); no number depends on it.

    Returns:
        The module: for each matrix of the student a pair of fp32 tensors, A ("rank", *in) and B (*out,
        "rank"), so that the matrix's change is B A. An embedding's matrix is taken as (hidden, vocabulary):
        its weight changes by (B A)^T. Slots of embedding and head are ("shared", 0, site). A teacher that
        ties them gives the same cut to both.

    Raises:
        UserError: hosts of two families, a student larger than the teacher, sites that one of them lacks, too
            few tokens in common, a rank that does not fit, weights that are not finite, or what `sensitivity`
            raises.

    Source: Zhong et al. (ICLR 2024), section 3; "aligned", unequal vocabularies and balanced splits are our
        choice.
    """
    started = time.perf_counter()
    hosts = Weights(teacher, device), Weights(student, device)
    with torch.device(device), threads(free if device == "cpu" else lambda: 1), Offload(device) as offload:
        work = _Extraction(hosts, options, seed, offload)
        work.cut(ones(hosts[0], options) if options.scores == "ones" else
                 sensitivity(hosts[0], seeds, options, head))
        report = ExtractReport(len(seeds))
        module = work.factorise(report)
    report.seconds = time.perf_counter() - started
    return module, report


def check_extraction(
    teacher: HostSpec, student: HostSpec, seeds: Sequence[Answered], options: ExtractionOptions,
    head: Head | None = None,
) -> int:
    """See, without reading a weight, that an extraction can be made.

    Returns:
        Bytes that it holds at once at least: the teacher's largest layer, embedding or head in fp32, and as
        much again for its scores, where examples are looked at.

    Raises:
        UserError: as `extract`, where that can be said without weights.
    """
    weights = before_work(teacher)
    check_fit(weights, before_work(student), options)
    if options.scores == "sensitivity":
        check_seeds(seeds, weights, head)
    parts = [list(names.values()) for names in weights.layers.values()]
    parts += [[name] for site, name in weights.shared.items() if options.wanted(site)]
    largest = max(sum(math.prod(weights.shapes[name]) for name in names) for names in parts)
    return 4 * largest * (2 if options.scores == "sensitivity" else 1)


class _Extraction:
    """Two hosts that fit each other, and the cuts of the teacher's matrices as its layers go by; cuts wait on
    disk, because some are as large as the student."""

    def __init__(
        self, hosts: tuple[Weights, Weights], options: ExtractionOptions, seed: int, offload: Offload
    ):
        self.teacher, self.options, self.seed, self.offload = hosts[0], options, seed, offload
        self.have, self.want = check_fit(*hosts, options)
        self.shapes = self.teacher.spec.shape, hosts[1].spec.shape
        self.totals = {stack: [0.0] * depth for stack, depth in self.shapes[0].layers.items()}
        self.cuts: dict[Place, tuple[tuple[int, int] | None, float]] = {}  # offset and captured share
        self.pending: dict[Place, Pending] = {}
        self.tokens = torch.empty(2, 0, dtype=torch.int64)  # rows of teacher and student for the same token
        self.shared = [place for place in self.want if place.stack == "shared"]
        if self.shared:
            self.tokens = shared_tokens(*hosts, options.rank)
            for place in self.shared:
                self._rows(place)  # refuses numbers that are not finite before any work

    def _rows(self, place: Place) -> Tensor:
        """(S, hidden) rows of the teacher's embedding or head that belong to shared tokens.

        Raises:
            UserError: a number in them is not finite.
        """
        try:
            return self.teacher.read(self.teacher.shared[place.site], self.tokens[0])
        except UserError as error:
            raise UserError(f"{error}, or leave out embedding and head (the sites of the method)") from error

    def layers(self) -> dict[str, list[int]]:
        """Per stack, the teacher layers behind the student's, by the totals so far."""
        choice = LAYER_CHOICES[self.options.layers]
        return {stack: choice(self.totals[stack], depth, stream(self.seed, "extraction", "layers", stack))
                for stack, depth in self.shapes[1].layers.items()}

    def cut(self, scores: Iterable[Scores]) -> None:
        """Choose the cuts of every layer that may be chosen, and the layers; then the cut of the residual
        stream, and with it all aligned cuts."""
        fixed = None if self.options.layers == "sensitivity" else self.layers()
        for stack, layer, tensors in scores:
            if stack != "shared":
                self.totals[stack][layer] = sum(map(total, tensors.values()))
            if stack == "shared" or fixed is None or layer in fixed[stack]:
                self._cut_tensors(stack, layer, tensors)
            tensors.clear()  # freed before the next layer is scored
        layers, width = self.layers(), self.shapes[1].hidden
        chosen = {place: matrix for place, matrix in self.pending.items()
                  if place.stack == "shared" or place.layer in layers[place.stack]}
        offset = residual_offset(chosen.values(), width) if chosen else 0
        for place, matrix in chosen.items():
            self._keep(place, *matrix.cut(offset, width))

    def _cut_tensors(self, stack: str, layer: int, tensors: dict[str, Tensor]) -> None:
        """The cuts of a layer's matrices; or of embedding and head, of the rows of shared tokens, all of
        which are kept (a tied matrix is both)."""
        teacher, student = self.shapes
        if stack == "shared":
            scores = {place: part[self.tokens[0]] for site, part in tensors.items() for place in self.shared
                      if self.teacher.tied or place.site == site}
        else:
            order, parts = list(tensors), self.teacher.parts
            places = [place for place in self.have if place[:2] == (stack, layer)]
            scores = {place: self.teacher.view(place, tensors[parts[place].short])
                      for place in sorted(places, key=lambda place: order.index(parts[place].short))}
        if self.options.structure == "aligned" and stack == "shared":
            profiles = {place: rows.sum(0, dtype=torch.float64) for place, rows in scores.items()}
            self.pending |= {place: Pending(torch.arange(len(self.tokens[0])), profile, float(profile.sum()))
                             for place, profile in profiles.items()}
        elif self.options.structure == "aligned":
            pending = pending_cuts({place.site: matrix for place, matrix in scores.items()}, teacher, student)
            self.pending |= {place: pending[place.site] for place in scores}
        else:
            for place, matrix in scores.items():
                size = ((len(matrix), student.hidden) if stack == "shared"
                        else self.want[place._replace(layer=0)])
                drawn_as = place._replace(site=next(iter(tensors))) if stack == "shared" else place
                generator = stream(self.seed, "extraction", "cut", drawn_as.key)
                cut = CUTS[self.options.structure](matrix, size, generator)
                self._keep(place, cut, cut.share(matrix))

    def _keep(self, place: Place, cut: Cut, captured: float) -> None:
        self.offload.put(place.key, rows=cut.rows, columns=cut.columns)
        self.cuts[place] = cut.offset, captured

    def factorise(self, report: ExtractReport) -> ModuleState:
        """The module out of the chosen layers; what was done goes into the report."""
        report.layers, report.totals = self.layers(), self.totals
        report.shared_tokens = len(self.tokens[0]) if self.shared else None
        pairs: tuple[dict[Slot, Tensor], dict[Slot, Axes]] = {}, {}
        blocks: tuple[dict[Slot, Tensor], dict[Slot, Axes]] = {}, {}
        for place in self.want:
            matrix = self._chosen(place, report)
            pair_a, pair_b, report.kept[place] = low_rank(matrix, self.options.rank, self.options.split)
            made = [("A", pair_a, pairs), ("B", pair_b, pairs), ("D", matrix, blocks)]
            for role, part, (tensors, axes) in made[: 3 if self.options.blocks else 2]:
                whole = self._all_tokens(place, role, part)
                slot, tensor, axes[slot] = in_slot(place, role, whole, self.options.rank, self.shapes[1])
                tensors[slot] = tensor.cpu()
        report.blocks = ModuleState(*blocks) if self.options.blocks else None
        return ModuleState(*pairs)

    def _chosen(self, place: Place, report: ExtractReport) -> Tensor:
        """The teacher's matrix (out, in) as it was cut for a place of the student, over shared tokens
        alone."""
        inside = place.stack != "shared"
        source = place._replace(layer=report.layers[place.stack][place.layer]) if inside else place
        offset, report.captured[place] = self.cuts[source]
        cut, turned = Cut(**self.offload.get(source.key), offset=offset), place.site == "embedding"
        report.offsets[place] = (offset[1], offset[0]) if offset is not None and turned else offset
        rows = cut.of(self.teacher.matrix(source) if inside else self._rows(place))
        return rows.T if turned else rows  # an embedding is cut as (tokens, hidden)

    def _all_tokens(self, place: Place, role: str, matrix: Tensor) -> Tensor:
        """A matrix over the student's whole vocabulary, with zeros where the teacher has no such token."""
        along = 1 if place.site == "embedding" else 0
        if place.stack != "shared" or role == "AB"[along]:
            return matrix
        size = list(matrix.shape)
        size[along] = self.want[place][along]
        return torch.zeros(size).index_copy_(along, self.tokens[1], matrix)


def in_slot(
    place: Place, role: str, matrix: Tensor, rank: int, shape: HostShape
) -> tuple[Slot, Tensor, Axes]:
    """A matrix in the shape of its slot on a host of this shape, with the slot and the labels of its axes.

    Args:
        role: "A", of a matrix (r, in); "B" (out, r); or "D", the whole matrix (out, in) behind a pair.
    """
    into, out = LORA_AXES[place.site.removeprefix("cross_")]
    axes = {"A": ("rank", *into), "B": (*out, "rank"), "D": (*out, *into)}[role]
    sizes = {"rank": rank, "vocab": -1}
    size = [sizes[axis] if axis in sizes else int(getattr(shape, axis)) for axis in axes]
    return Slot(*place, role), matrix.reshape(size).contiguous(), axes
