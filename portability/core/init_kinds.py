"""What planning knows of each kind of init, without torch; how each kind makes a module stands in
portability/inits."""

from dataclasses import dataclass
from typing import Literal

Need = Literal["origin_module", "port", "extraction", "teacher", "external"]


@dataclass(frozen=True)
class InitKind:
    """A kind of init.

    Attributes:
        stage: how a tracker files its runs (job_type).
        needs: "origin_module", the module trained on the origin host; "port", how that one is fitted;
            "extraction", the run that cut pairs out of the origin host's weights; "teacher", these weights
            themselves; "external", the folder of a module from elsewhere.
        subtracts_start: whether the start is taken off the host, so that training begins at the bare host.
        subtracts_blocks: whether the whole cuts behind the pairs can be taken off instead (``subtract:
            block``).
        trains_extra: whether it is trained for the origin's updates on top of its own, and has no zero-shot.
        offered: whether a grid may name it; the others are planned where they are needed.
    """

    stage: str
    needs: frozenset[Need] = frozenset()
    subtracts_start: bool = False
    subtracts_blocks: bool = False
    trains_extra: bool = False
    offered: bool = True


_PORTED = InitKind("port", frozenset({"origin_module", "port"}))
_EXTRACTED = InitKind("extracted", frozenset({"extraction"}), subtracts_start=True, subtracts_blocks=True)
INIT_KINDS: dict[str, InitKind] = {
    "scratch": InitKind("scratch"),
    "ported": _PORTED,
    "sampled": _PORTED,
    "shuffled": _PORTED,
    "extracted": _EXTRACTED,
    "extracted_shuffled": _EXTRACTED,
    "extracted_noise": InitKind("extracted", frozenset({"extraction"}), subtracts_start=True),
    "pissa": InitKind("extracted", subtracts_start=True),
    "compute_matched": InitKind("scratch", trains_extra=True),  # planned as scratch with more updates
    "extraction": InitKind("extraction", frozenset({"teacher"}), subtracts_start=True, subtracts_blocks=True,
                           offered=False),
    "external": InitKind("origin", frozenset({"external"}), offered=False),
    "bare": InitKind("bare", offered=False),
}
