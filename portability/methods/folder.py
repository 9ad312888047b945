"""What an adapter folder of any library holds: a configuration and tensors by name, checked and read without
loading anything else.

What is read is data from elsewhere: sizes, types and names are checked, and no code in it runs.
"""

import json
import os
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, get_type_hints

import torch
from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from torch import Tensor

from portability.core.errors import UserError
from portability.core.specs import HostShape, MethodSpec
from portability.methods.module import ModuleState

CONFIG = "adapter_config.json"
LARGEST_CONFIG = 1 << 20  # bytes


@dataclass
class AdapterFolder(ABC):
    """What an adapter folder holds.

    Attributes:
        library: that it is of.
        about: keys of its configurations that say where it comes from, not what the module is.
        config: adapter_config.json as it is.
        tensors: key in the file -> tensor in fp32.
        dtypes: key -> type in the file.
    """

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    dtypes: dict[str, torch.dtype] = field(default_factory=dict)
    library: ClassVar[str]
    about: ClassVar[tuple[str, ...]]

    @property
    @abstractmethod
    def base(self) -> str | None:
        """The base model's name as the configuration has it, or None where it names none."""

    @property
    def base_words(self) -> str | None:
        """The base as `hosts.resolve.find_host` takes it: with its revision where the configuration has
        one."""
        revision = self.config.get("revision")
        if not self.base or not isinstance(revision, str) or Path(self.base).expanduser().is_dir():
            return self.base
        return f"{self.base}@{revision}"

    @property
    @abstractmethod
    def spec(self) -> MethodSpec:
        """The method, with dropout off, which acts in training alone.

        Raises:
            UserError: the installed library has no such method or setting.
        """

    @property
    def spec_of_sizes(self) -> MethodSpec:
        """`spec` for hosts of any width: what it gives as a share of the base's width is a size."""
        return self.spec

    @abstractmethod
    def module(self, shape: HostShape) -> ModuleState:
        """The module of the folder, which was trained on a host of this shape.

        Raises:
            UserError: a tensor whose place or size is not that of such a host: it is of another base.
        """

    @property
    def called(self) -> str:
        """The folder's name, or that of the repository which the hub's cache holds there."""
        cached = self.folder.parent.parent.name
        if self.folder.parent.name == "snapshots" and cached.startswith("models--"):
            return cached.rsplit("--", 1)[-1]
        return Path(os.path.abspath(self.folder)).name

    @property
    def dtype(self) -> torch.dtype:
        """The type of most tensors in the file."""
        return Counter(self.dtypes.values()).most_common(1)[0][0]


def check_type(path: Path, config: type, key: str, value: object) -> None:
    """Refuse a value of another type than the library says."""
    hint = get_type_hints(config)[key]
    try:
        TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value)
    except ValidationError as error:
        raise UserError(
            f"{path}: {key} cannot be {str(value)[:80]!r} ({error.errors()[0]['msg']})") from error
    except PydanticUserError:  # a type with settings of its own
        TypeAdapter(hint).validate_python(value)


def read_config(path: Path) -> dict[str, Any]:
    """A folder's configuration.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    if not path.is_file():
        raise UserError(f"{path.parent} holds no {CONFIG}: it is no folder of an adapter")
    if path.stat().st_size > LARGEST_CONFIG:
        raise UserError(f"{path} is larger than a configuration ever is")
    try:
        found = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON: {str(error)[:200]}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} is not a JSON object")
    return found


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Key -> tensor of a file.

    Raises:
        UserError: it is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(f"{path} cannot be read: {str(error)[:200]}; copy or download it again") from error


def floating(folder: Path, found: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, torch.dtype]]:
    """Key -> tensor in fp32, and key -> type in the file.

    Raises:
        UserError: there is none, or one that is no module's.
    """
    if not found:
        raise UserError(f"{folder} holds no tensor")
    for key, tensor in found.items():
        if not tensor.is_floating_point():
            raise UserError(f"{folder}: {key} is of type {tensor.dtype}, and a module's numbers are floating "
                            "point")
        if not tensor.isfinite().all():
            raise UserError(f"{folder}: {key} holds numbers that are not finite")
    return ({key: tensor.float() for key, tensor in found.items()},
            {key: tensor.dtype for key, tensor in found.items()})
