"""The values of an extraction: places, options and the report."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from portability.core.errors import validate_choice
from portability.methods.module import ModuleState
from portability.methods.subtractive_lora import LoraSettings

NAMES = {
    "layers": ("sensitivity", "first", "last", "random"),
    "structure": ("block", "rows_columns", "neurons", "random_block", "random_entries", "aligned"),
    "split": ("reference", "balanced"),
    "scores": ("sensitivity", "ones"),
}


class Place(NamedTuple):
    """Where a matrix of a host stands: the slot of its pair without the role."""

    stack: str
    layer: int
    site: str

    @property
    def key(self) -> str:
        """The place as text: ``decoder.3.query``."""
        return f"{self.stack}.{self.layer}.{self.site}"


@dataclass(frozen=True)
class ExtractionOptions:
    """How to extract; defaults are the paper's.

    Attributes:
        rank: r of the pairs (16: the reference's train.sh).
        layers: which teacher layers feed the student, in their order: "sensitivity" the ones with the largest
            sums, "first", "last", "random" (the paper's ablation).
        structure: what is kept of a matrix (extraction/cuts.py; "aligned" is our own).
        split: where the singular values go: "reference" all into B, "balanced" their roots into both.
        scores: "sensitivity", or "ones" where this stage is switched off.
        sites: groups (architectures.SITE_GROUPS; a group takes what the family has of it), or single sites
            such as "query", which stands for a decoder's cross-attention query too.
        batch_size: seed examples that go through a layer together; scores do not depend on it.
        blocks: whether the cuts themselves are given beside their pairs (the formula of section 3.2 takes
            them off whole).

    Raises:
        UserError: an unknown name. (Rank and sites are a method's, which checks them.)
    """

    rank: int = 16
    layers: str = "sensitivity"
    structure: str = "block"
    split: str = "reference"
    scores: str = "sensitivity"
    sites: tuple[str, ...] = ("attention", "ffn", "embedding", "head")
    batch_size: int = 8
    blocks: bool = False

    def __post_init__(self) -> None:
        for name, known in NAMES.items():
            validate_choice(getattr(self, name), known, f"extraction option {name}")

    def wanted(self, site: str) -> bool:
        """Whether a site, ``cross_query`` for one, is to be extracted."""
        return LoraSettings(self.rank, self.sites).wants(site)


@dataclass
class ExtractReport:
    """What an extraction did.

    Attributes:
        layers: per stack, the teacher layer behind each student layer.
        totals: per stack, the summed scores of each teacher layer.
        offsets: place -> first row and column of a contiguous cut in the teacher's (out, in) matrix, else
            None.
        captured: place -> share of the matrix's summed scores inside the cut, in [0, 1]; of an embedding or
            head, of the rows of shared tokens.
        kept: place -> share of the cut's squared norm in its r largest singular values, in [0, 1].
        shared_tokens: tokens that both tokenizers have, or None where neither embedding nor head is
            extracted.
        seconds: wall-clock time.
        blocks: the cuts behind the pairs, one matrix a place with role "D" and the axes of what comes out,
            then of what goes in; None unless the options ask for them.
    """

    seed_count: int
    layers: dict[str, list[int]] = field(default_factory=dict)
    totals: dict[str, list[float]] = field(default_factory=dict)
    offsets: dict[Place, tuple[int, int] | None] = field(default_factory=dict)
    captured: dict[Place, float] = field(default_factory=dict)
    kept: dict[Place, float] = field(default_factory=dict)
    shared_tokens: int | None = None
    seconds: float = 0.0
    blocks: ModuleState | None = None

    @property
    def tensors(self) -> dict[str, dict[str, Any]]:
        """By place as text, JSON-ready: offset, captured and kept."""
        return {
            place.key: {"offset": list(offset) if offset else None, "captured": self.captured[place],
                        "kept": self.kept[place]}
            for place, offset in self.offsets.items()
        }

    def summary(self) -> dict[str, Any]:
        """The report for a run's record, JSON-ready: everything but what is said place by place."""
        return {k: v for k, v in vars(self).items() if k not in ("offsets", "captured", "kept", "blocks")}
