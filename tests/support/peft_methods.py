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
from portability.methods.peft_backend import modules_at

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
    "ln": ("LNTuningConfig", {"sites": ["norms"]}),
}
LINEAR_ONLY = ("boft", "oft", "loha", "lokr", "hra", "miss", "c3a")  # what peft refuses on GPT-2's layers
SAMPLE = {(name, family) for place, family in enumerate(FAMILIES)  # each kind and each family once or twice
          for name in ("lora", [*KINDS][place % len(KINDS)])}
STARTING = ("boft",)  # peft looks for a compiler by a process
EVERY = [pytest.param(name, family, id=f"{name}-{family}",
                      marks=pytest.mark.full if (name, family) not in SAMPLE else
                      pytest.mark.system if name in STARTING else pytest.mark.contract)
         for name in KINDS for family in FAMILIES]


def method(name: str, shape: HostShape) -> MethodSpec:
    """A kind's spec on a host of a shape."""
    config, settings = KINDS[name]
    settings = dict(settings)
    return MethodSpec(name, "peft", config, settings, 1e-3)


def refused(name: str, family: str) -> bool:
    """Whether peft itself does not take the method on the family."""
    return family == "gpt2" and name in LINEAR_ONLY or family == "modernbert" and name == "ln"


def write_plain(folder: Path, host: Host, name: str, seed: int = 0, **settings: Any) -> torch.nn.Module:
    """A folder that peft alone made of a method whose numbers are no zeros, and its model."""
    spec = method(name, host.spec.shape)
    values = dict(spec.settings) | settings
    values["target_modules"] = modules_at(values.pop("sites"), host.spec.shape, name)
    if name == "ia3":
        values["feedforward_modules"] = modules_at(["ffn_down"], host.spec.shape, name)
    logging.getLogger("peft").setLevel(logging.ERROR)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = peft.get_peft_model(host.model, getattr(peft, spec.config)(**values))
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter.data += 0.1 * torch.randn_like(parameter)
    made.eval().save_pretrained(folder)
    return made
