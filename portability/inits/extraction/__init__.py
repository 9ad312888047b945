"""Start values for a student's low-rank pairs, cut out of a larger host's own weights (Zhong et al., ICLR
2024).

    seeds --sensitivity--> scores of a layer --cuts--> where to cut --factors--> pairs (A, B) as a ModuleState

A teacher is read from its safetensors a layer at a time, so it may be larger than memory; nothing here knows
the grid, the store or Hydra. `extract` is the one entry.
"""

from portability.inits.extraction.extractor import check_extraction, extract
from portability.inits.extraction.options import ExtractionOptions, ExtractReport

__all__ = ["ExtractReport", "ExtractionOptions", "check_extraction", "extract"]
