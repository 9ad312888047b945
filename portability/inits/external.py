"""A module that was trained elsewhere, in an adapter's folder, as the origin's module of a study."""

from pathlib import Path
from typing import Any

import torch

from portability.core.architectures import Slot
from portability.core.errors import UserError
from portability.core.hashing import file_digest, fingerprint
from portability.core.specs import ExternalModule, HostSpec, MethodSpec, RunSpec
from portability.hosts.host import load_skeleton
from portability.methods import attach
from portability.methods.adapters_backend import AdaptersMethod
from portability.methods.adapters_places import parts_of
from portability.methods.files import module_of, read_folder, weights_of
from portability.methods.folder import CONFIG, AdapterFolder
from portability.methods.module import ModuleState
from portability.methods.peft_backend import NAME, PeftMethod
from portability.methods.peft_files import ABOUT, PLACES

DRAWS = ("init_lora_weights", "init_weights", "init_ia3_weights")  # settings of a fresh module alone
SIZES = ("reduction_factor",)  # which show in the tensors


def described(adapter: AdapterFolder) -> ExternalModule:
    """A folder's name, place and digest, in which neither its path nor its base's name counts."""
    settings = {key: value for key, value in adapter.config.items() if key not in adapter.about}
    weights = weights_of(adapter.folder, type(adapter))
    mark = fingerprint({weights.name: file_digest(weights)}, {CONFIG: settings})
    return ExternalModule(adapter.called, str(adapter.folder.resolve()), mark)


def external_module(run: RunSpec) -> ModuleState:
    """The module of a run of kind `external`.

    Raises:
        UserError: its folder holds another module than was planned with, or none.
    """
    adapter = read_folder(Path(str(run.folder)))
    if described(adapter).digest != run.init.options["digest"]:
        raise UserError(f"the module in {adapter.folder} changed since the study was planned; run the "
                        "command again")
    return module_of(adapter, run.host.shape)


def check_external(adapter: AdapterFolder, host: HostSpec, method: MethodSpec) -> None:
    """See, without weights of the host, that an adapter is a module of a method on a host.

    Raises:
        UserError: it is of another method, has other settings, or is of another base.
    """
    remedy = f"take the method from the folder itself: method.NAME.from={adapter.folder}"
    ours, said = adapter.spec, f"origin.module={adapter.folder}"
    if (method.library, method.config) != (ours.library, ours.config):
        raise UserError(f"{said} is a module of {ours.library}'s {ours.config}, and method '{method.name}' "
                        f"is {method.library}'s {method.config}; {remedy}")
    held = {slot: tuple(tensor.shape) for slot, tensor in module_of(adapter, host.shape).tensors.items()}
    (own, _), (theirs, wanted) = _settings(host, ours), _settings(host, method)
    for key in own:
        if own[key] != theirs.get(key, own[key]):  # a layer that one of them lacks shows below
            raise UserError(f"{said} has {key}={own[key]}, and method '{method.name}' has {theirs[key]}; "
                            f"{remedy}")
    if wrong := sorted(s.key for s in held.keys() | wanted.keys() if held.get(s) != wanted.get(s)):
        raise UserError(f"{said} and method '{method.name}' differ on host '{host.name}' at "
                        f"{', '.join(wrong[:3])}; {remedy}")


def _settings(host: HostSpec, method: MethodSpec) -> tuple[dict[str, Any], dict[Slot, tuple[int, ...]]]:
    """What a method's numbers mean on a host, and its slots with their sizes."""
    with torch.device("meta"):
        attached = attach(load_skeleton(host), method)
    assert isinstance(attached, PeftMethod | AdaptersMethod)
    found = {key if number == 0 else f"{key} of part {number + 1}": value
             for number, config in enumerate(parts_of(attached.config))
             for key, value in config.to_dict().items()
             if key not in (*ABOUT, *PLACES, *DRAWS, *SIZES)}
    scaled = ((name, getattr(layer, "scaling", None)) for name, layer in attached.host.model.named_modules())
    found |= {f"scale of {name}": scale[NAME] for name, scale in scaled
              if isinstance(scale, dict) and NAME in scale}
    return found, {slot: sizes for layout in attached.layouts for slot, _, sizes in layout.slots}
