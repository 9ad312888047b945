"""A host too large for one device: its layers stand on several, and what each reads is brought to it.

accelerate says which layer goes where; what moves states is a hook of torch's own. accelerate's hooks put
another `forward` into a module, and adapters, which changes a module's class afterwards, is passed over then
(D-142).
"""

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from portability.core.errors import UserError
from portability.hosts.devices import DeviceMap, count_gpus

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Devices = Mapping[str, torch.device]  # of modules by name, "" of the whole model
REMEDY = "engine.device_map"


def devices_of(name: str, model: "PreTrainedModel", wanted: DeviceMap, main: str) -> dict[str, torch.device]:
    """Where each part of a host is to stand.

    Args:
        name: the host's, for messages.
        wanted: "auto": layers in even parts on all GPUs; or a device for every module.
        main: the worker's device.

    Raises:
        UserError: the host is too large for all GPUs together, or the map is none for it: a module that it
            lacks or has no place for, no such device, or a tensor of two modules on two devices.
    """
    found = _even(model, main) if isinstance(wanted, str) else dict(wanted)
    gpus = 0 if main == "cpu" else count_gpus()
    known = {f"cuda:{number}": torch.device("cuda", number) for number in range(gpus)} or {
        "cpu": torch.device("cpu")}
    devices = {}
    for module, value in found.items():
        device = f"cuda:{value}" if isinstance(value, int) else value
        if device in ("cpu", "disk") and gpus:
            fits = "the GPUs are too small for it" if wanted == "auto" else f"{REMEDY} puts '{module}' there"
            raise UserError(f"host '{name}' would stand on {device} in part ({fits}), and in training all of "
                            "its weights are needed at once; take more GPUs, precision=bf16, or a smaller "
                            "host")
        if device not in known:
            raise UserError(f"{REMEDY} puts '{module}' of host '{name}' on {value}, and here there are "
                            f"{', '.join(known)}")
        devices[module] = known[device]
    check(name, model, devices)
    return devices


def _even(model: "PreTrainedModel", main: str) -> dict[str, int | str]:
    """accelerate's map: layers are not torn apart, and each GPU gets as much as the others."""
    from accelerate.utils import get_balanced_memory, infer_auto_device_map

    if main == "cpu":
        return {"": "cpu"}
    whole = sorted({kind for part in model.modules()
                    for kind in getattr(part, "_no_split_modules", None) or ()})
    room = get_balanced_memory(model, no_split_module_classes=whole)
    found: dict[str, int | str] = infer_auto_device_map(model, room, no_split_module_classes=whole)
    return found


def check(name: str, model: nn.Module, devices: Devices) -> None:
    """See that each tensor of a host has a place, and that no part stands inside another one elsewhere.

    Raises:
        UserError: names the module or tensor that has none, or two.
    """
    known = {one for one, _ in model.named_modules(remove_duplicate=False)}
    for module, device in devices.items():
        if module not in known:
            raise UserError(f"{REMEDY} names '{module}', which host '{name}' does not have")
        around = module.rpartition(".")[0]
        if module and place_of(around, devices) not in (None, device):
            raise UserError(f"{REMEDY} puts '{module}' of host '{name}' on {device} and what is around it "
                            f"elsewhere; name the parts of '{around}' one by one")
    if homeless := [one for one, _ in _tensors(model) if place_of(one, devices) is None]:
        raise UserError(f"{REMEDY} names no device for '{homeless[0]}' of host '{name}'")
    _check_shared(model, devices)


def _tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """All tensors by all of their names."""
    return chain(model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))


def _check_shared(model: nn.Module, devices: Devices) -> None:
    """Refuse a tensor of two modules on two devices."""
    seen: dict[int, tuple[str, torch.device]] = {}
    for name, value in _tensors(model):
        if (device := place_of(name, devices)) is not None:
            other, there = seen.setdefault(id(value), (name, device))
            if there != device:
                raise UserError(f"'{other}' and '{name}' are one tensor, and {REMEDY} puts the one on "
                                f"{there} and the other on {device}")


def place_of(name: str, devices: Devices) -> torch.device | None:
    """The device of the innermost placed module that a tensor or module belongs to.

    Example:
        >>> place_of("layers.1.weight", {"layers.1": torch.device("cpu"), "layers.10": torch.device("meta")})
        device(type='cpu')
    """
    parts = name.split(".")
    inside = (".".join(parts[:count]) for count in range(len(parts), -1, -1))
    return next((devices[part] for part in inside if part in devices), None)


def spread(model: nn.Module, devices: Devices) -> None:
    """Put each part of a model in its place, in place; whatever a part is called with is brought there."""
    for name, device in devices.items():
        model.get_submodule(name).to(device)
    connect(model, devices)


def connect(model: nn.Module, devices: Devices) -> None:
    """See to it that whatever a part is called with is brought to its device."""
    for name, device in devices.items():
        for part in _called(model.get_submodule(name)):
            part.register_forward_pre_hook(partial(_bring, device), with_kwargs=True)


def _called(part: nn.Module) -> Iterator[nn.Module]:
    """What is called of a part: itself, or what a list holds."""
    if isinstance(part, nn.ModuleList):
        for one in part:
            yield from _called(one)
    else:
        yield part


def check_method(method: str, names: Iterable[str], model: nn.Module, devices: Devices) -> None:
    """See that a method that was put on a spread host stands where its layers do.

    Args:
        names: of its tensors in the model.

    Raises:
        UserError: it has tensors outside the layers, or one for several of them, or has put something else in
            the place of a module that is the whole of its device's part.
    """
    try:
        if homeless := [name for name in names if place_of(name, devices) is None]:
            raise UserError(f"'{homeless[0]}' stands in no layer")
        _check_shared(model, devices)
        for name in devices:
            for part in _called(model.get_submodule(name)):
                hooks = part._forward_pre_hooks.values()
                if not any(isinstance(hook, partial) and hook.func is _bring for hook in hooks):
                    raise UserError(f"it takes the place of '{name}', to which {REMEDY} brings what is read")
    except UserError as error:
        raise UserError(f"method '{method}' cannot stand on a host spread over several devices: {error}; "
                        "choose one whose tensors stand inside the layers, such as lora") from error


def _bring(device: torch.device, module: nn.Module, args: tuple[Any, ...],
           kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What is read, on the device; a cache of keys and values, which is no tensor, stays: each layer's lie
    where the layer does."""
    from accelerate.utils import send_to_device

    return send_to_device(args, device), send_to_device(kwargs, device)
