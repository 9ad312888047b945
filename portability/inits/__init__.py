"""How a run's module starts: one function for each kind of init; what planning knows of them is in
core/init_kinds.py."""

from portability.inits.base import Init
from portability.inits.extracted import extracted, extracted_noise, extracted_shuffled, extraction, pissa
from portability.inits.ported import ported, scratch, shuffled
from portability.inits.sampled import sampled

INITS: dict[str, Init] = {
    "scratch": scratch,
    "ported": ported,
    "sampled": sampled,
    "shuffled": shuffled,
    "extracted": extracted,
    "extracted_shuffled": extracted_shuffled,
    "extracted_noise": extracted_noise,
    "pissa": pissa,
    "compute_matched": scratch,
    "extraction": extraction,
}
