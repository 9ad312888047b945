"""Adapter folders of the `adapters` library: ``adapter_config.json`` with the method's settings in "config",
and ``adapter.safetensors``, or ``pytorch_adapter.bin``."""

import re
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from packaging.version import InvalidVersion, Version
from torch import Tensor, equal

from portability.core.architectures import Slot
from portability.core.errors import UserError
from portability.core.specs import HostShape, MethodSpec
from portability.methods.adapters_backend import NAME, config_of
from portability.methods.adapters_places import layout_of, parts_of
from portability.methods.adapters_reft import from_file
from portability.methods.folder import CONFIG, AdapterFolder, check_type
from portability.methods.module import Axes, ModuleState

TEXTS = ("name", "model_name", "model_type", "version")
HOLDERS = "adapters|loras|prefix_tunings|prefix_gates|shared_parameters|refts|prompt_tunings"
OFF = {"dropout": 0.0, "dtype": None, "init_weights_seed": None}  # of the making of a module, not of it
RESCALED = Version("1.1.0")  # LoRA before it was not multiplied by alpha / r (adapters, pull request 770)


@dataclass
class AdaptersFolder(AdapterFolder):
    """A folder of adapters."""

    library: ClassVar[str] = "adapters"
    about: ClassVar[tuple[str, ...]] = ("model_name", "model_class", "config_id")

    def __post_init__(self) -> None:
        for key in TEXTS:
            if not isinstance(self.config.get(key), str | None):
                raise UserError(f"{self.folder / CONFIG}: {key} must be text")

    @property
    def base(self) -> str | None:
        """As `AdapterFolder.base`."""
        return self.config.get("model_name") or None

    @property
    def name(self) -> str:
        """The adapter's name, which stands in the keys of its tensors."""
        return str(self.config.get("name") or NAME)

    @property
    def spec(self) -> MethodSpec:
        """As `AdapterFolder.spec`."""
        kind, settings = self._read(self.config["config"])
        return MethodSpec(self.called, self.library, kind, settings, 0.0)

    @property
    def spec_of_sizes(self) -> MethodSpec:
        """As `AdapterFolder.spec_of_sizes`: a bottleneck stays what it is on the base.

        Raises:
            UserError: the configuration does not say the base's width.
        """
        spec = self.spec
        parts = [self._sized(part) for part in spec.settings.get("configs", [spec.settings])]
        return replace(spec, settings={"configs": parts} if "configs" in spec.settings else parts[0])

    def _sized(self, part: dict[str, Any]) -> dict[str, Any]:
        if part.get("reduction_factor") is None:
            return part
        width = self.config.get("hidden_size")
        if not isinstance(width, int):
            raise UserError(f"{self.folder / CONFIG}: hidden_size, the base's width, must be a whole number")
        kept = {key: value for key, value in part.items() if key != "reduction_factor"}
        return kept | {"bottleneck": max(1, int(width // part["reduction_factor"]))}

    def _read(self, given: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Config class and settings of a method, or of each part of a union."""
        try:
            from adapters import AdapterConfig
        except ImportError as error:
            raise UserError(f"{self.folder} is of library adapters, which cannot be imported here ({error}); "
                            "pip install adapters") from error
        try:
            kind = AdapterConfig._get_config_class(given)
        except (KeyError, TypeError) as error:
            raise UserError(f"{self.folder / CONFIG}: the installed adapters has no architecture "
                            f"{str(given.get('architecture'))[:80]!r}") from error
        if kind.__name__ == "ConfigUnion":
            parts = given.get("configs")
            if not isinstance(parts, list) or not parts or not all(
                    isinstance(one, dict) and one.get("architecture") != "union" for one in parts):
                raise UserError(f"{self.folder / CONFIG}: configs must be a list of the methods of a union")
            return "ConfigUnion", {"configs": [
                {"architecture": one.get("architecture")} | self._read(one)[1] for one in parts]}
        return kind.__name__, self._settings(kind, given)

    def _settings(self, kind: Any, given: dict[str, Any]) -> dict[str, Any]:
        """Settings of one method, of the types that the library says."""
        settings = {}
        for key, value in given.items():
            if key == "architecture":
                continue
            if key not in kind.__dataclass_fields__:
                if value:
                    raise UserError(f"{self.folder / CONFIG}: the installed adapters knows no setting "
                                    f"'{key}' of {kind.__name__}; install the version that wrote it "
                                    f"({self.config.get('version', 'unknown')})")
                continue
            check_type(self.folder / CONFIG, kind, key, value)
            settings[key] = OFF.get(key, value)
        if isinstance(settings.get("reduction_factor"), dict):
            raise UserError(f"{self.folder / CONFIG}: bottlenecks of unequal sizes (reduction_factor by "
                            "layer) cannot be ported")
        if settings.get("reduction_factor", 1) <= 0 or settings.get("r", 1) <= 0:
            raise UserError(f"{self.folder / CONFIG}: reduction_factor and r must be above 0")
        if "r" in settings and given.get("composition_mode", "add") == "add" and self._unscaled():
            settings["alpha"] = settings["r"]
        return settings

    def _unscaled(self) -> bool:
        """Whether a version of the library made the folder that did not multiply a LoRA by alpha / r."""
        version = str(self.config.get("version", ""))
        try:
            return "adapters." in version and Version(version.removeprefix("adapters.")) < RESCALED
        except InvalidVersion as error:
            raise UserError(f"{self.folder / CONFIG}: adapters has no version {version[:40]!r}") from error

    def module(self, shape: HostShape) -> ModuleState:
        """As `AdapterFolder.module`. What the layers share may stand in the file once a layer."""
        for key, wanted in (("model_type", shape.family), ("hidden_size", shape.hidden)):
            if (found := self.config.get(key)) not in (None, wanted):
                raise UserError(f"{self.folder}: its {key} is {str(found)[:40]}, and the base's is {wanted}: "
                                "it was made on another base; name that one (--from HOST, or origin=HOST)")
        spec = self.spec
        config = config_of(spec, shape)
        tensors: dict[Slot, Tensor] = {}
        axes: dict[Slot, Axes] = {}
        try:
            given = from_file(self.tensors)
        except UserError as error:
            raise UserError(f"{self.folder}: {error}") from error
        for key, tensor in given.items():
            layout = layout_of(self._parameter(key), tuple(tensor.shape), spec, config, shape)
            for slot, part in layout.decode(tensor).items():
                if not equal(tensors.setdefault(slot, part), part):
                    raise UserError(f"{self.folder}: {key} differs from another tensor of its place")
            axes |= {slot: labels for slot, labels, _ in layout.slots}
        shared = any(getattr(one, "phm_layer", False) for one in parts_of(config))
        if shared and Slot("shared", 0, "phm", "rule") not in tensors:
            raise UserError(f"{self.folder} lacks shared_parameters.{self.name}.phm_rule, without which no "
                            "Compacter can be computed; adapters leaves it out where it saves a model whose "
                            "layers have no name before them (as T5): save that tensor beside the others")
        return ModuleState(tensors, axes)

    def _parameter(self, key: str) -> str:
        """The name that a key's parameter has on a host."""
        return re.sub(rf"(^|\.)({HOLDERS})\.{re.escape(self.name)}\.", rf"\1\2.{NAME}.", key)
