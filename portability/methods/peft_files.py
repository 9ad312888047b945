"""Adapter folders of the `peft` library: ``adapter_config.json`` and ``adapter_model.safetensors``, or
``.bin``."""

import re
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from portability.core.architectures import Slot
from portability.core.errors import UserError, choose
from portability.core.specs import HostShape, MethodSpec
from portability.methods.base import ParameterLayout
from portability.methods.folder import CONFIG, AdapterFolder, check_type
from portability.methods.module import Axes, ModuleState
from portability.methods.peft_backend import BARE_LEAF, GLOBAL, NAME, PROJECTIONS, PROMPT, layout_of

ABOUT = (  # keys of a configuration that say where it comes from, not what the method is
    "peft_type", "peft_version", "auto_mapping", "base_model_name_or_path", "revision", "task_type",
    "inference_mode")
PLACES = (  # settings that name modules of the origin's architecture
    "target_modules", "exclude_modules", "feedforward_modules", "layers_to_transform", "layers_pattern",
    "rank_pattern", "alpha_pattern")
OF_HOST = (  # sizes of the host that peft writes down beside a prompt
    "token_dim", "num_attention_heads", "num_layers", "num_transformer_submodules", "encoder_hidden_size")


@dataclass
class PeftFolder(AdapterFolder):
    """A folder of peft."""

    library: ClassVar[str] = "peft"
    about: ClassVar[tuple[str, ...]] = ABOUT

    def __post_init__(self) -> None:
        if not isinstance(self.config.get("base_model_name_or_path"), str | None):
            raise UserError(f"{self.folder / CONFIG}: base_model_name_or_path must be text")

    @property
    def base(self) -> str | None:
        """As `AdapterFolder.base`."""
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
            check_type(self.folder / CONFIG, kinds[kind], key, value)
            settings[key] = 0.0 if "dropout" in key else value
        if settings.get("prefix_projection"):  # the file holds what the projection gave
            settings["prefix_projection"] = False
        return MethodSpec(self.folder.name, "peft", kinds[kind].__name__, settings, 0.0)

    def module(self, shape: HostShape) -> ModuleState:
        """As `AdapterFolder.module`."""
        tensors: dict[Slot, Tensor] = {}
        axes: dict[Slot, Axes] = {}
        for key, tensor in self.tensors.items():
            if key.rsplit(".", 1)[-1] in PROJECTIONS:
                continue
            layout = _layout(key, tensor, self, shape)
            tensors |= layout.decode(tensor)
            axes |= {slot: labels for slot, labels, _ in layout.slots}
        if not tensors:
            raise UserError(f"{self.folder} holds nothing that can be carried")
        return ModuleState(tensors, axes)


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


def _layout(key: str, tensor: Tensor, adapter: PeftFolder, shape: HostShape) -> ParameterLayout:
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
