"""Adapter folders of the libraries, told apart and read."""

from pathlib import Path

from portability.core.errors import UserError
from portability.core.specs import HostShape
from portability.methods import adapters_backend, peft_backend
from portability.methods.adapters_files import AdaptersFolder
from portability.methods.folder import (
    CONFIG,
    AdapterFolder,
    floating,
    read_config,
    read_pickle,
    read_safetensors,
)
from portability.methods.module import ModuleState
from portability.methods.peft_files import PeftFolder

FILES = {  # class -> names of its weights
    PeftFolder: (peft_backend.WEIGHTS, "adapter_model.bin"),
    AdaptersFolder: (adapters_backend.WEIGHTS, "pytorch_adapter.bin"),
}


def read_folder(folder: Path) -> AdapterFolder:
    """An adapter folder, checked; one of `adapters` has the method's settings as "config".

    Raises:
        UserError: a file is missing, truncated or no such file, or holds what no adapter has.
    """
    config = read_config(folder / CONFIG)
    kind = AdaptersFolder if isinstance(config.get("config"), dict) else PeftFolder
    safe, pickle = FILES[kind]
    if (folder / safe).is_file():
        found = read_safetensors(folder / safe)
    elif (folder / pickle).is_file():
        found = read_pickle(folder / pickle)
    else:
        raise UserError(f"{folder} holds no {safe}; an adapter folder has it beside {CONFIG}")
    return kind(folder, config, *floating(folder, found))


def module_of(adapter: AdapterFolder, shape: HostShape) -> ModuleState:
    """The module of a folder that was trained on a host of this shape.

    Raises:
        UserError: as `AdapterFolder.module`.
    """
    return adapter.module(shape)
