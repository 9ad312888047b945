"""A small method of each kind that peft trains, and folders of them as peft alone writes them."""

import logging
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from portability.core.architectures import FAMILIES
from portability.core.specs import HostShape, MethodSpec
from portability.hosts.host import Host
from portability.methods.peft_backend import endings, modules_at

LAYERS = {"sites": ["attention", "ffn"]}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("LoraConfig", {**LAYERS, "r": 4, "lora_alpha": 8}),
    "rslora": ("LoraConfig", {**LAYERS, "r": 4, "use_rslora": True}),
    "dora": ("LoraConfig", {**LAYERS, "r": 4, "use_dora": True}),
    "ia3": ("IA3Config", {"sites": ["key", "value", "ffn_down"]}),
    "vera": ("VeraConfig", {**LAYERS, "r": 4}),
    "boft": ("BOFTConfig", {**LAYERS, "boft_block_size": 4}),
    "oft": ("OFTConfig", {**LAYERS, "oft_block_size": 4}),
    "loha": ("LoHaConfig", {**LAYERS, "r": 4}),
    "lokr": ("LoKrConfig", {**LAYERS, "r": 4}),
    "adalora": ("AdaLoraConfig", {**LAYERS, "init_r": 4, "target_r": 4, "total_step": 100}),
    "hra": ("HRAConfig", {**LAYERS, "r": 4}),
    "miss": ("MissConfig", {**LAYERS, "r": 4}),
    "randlora": ("RandLoraConfig", {**LAYERS, "r": 4}),
    "vblora": ("VBLoRAConfig", {**LAYERS, "r": 2, "num_vectors": 8, "vector_length": 8, "topk": 2}),
    "fourierft": ("FourierFTConfig", {**LAYERS, "n_frequency": 10}),
    "c3a": ("C3AConfig", {**LAYERS, "block_size": 16}),
    "ln": ("LNTuningConfig", {}),
}
LINEAR_ONLY = ("boft", "oft", "loha", "lokr", "hra", "miss", "c3a")  # what peft refuses on GPT-2's layers
SAMPLE = {(name, family) for place, family in enumerate(FAMILIES)
          for name in [*KINDS][3 * place % len(KINDS):][:4] + ["lora"]}
EVERY = [pytest.param(name, family, marks=() if (name, family) in SAMPLE else pytest.mark.full,
                      id=f"{name}-{family}") for name in KINDS for family in FAMILIES]


def method(name: str, shape: HostShape) -> MethodSpec:
    """A kind's spec on a host of a shape."""
    config, settings = KINDS[name]
    settings = dict(settings)
    if name == "ia3":
        settings["feedforward_modules"] = modules_at(["ffn_down"], shape, name)
    if name == "ln":
        rows = FAMILIES[shape.family].norms.values()
        settings["target_modules"] = endings({path for row in rows for path in row}, shape.family)
    return MethodSpec(name, "peft", config, settings, 1e-3)


def refused(name: str, family: str) -> bool:
    """Whether peft itself does not take the method on the family."""
    return family == "gpt2" and name in LINEAR_ONLY or family == "modernbert" and name == "ln"


def write_plain(folder: Path, host: Host, name: str, seed: int = 0, **settings: Any) -> torch.nn.Module:
    """A folder that peft alone made of a method whose numbers are no zeros, and its model."""
    spec = method(name, host.spec.shape)
    values = dict(spec.settings) | settings
    if sites := values.pop("sites", None):
        values["target_modules"] = modules_at(sites, host.spec.shape, name)
    logging.getLogger("peft").setLevel(logging.ERROR)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = peft.get_peft_model(host.model, getattr(peft, spec.config)(**values))
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter.data += 0.1 * torch.randn_like(parameter)
    made.eval().save_pretrained(folder)
    return made
