"""A small method of each kind that adapters trains, and folders of them as the library alone writes them."""

import logging
from pathlib import Path
from typing import Any

import adapters
import pytest
import torch
from adapters import AdapterConfig

from portability.core.specs import MethodSpec
from portability.hosts.host import Host
from portability.methods.adapters_places import BOTTLENECKS
from support.tiny import METHODS

KINDS: dict[str, tuple[str, dict[str, Any]]] = {name: (spec.config, dict(spec.settings))
                                                 for name, spec in METHODS.items()} | {
    "compacter_plus_plus": ("CompacterPlusPlusConfig", {"bottleneck": 8}),
    "parallel": ("ParBnConfig", {"bottleneck": 8, "scaling": 1.0}),
    "scaled_parallel": ("ParBnConfig", {"bottleneck": 8, "scaling": "learned"}),
    "ia3": ("IA3Config", {}),
    "prefix_mlp": ("PrefixTuningConfig", {"prefix_length": 5, "bottleneck_size": 16}),
    "mam": ("MAMConfig", {"prefix_tuning": {"flat": True, "prefix_length": 5}, "adapter": {"bottleneck": 8}}),
    "unipelt": ("UniPELTConfig", {"prefix_tuning": {"flat": True, "prefix_length": 5},
                                  "adapter": {"bottleneck": 8}, "lora": {"r": 4, "alpha": 2}}),
    "loreft": ("LoReftConfig", {"r": 4, "dropout": 0.0, "tied_weights": True}),
    "loreft_ends": ("LoReftConfig", {"r": 4, "prefix_positions": 2, "suffix_positions": 1, "dropout": 0.0}),
    "noreft": ("NoReftConfig", {"r": 4, "dropout": 0.0, "non_linearity": "relu"}),
}
REFT = ("loreft", "loreft_ends", "noreft")  # whose places the library reads off plain masks alone
PREFIXED = ("prefix", "prefix_mlp", "mam", "unipelt")
NO_PREFIX = ("qwen2", "qwen3", "gemma2", "gemma3_text")  # families for which the library has none
SAMPLE = {(name, family) for place, family in enumerate(BOTTLENECKS)
          for name in [*KINDS, *KINDS][3 * place % len(KINDS):][:3]}
EVERY = [pytest.param(name, family, marks=() if (name, family) in SAMPLE else pytest.mark.full,
                      id=f"{name}-{family}") for name in KINDS for family in BOTTLENECKS]


def method(name: str) -> MethodSpec:
    """A kind's spec."""
    return MethodSpec(name, "adapters", *KINDS[name], 1e-3)


def refused(name: str, family: str) -> bool:
    """Whether the library itself does not take the method on the family."""
    return name in PREFIXED and family in NO_PREFIX


def write_plain(folder: Path, host: Host, name: str, seed: int = 0, pickle: bool = True) -> torch.nn.Module:
    """A folder that the library alone made of a method whose numbers are no zeros, and its model.

    Args:
        pickle: as the library does unless it is asked for safetensors, which refuse its prefixes.
    """
    from portability.methods.adapters_backend import config_of

    logging.getLogger("adapters").setLevel(logging.ERROR)
    model = host.model
    adapters.init(model)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = config_of(method(name), host.spec.shape).to_dict()
        model.add_adapter("mine", config=AdapterConfig.load(config))
        model.train_adapter("mine")
        for path, parameter in model.named_parameters():
            if parameter.requires_grad:
                noise = 0.1 * torch.randn_like(parameter)
                # of a turn the entries beyond the diagonal, which torch takes the whole part of
                parameter.data += noise.triu(1) if path.endswith(".original") else noise
    model.eval().save_adapter(str(folder), "mine", use_safetensors=not pickle)
    weights = torch.load(folder / "pytorch_adapter.bin", weights_only=True) if pickle else {}
    if "shared_parameters.mine.phm_rule" in dict(model.named_parameters()):  # the library leaves it out
        weights["shared_parameters.mine.phm_rule"] = model.shared_parameters["mine"]["phm_rule"].data
        torch.save(weights, folder / "pytorch_adapter.bin")
    return model
