"""Adapter folders of the `peft` library, read without loading anything else.

A folder holds ``adapter_config.json`` and the weights (``adapter_model.safetensors``, or ``.bin`` by torch's
restricted loader). What is read is data from elsewhere: sizes, types and names are checked, and no code in it
runs.
"""

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

import torch
from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from torch import Tensor

from portability.core.architectures import Slot
from portability.core.errors import UserError, choose
from portability.core.specs import HostShape, MethodSpec
from portability.methods.base import ParameterLayout
from portability.methods.module import Axes, ModuleState
from portability.methods.peft_backend import (
    BARE_LEAF,
    CONFIG,
    GLOBAL,
    NAME,
    PROJECTIONS,
    PROMPT,
    WEIGHTS,
    layout_of,
)

PICKLE = "adapter_model.bin"
LARGEST_CONFIG = 1 << 20  # bytes
ABOUT = (  # keys of a configuration that say where it comes from, not what the method is
    "peft_type", "peft_version", "auto_mapping", "base_model_name_or_path", "revision", "task_type",
    "inference_mode")
PLACES = (  # settings that name modules of the origin's architecture
    "target_modules", "exclude_modules", "feedforward_modules", "layers_to_transform", "layers_pattern",
    "rank_pattern", "alpha_pattern")
OF_HOST = (  # sizes of the host that peft writes down beside a prompt
    "token_dim", "num_attention_heads", "num_layers", "num_transformer_submodules", "encoder_hidden_size")


@dataclass
class AdapterFolder:
    """What an adapter folder holds.

    Attributes:
        config: adapter_config.json as it is.
        tensors: key in the file -> tensor in fp32.
        dtypes: key -> type in the file.
        base: name of the base model, or None where it names none.
    """

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    dtypes: dict[str, torch.dtype] = field(default_factory=dict)

    @property
    def base(self) -> str | None:
        """The base model's name as the configuration has it."""
        return self.config.get("base_model_name_or_path")

    @property
    def spec(self) -> MethodSpec:
        """The method, with the settings that are not None and dropout off, which acts in training alone.

        Raises:
            UserError: the installed peft has no such type.
        """
        from peft import PEFT_TYPE_TO_CONFIG_MAPPING as CLASSES

        kinds = {kind.value: cls for kind, cls in CLASSES.items()}
        kind = choose(str(self.config.get("peft_type")).upper(), kinds, f"peft_type of {self.folder}")
        known = kinds[kind].__dataclass_fields__
        settings = {}
        for key, value in self.config.items():
            if key in (*ABOUT, *OF_HOST) or value is None or value == {}:
                continue
            if key not in known:
                if value:
                    raise UserError(f"{self.folder / CONFIG}: the installed peft knows no setting '{key}' of "
                                    f"{kinds[kind].__name__}; install the version that wrote it "
                                    f"({self.config.get('peft_version', 'unknown')})")
                continue
            _check_type(self.folder / CONFIG, kinds[kind], key, value)
            settings[key] = 0.0 if "dropout" in key else value
        if settings.get("prefix_projection"):  # the file holds what the projection gave
            settings["prefix_projection"] = False
        return MethodSpec(self.folder.name, "peft", kinds[kind].__name__, settings, 0.0)

    @property
    def dtype(self) -> torch.dtype:
        """The type of most tensors in the file."""
        return Counter(self.dtypes.values()).most_common(1)[0][0]


def _check_type(path: Path, config: type, key: str, value: object) -> None:
    """Refuse a value of another type than the library says."""
    hint = get_type_hints(config)[key]
    try:
        TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value)
    except ValidationError as error:
        raise UserError(
            f"{path}: {key} cannot be {str(value)[:80]!r} ({error.errors()[0]['msg']})") from error
    except PydanticUserError:  # a type with settings of its own
        TypeAdapter(hint).validate_python(value)


def read_folder(folder: Path) -> AdapterFolder:
    """An adapter folder, checked.

    Raises:
        UserError: a file is missing, truncated or no such file, or holds what no adapter has.
    """
    config = read_config(folder / CONFIG)
    if (folder / WEIGHTS).is_file():
        found = _safetensors(folder / WEIGHTS)
    elif (folder / PICKLE).is_file():
        found = _pickle(folder / PICKLE)
    else:
        raise UserError(f"{folder} holds no {WEIGHTS}; an adapter folder has it beside {CONFIG}")
    if not found:
        raise UserError(f"{folder} holds no tensor")
    for key, tensor in found.items():
        if not tensor.is_floating_point():
            raise UserError(f"{folder}: {key} is of type {tensor.dtype}, and a module's numbers are floating "
                            "point")
        if not tensor.isfinite().all():
            raise UserError(f"{folder}: {key} holds numbers that are not finite")
    return AdapterFolder(folder, config, {key: tensor.float() for key, tensor in found.items()},
                         {key: tensor.dtype for key, tensor in found.items()})


def read_config(path: Path) -> dict[str, Any]:
    """An adapter_config.json, checked.

    Raises:
        UserError: it is missing, larger than one ever is, or no JSON object.
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
    if not isinstance(found.get("base_model_name_or_path"), str | None):
        raise UserError(f"{path}: base_model_name_or_path must be text")
    return found


def _safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(f"{path} cannot be read: {str(error)[:200]}; copy or download it again") from error


def _pickle(path: Path) -> dict[str, Tensor]:
    """By torch's restricted loader, which runs no code of the file."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of unpicklers there are many
        raise UserError(f"{path} is refused by torch's restricted loader, or damaged: "
                        f"{str(error).splitlines()[0][:200]}; have it saved as {WEIGHTS}") from error
    if not isinstance(found, dict) or not all(isinstance(key, str) and isinstance(value, Tensor)
                                              for key, value in found.items()):
        raise UserError(f"{path} holds something else than tensors by name")
    return found


# ---- names in a file, names in a host


def parameter_name(key: str) -> str:
    """The name that a key's parameter has on a host.

    Example:
        >>> parameter_name("base_model.model.layers.0.self_attn.q_proj.lora_A.weight")
        'layers.0.self_attn.q_proj.lora_A.module.weight'
    """
    if key == PROMPT:
        return key
    name = re.sub(r"^base_model\.(model\.)?", "", key)
    head, _, leaf = name.rpartition(".")
    if name in GLOBAL:
        return f"layers.0.{name}.{NAME}"
    if leaf in BARE_LEAF:
        return f"{name}.{NAME}.weight"
    return f"{head}.{NAME}.{leaf}" if leaf in ("weight", "bias") else f"{name}.{NAME}"


def module_of(adapter: AdapterFolder, shape: HostShape) -> ModuleState:
    """The module of a folder that was trained on a host of this shape.

    Raises:
        UserError: a tensor whose place or size is not that of such a host: the adapter is of another base.
    """
    tensors: dict[Slot, Tensor] = {}
    axes: dict[Slot, Axes] = {}
    for key, tensor in adapter.tensors.items():
        if key.rsplit(".", 1)[-1] in PROJECTIONS:
            continue
        layout = _layout(key, tensor, adapter, shape)
        tensors |= layout.decode(tensor)
        axes |= {slot: labels for slot, labels, _ in layout.slots}
    if not tensors:
        raise UserError(f"{adapter.folder} holds nothing that can be carried")
    return ModuleState(tensors, axes)


def _layout(key: str, tensor: Tensor, adapter: AdapterFolder, shape: HostShape) -> ParameterLayout:
    if re.search(r"(embed_tokens|lm_head|embeddings|classifier|score|dense|out_proj|pre_classifier)"
                 r"\.(weight|bias)$", key):
        raise UserError(f"{adapter.folder}: {key} is a whole matrix of the host beside the module "
                        "(modules_to_save, or a saved embedding), which cannot be carried")
    try:
        return layout_of(parameter_name(key), tuple(tensor.shape), adapter.spec, shape)
    except UserError as error:
        if not isinstance(error.__cause__, KeyError):
            raise
        raise UserError(f"{adapter.folder} does not belong to a {shape.family} host: it was made on another "
                        f"base ({error})") from error
