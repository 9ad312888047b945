"""Adapter folders of the `peft` library: ``adapter_config.json`` and ``adapter_model.safetensors``, or
``.bin``."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from portability.core.architectures import Slot
from portability.core.errors import UserError, validate_choice
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
HEADS = ("classifier", "pre_classifier", "score", "qa_outputs")  # modules on top of a host's last states
IN_MODEL = "base_model.model."  # begins the keys of what stands in a model


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
        kind = validate_choice(str(self.config.get("peft_type")).upper(), kinds, "peft_type of "
                               f"{self.folder}")
        known = kinds[kind].__dataclass_fields__
        settings = {}
        for key, value in self.config.items():
            if key in (*ABOUT, *OF_HOST) or value in (None, {}, []):
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
        if kinds[kind].__name__ == "AdaLoraConfig":  # `module` gives the ranks back that it put out
            settings.pop("rank_pattern", None)
        return MethodSpec(self.called, "peft", kinds[kind].__name__, settings, 0.0)

    def without_head(self) -> tuple["PeftFolder", dict[str, Tensor]]:
        """The folder without the trained head that peft keeps beside the module (`modules_to_save`), and the
        head's tensors by key; the folder itself where it has none, or keeps other modules, too.

        Raises:
            UserError: it says that it has a head, and holds none.
        """
        names = self.config.get("modules_to_save")
        if not isinstance(names, list) or not names or not all(name in HEADS for name in names):
            return self, {}
        head = {key: tensor for key, tensor in self.tensors.items()
                if key.startswith(IN_MODEL) and key.removeprefix(IN_MODEL).partition(".")[0] in names}
        if not head:
            raise UserError(f"{self.folder} holds none of the modules that its {CONFIG} says it saves "
                            f"({', '.join(names)})")
        rest = {key: tensor for key, tensor in self.tensors.items() if key not in head}
        return replace(self, config={**self.config, "modules_to_save": None}, tensors=rest), head

    def module(self, shape: HostShape) -> ModuleState:
        """As `AdapterFolder.module`."""
        tensors: dict[Slot, Tensor] = {}
        axes: dict[Slot, Axes] = {}
        spec = self.spec
        for key, tensor in self.tensors.items():
            if key.rsplit(".", 1)[-1] in PROJECTIONS:
                continue
            if spec.config == "AdaLoraConfig":
                tensor = self._of_first_rank(key, tensor)
            layout = _layout(key, tensor, self.folder, spec, shape)
            if twice := tensors.keys() & (found := layout.decode(tensor)).keys():
                raise UserError(f"{self.folder}: {key} is a second tensor of {min(twice).key}, as of a "
                                "model of two towers, and one alone can be carried")
            tensors |= found
            axes |= {slot: labels for slot, labels, _ in layout.slots}
        if not tensors:
            raise UserError(f"{self.folder} holds nothing that can be carried")
        return ModuleState(tensors, axes)

    def _of_first_rank(self, key: str, tensor: Tensor) -> Tensor:
        """AdaLoRA's A (r, in), E (r, 1) or B (out, r) with zeros for the directions that training put out,
        whose rows peft leaves out of the file.

        Raises:
            UserError: it has not as many directions as the configuration says.
        """
        place, _, part = key.removeprefix(IN_MODEL).rpartition(".")
        kept = (self.config.get("rank_pattern") or {}).get(f"{place}.lora_E")
        axis = 1 if part == "lora_B" else 0
        if not isinstance(kept, list) or tensor.shape[axis:][:1] == (len(kept),):
            return tensor
        picks = [place for place, one in enumerate(kept) if one]
        if tensor.ndim != 2 or tensor.shape[axis] != len(picks):
            raise UserError(f"{self.folder}: {key} has shape {tuple(tensor.shape)}, and rank_pattern keeps "
                            f"{len(picks)} of {len(kept)} directions there")
        sizes = [len(kept) if one == axis else size for one, size in enumerate(tensor.shape)]
        return tensor.new_zeros(sizes).index_copy(axis, torch.tensor(picks, dtype=torch.long), tensor)


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


def _layout(key: str, tensor: Tensor, folder: Path, spec: MethodSpec, shape: HostShape) -> ParameterLayout:
    if re.search(r"(embed_tokens|lm_head|embeddings|classifier|score|dense|out_proj|pre_classifier)"
                 r"\.(weight|bias)$", key):
        raise UserError(f"{folder}: {key} is a whole matrix of the host beside the module "
                        "(modules_to_save, or a saved embedding), which cannot be carried")
    try:
        return layout_of(parameter_name(key), tuple(tensor.shape), spec, shape)
    except UserError as error:
        if not isinstance(error.__cause__, KeyError):
            raise
        raise UserError(f"{folder} does not belong to a {shape.family} host: it was made on another "
                        f"base ({error})") from error
