"""Starts cut out of a host's own weights, and the controls to compare them with."""

from collections.abc import Mapping
from typing import Any

from portability.core.specs import InitSpec
from portability.inits.base import InitContext, InitialModule
from portability.inits.extraction.controls import noise, shuffle_layers, singular_pairs
from portability.inits.seed_examples import extraction_options


def extraction(context: InitContext, options: Mapping[str, Any]) -> InitialModule:
    """Pairs cut out of the teacher's weights, at the places that seed examples choose (Zhong et al. 2024,
    section 3)."""
    module, report = context.teacher()
    return InitialModule(module, report, report.blocks or module)


def extracted(context: InitContext, options: Mapping[str, Any]) -> InitialModule:
    """The pairs of an extraction (Zhong et al. 2024, section 3). What is taken off is their own product, as
    in the released code, or the cuts behind them, as in the paper's formula."""
    found = context.extraction()
    return InitialModule(found.module, frozen=found.blocks or found.module)


def extracted_shuffled(context: InitContext, options: Mapping[str, Any]) -> InitialModule:
    """The extracted pairs, and the cuts behind them, with each stack's layers in another order (our control:
    does the order matter?)."""
    found, host = context.extraction(), context.receiving
    module = shuffle_layers(found.module, found.teacher, host, context.seed)
    blocks = found.blocks and shuffle_layers(found.blocks, found.teacher, host, context.seed)
    return InitialModule(module, frozen=blocks or module)


def extracted_noise(context: InitContext, options: Mapping[str, Any]) -> InitialModule:
    """Gaussian pairs whose products have the extracted products' norms (our control: is it more than
    size?)."""
    module = noise(context.extraction().module, context.seed)
    return InitialModule(module, frozen=module)


def pissa(context: InitContext, options: Mapping[str, Any]) -> InitialModule:
    """The receiving host's own largest singular triples (control: PiSSA, Meng et al. 2024, arXiv
    2404.02948)."""
    chosen = extraction_options(context.method, InitSpec("pissa", "pissa", options))
    module = context.fresh().map(singular_pairs(context.receiving, chosen))
    return InitialModule(module, frozen=module)
