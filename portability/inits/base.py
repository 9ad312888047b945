"""How a receiving module starts: ported, from scratch, sampled from the ported one's law, extracted, and the controls."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from portability.core.architectures import Slot
from portability.core.errors import UserError, choose
from portability.core.seeds import stream
from portability.core.specs import PISSA, HostSpec, InitSpec, MethodSpec, PortSpec
from portability.inits.extraction import Extracted, control
from portability.inits.seed_examples import extraction_options
from portability.methods.module import ModuleState, equal
from portability.porting.port import Port, port


@dataclass(frozen=True)
class Given:
    """What an init may use.

    Attributes:
        fresh: a module as the library initialises it, from the run's own seed.
        module: the origin's trained module, or the extraction's, or None where the init needs none.
        stream: first names of the run's random streams (spec.RunSpec.stream).
        origin: the host it was trained on, or cut out of.
        blocks: the cuts behind an extraction's pairs, where the method takes these off whole.
        change: module -> norm of the logit change it makes against the bare host, on training inputs.
    """

    fresh: ModuleState
    receiving: HostSpec
    seed: int
    stream: tuple[object, ...]
    module: ModuleState | None = None
    origin: HostSpec | None = None
    port: PortSpec | None = None
    change: Callable[[ModuleState], float] | None = None
    calibration_examples: int = 0
    method: MethodSpec | None = None
    blocks: ModuleState | None = None


FURTHEST = 11  # powers of two by which a sample is scaled at most (our choice)
Start = tuple[ModuleState, Port | None]
Init = Callable[[Given, Mapping[str, Any]], Start]


def scratch(given: Given, options: Mapping[str, Any]) -> Start:
    """The library's own initialisation."""
    return given.fresh, None


def ported(given: Given, options: Mapping[str, Any]) -> Start:
    """The origin's trained module, fitted by the strategy (Sabry & Belz 2024, abstract)."""
    done = _port(given)
    return done.module, done


def sampled(given: Given, options: Mapping[str, Any]) -> Start:
    """Numbers from the same distribution as the ported module (Sabry & Belz 2024, abstract; the law is our choice).

    Per tensor, on the carried entries only and before any padding: ``law: normal`` draws from N(mean, std) with std
    of ddof 0, ``law: permute`` shuffles the entries. With ``match: function_norm`` the whole module is then scaled so
    that it changes the logits as much as the ported one (D-09).

    Raises:
        UserError: unknown law or match.
    """
    done = _port(given)
    law = LAWS[choose(str(options.get("law")), LAWS, "law of sampling (init.sampled.options.law)")]
    generator = stream(*given.stream, "sample")
    tensors = {}
    for slot, tensor in done.module.tensors.items():
        mask, drawn = done.carried[slot], tensor.clone()
        if mask.any():
            drawn[mask] = law(tensor[mask], generator)
        tensors[slot] = drawn
    module = done.module.map(tensors)
    if (match := options.get("match")) is not None:
        choose(str(match), ("function_norm",), "match of sampling")
        module = _match_function(module, done, given)
    return module, done


def shuffled(given: Given, options: Mapping[str, Any]) -> Start:
    """The ported module with its layers in a random other order, per stack (control: does the order matter?).

    Raises:
        UserError: every layer is like every other, so there is nothing to shuffle.
    """
    done = _port(given)
    generator = stream(*given.stream, "shuffle")
    tensors = dict(done.module.tensors)
    for stack, depth in given.receiving.shape.layers.items():
        tensors |= _reordered({s: t for s, t in tensors.items() if s.stack == stack}, depth, generator)
    module = done.module.map({slot: tensor.clone() for slot, tensor in tensors.items()})
    if equal(module, done.module):
        raise UserError(f"init 'shuffled' has no layers to exchange: all layers of the port to "
                        f"'{given.receiving.name}' are alike")
    return module, done


def extracted(given: Given, options: Mapping[str, Any]) -> Start:
    """Pairs cut out of a larger host's own weights (Zhong et al. 2024, section 3)."""
    return _extracted(given).module, None


def extracted_shuffled(given: Given, options: Mapping[str, Any]) -> Start:
    """The extracted pairs with each stack's layers in another order (control: does the order matter?)."""
    assert given.module is not None
    return _shuffled_layers(given.module, given), None


def extracted_noise(given: Given, options: Mapping[str, Any]) -> Start:
    """Gaussian pairs whose products have the extracted products' norms (control: is it more than size?)."""
    return control("noise", _extracted(given), given.seed), None


def pissa(given: Given, options: Mapping[str, Any]) -> Start:
    """The receiving host's own largest singular triples (control: Meng et al. 2024, arXiv 2404.02948)."""
    assert given.method is not None
    chosen = extraction_options(given.method, InitSpec(PISSA, PISSA, options))
    return control("pissa", Extracted(given.fresh, given.receiving, given.receiving, chosen), given.seed), None


def subtracted(kind: str, start: ModuleState, given: Given) -> ModuleState:
    """What is taken off the host all through a run of a kind in SUBTRACTED: the start's own product, as in the released code
    of Zhong et al. (2024), or the blocks behind its pairs, as in their formula."""
    if given.blocks is None:
        return start
    return _shuffled_layers(given.blocks, given) if kind == "extracted_shuffled" else given.blocks


INITS: dict[str, Init] = {
    "scratch": scratch, "ported": ported, "sampled": sampled, "shuffled": shuffled, "extracted": extracted,
    "extracted_shuffled": extracted_shuffled, "extracted_noise": extracted_noise, "pissa": pissa,
}


def _shuffled_layers(state: ModuleState, given: Given) -> ModuleState:
    """Layers in the order that the seed draws, the same for pairs and blocks."""
    return control("layers_shuffled", replace(_extracted(given), module=state), given.seed)


def _extracted(given: Given) -> Extracted:
    """What an extraction's run left, with the two hosts behind it."""
    assert given.module is not None and given.origin is not None and given.method is not None
    chosen = extraction_options(given.method, InitSpec("extracted", "extracted"))
    return Extracted(given.module, given.origin, given.receiving, chosen)


def _normal(entries: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(entries.shape, generator=generator, dtype=entries.dtype)
    return entries.mean() + noise * entries.std(correction=0)


def _permute(entries: Tensor, generator: torch.Generator) -> Tensor:
    return entries[torch.randperm(entries.numel(), generator=generator)]


LAWS = {"normal": _normal, "permute": _permute}


def _port(given: Given) -> Port:
    if given.module is None or given.origin is None or given.port is None:
        raise ValueError("this init needs an origin module")
    return port(given.module, given.origin, given.fresh, given.receiving, given.port)


def _reordered(tensors: Mapping[Slot, Tensor], depth: int, generator: torch.Generator) -> dict[Slot, Tensor]:
    """One stack's tensors with the layers in an order that changes something, or as they are where none does.

    A port may fill two layers with the same tensors, so an exchange of these two would be no change.
    """
    for _ in range(100):
        order = torch.randperm(depth, generator=generator).tolist()
        moved = {slot: tensors[slot._replace(layer=order[slot.layer])] for slot in tensors}
        if any(not torch.equal(moved[slot], tensors[slot]) for slot in tensors):
            return moved
    return dict(tensors)


def _match_function(module: ModuleState, done: Port, given: Given) -> ModuleState:
    """Scale a module by one factor until it changes the logits as much as the ported one, by bisection in log2 between the
    first two powers of two, going outwards from the sample as drawn, that have the wanted change between them. Where none up to
    2^FURTHEST has, the power whose change comes nearest; the report says how near (D-122).
    """
    if given.change is None:
        raise ValueError("match: function_norm needs the logit change of a module")
    target = given.change(done.module)
    scaled = lambda power: module.map({s: t * 2.0**power for s, t in module.tensors.items()})  # noqa: E731
    changes = {0.0: given.change(module)}
    reached = changes[0.0] >= target
    step = -1.0 if reached else 1.0
    for power in step * np.arange(FURTHEST):  # outwards, because far out the change may turn back
        changes[power + step] = given.change(scaled(power + step))
        if (changes[power + step] >= target) != reached:
            low, high = sorted((power, power + step))
            for _ in range(20):
                middle = (low + high) / 2
                low, high = (middle, high) if given.change(scaled(middle)) < target else (low, middle)
            found = scaled((low + high) / 2)
            break
    else:
        found = scaled(min(changes, key=lambda power: abs(changes[power] - target)))
    done.report.calibration_examples = given.calibration_examples
    done.report.effect_fraction = given.change(found) / target if target else 1.0
    return found
