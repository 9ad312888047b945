"""An adapter as a LoRA on its own base, and a module in its host's weights, both by peft."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from portability.core.errors import UserError
from portability.core.specs import HostSpec
from portability.hosts.host import load_host, quiet
from portability.methods import attach
from portability.methods.files import parameters_of
from portability.methods.folder import AdapterFolder
from portability.methods.peft_backend import NAME, PROMPTS, PeftMethod
from portability.methods.peft_files import IN_MODEL, PeftFolder
from portability.porting.adapter import PortedAdapter, outer_names

NO_WEIGHTS = "what it learned stands before the text, and in no weight"


def to_lora(
    adapter: AdapterFolder, origin: HostSpec, rank: float
) -> tuple[AdapterFolder, dict[str, float]]:
    """The LoRA nearest to an adapter on its base, and the relative errors of its matrices in the Frobenius
    norm (median and largest).

    Args:
        rank: a whole number from 1 on, or the share of the squared singular values to keep, in (0, 1).

    Source: peft's `convert_to_lora` (truncated singular value decomposition of each layer's change).

    Raises:
        UserError: the installed peft cannot convert, or not this method.
    """
    try:
        from peft import convert_to_lora
    except ImportError as error:
        raise UserError("--via lora needs peft 0.19 or later: pip install -U peft") from error

    if not isinstance(adapter, PeftFolder):
        raise UserError(f"--via lora is peft's conversion, and {adapter.folder} is of library "
                        f"{adapter.library}, whose {adapter.spec.config} peft does not know")
    if adapter.spec.config in PROMPTS:
        raise UserError(f"peft cannot turn {adapter.spec.config} into a LoRA: {NO_WEIGHTS}")
    if not (0 < rank < 1 or rank >= 1 and float(rank).is_integer()):
        raise UserError(f"--rank must be a whole number from 1 on, or a share between 0 and 1, got {rank:g}")
    method = _attached(adapter, origin)
    number: float = int(rank) if rank >= 1 else rank
    try:
        config, state = convert_to_lora(method.tuner, number, adapter_name=NAME)
    except (NotImplementedError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"peft cannot turn {adapter.spec.config} into a LoRA: {error}") from error
    state = {key.removeprefix("model."): value.float().cpu() for key, value in state.items()}
    config.rank_pattern, config.alpha_pattern = (
        {key.removeprefix("model."): value for key, value in (pattern or {}).items()}
        for pattern in (config.rank_pattern, config.alpha_pattern))
    about = {key: sorted(value) if isinstance(value, set) else value
             for key, value in config.to_dict().items() if value is not None}
    about |= {"peft_type": "LORA", "base_model_name_or_path": adapter.base,
              "task_type": adapter.config.get("task_type")}
    before, without = outer_names(adapter, method.host.model, method.host.model)
    tensors = {f"{IN_MODEL}{before}{key.removeprefix(without)}": value for key, value in state.items()}
    lora = PeftFolder(adapter.folder, about, tensors, dict.fromkeys(tensors, adapter.dtype))
    return lora, _errors(method, state)


def _attached(adapter: AdapterFolder, origin: HostSpec) -> PeftMethod:
    """The adapter on its own base, with its own numbers."""
    method = attach(load_host(origin), adapter.spec)
    assert isinstance(method, PeftMethod)
    _fill(method, parameters_of(adapter, method))
    return method


def _fill(method: PeftMethod, values: Mapping[str, Tensor]) -> None:
    parameters = dict(method.host.model.named_parameters())
    with torch.no_grad():
        for name, value in values.items():
            parameters[name].copy_(value)


def _errors(method: PeftMethod, state: Mapping[str, Tensor]) -> dict[str, float]:
    """|change - B A| / |change| over the layers, of a LoRA whose scale is 1."""
    found = []
    for name, layer in method.host.model.named_modules():
        if f"{name}.lora_A.weight" in state:
            change = _change(layer).detach().float()
            product = state[f"{name}.lora_B.weight"] @ state[f"{name}.lora_A.weight"]
            found.append(float((change - product).norm() / change.norm().clamp(min=1e-30)))
    return {"median": float(np.median(found)), "largest": max(found)}


def _change(layer: Any) -> Tensor:
    """What a layer of peft adds to its matrix, (out, in); of MiSS
    the library gives the whole matrix, but for the mode "bat"."""
    if not hasattr(layer, "miss_fn"):
        return layer.get_delta_weight(NAME)
    weight = layer.get_base_layer().weight.detach().double()
    if layer.miss_fn == "bat":
        return layer.get_delta_weight(NAME, weight)
    return layer.get_delta_weight_miss(NAME, weight.clone()) - weight


def merged(done: PortedAdapter, receiving: HostSpec, folder: Path) -> None:
    """Write the receiving host with the module in its weights, which answers without peft.

    Raises:
        UserError: the method cannot be merged.
    """
    if done.spec.library != "peft":
        raise UserError(f"a {done.spec.config} of library {done.spec.library} is not merged here; a LoRA can "
                        "be turned into one of peft, which can (--format peft)")
    if done.spec.config in PROMPTS:
        raise UserError(f"peft cannot merge {done.spec.config} into a host: {NO_WEIGHTS}")
    if done.head:
        raise UserError("a merged host is written without a head, and the adapter has one that was trained "
                        "beside it; leave --merge out")
    method = attach(load_host(receiving), done.spec)
    assert isinstance(method, PeftMethod)
    _fill(method, done.parameters)
    host = method.host
    try:
        method.tuner.merge_and_unload()
    except (NotImplementedError, ValueError, AttributeError) as error:
        raise UserError(f"peft cannot merge {done.spec.config} into a host: {error}") from error
    with quiet():
        host.model.save_pretrained(folder, safe_serialization=True)
        host.tokenizer.save_pretrained(folder)
