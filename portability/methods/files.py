"""Adapter folders of the libraries, told apart and read."""

from pathlib import Path
from typing import Any

from torch import Tensor

from portability.core.errors import UserError
from portability.core.specs import HostShape, MethodSpec
from portability.hosts.pickles import read_pickle
from portability.methods import adapters_backend, peft_backend
from portability.methods.adapters_files import AdaptersFolder
from portability.methods.base import AttachedMethod
from portability.methods.folder import (
    CONFIG,
    AdapterFolder,
    floating,
    read_config,
    read_safetensors,
)
from portability.methods.module import ModuleState
from portability.methods.peft_files import PeftFolder

FILES: dict[type[AdapterFolder], tuple[str, str]] = {  # class -> names of its weights
    PeftFolder: (peft_backend.WEIGHTS, "adapter_model.bin"),
    AdaptersFolder: (adapters_backend.WEIGHTS, "pytorch_adapter.bin"),
}


def method_of(folder: Path) -> MethodSpec:
    """The method that a folder's configuration says, for hosts of any width; the weights need not be there.

    Raises:
        UserError: there is none, or none of an installed library.
    """
    config = read_config(folder / CONFIG)
    return _kind(config)(folder, config, {}).spec_of_sizes


def weights_of(folder: Path, kind: type[AdapterFolder]) -> Path:
    """The file of a folder's tensors.

    Raises:
        UserError: there is none.
    """
    for name in FILES[kind]:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{folder} holds no {FILES[kind][0]}; an adapter folder has it beside {CONFIG}")


def _kind(config: dict[str, Any]) -> type[AdapterFolder]:
    """That of `adapters` has the method's settings as "config"."""
    return AdaptersFolder if isinstance(config.get("config"), dict) else PeftFolder


def read_folder(folder: Path) -> AdapterFolder:
    """An adapter folder, checked.

    Raises:
        UserError: a file is missing, truncated or no such file, or holds what no adapter has.
    """
    config = read_config(folder / CONFIG)
    kind = _kind(config)
    path = weights_of(folder, kind)
    found = read_safetensors(path) if path.suffix == ".safetensors" else read_pickle(path)
    return kind(folder, config, *floating(folder, found))


def parameters_of(adapter: AdapterFolder, attached: AttachedMethod) -> dict[str, Tensor]:
    """The numbers of a folder by their names on its own host, where its method is attached.

    Raises:
        UserError: as `AdapterFolder.module`, or the file lacks a tensor that the configuration asks for, or
            has one beyond them.
    """
    module = module_of(adapter, attached.host.spec.shape)
    try:
        return attached.to_parameters(module)
    except ValueError as error:
        raise UserError(f"the tensors in {adapter.folder} are not those that its {CONFIG} asks for: "
                        f"{error}") from error


def module_of(adapter: AdapterFolder, shape: HostShape) -> ModuleState:
    """The module of a folder that was trained on a host of this shape.

    Raises:
        UserError: as `AdapterFolder.module`.
    """
    return adapter.module(shape)
