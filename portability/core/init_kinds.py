"""What planning knows of each kind of init, without torch; how each kind makes a module stands in
portability/inits."""

from dataclasses import dataclass
from typing import Literal

Need = Literal["origin_module", "port", "extraction", "teacher", "external"]


@dataclass(frozen=True)
class InitKind:
    """A kind of init.

    Attributes:
        needs: "origin_module", the module trained on the origin host; "port", how that one is fitted;
            "extraction", the run that cut pairs out of the origin host's weights; "teacher", these weights
            themselves; "external", the folder of a module from elsewhere.
        subtracts_start: whether the start is taken off the host, so that training begins at the bare host.
        subtracts_blocks: whether the whole cuts behind the pairs can be taken off instead (``subtract:
            block``).
        trains_extra: whether it is trained for the origin's updates on top of its own, and has no zero-shot.
        offered: whether a grid may name it; the others are planned where they are needed.
    """

    needs: frozenset[Need] = frozenset()
    subtracts_start: bool = False
    subtracts_blocks: bool = False
    trains_extra: bool = False
    offered: bool = True


_PORTED = InitKind(frozenset({"origin_module", "port"}))
_EXTRACTED = InitKind(frozenset({"extraction"}), subtracts_start=True, subtracts_blocks=True)
INIT_KINDS: dict[str, InitKind] = {
    "scratch": InitKind(),
    "ported": _PORTED,
    "sampled": _PORTED,
    "shuffled": _PORTED,
    "extracted": _EXTRACTED,
    "extracted_shuffled": _EXTRACTED,
    "extracted_noise": InitKind(frozenset({"extraction"}), subtracts_start=True),
    "pissa": InitKind(subtracts_start=True),
    "compute_matched": InitKind(trains_extra=True),  # planned as scratch with more updates
    "extraction": InitKind(frozenset({"teacher"}), subtracts_start=True, subtracts_blocks=True,
                           offered=False),
    "external": InitKind(frozenset({"external"}), offered=False),
    "bare": InitKind(offered=False),
}
