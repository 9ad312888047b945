"""Somebody's adapter folder fitted to another host, out of which comes a folder of the same method."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from portability.core.specs import HostShape, HostSpec, MethodSpec, PortSpec
from portability.hosts.host import Host, load_host, load_skeleton
from portability.methods import attach
from portability.methods.adapters_backend import AdaptersMethod
from portability.methods.adapters_files import AdaptersFolder
from portability.methods.base import AttachedMethod
from portability.methods.files import module_of
from portability.methods.folder import AdapterFolder
from portability.methods.module import ModuleState
from portability.methods.peft_backend import PROJECTIONS, Form, PeftMethod
from portability.methods.peft_files import PeftFolder
from portability.porting.adapters_settings import adapters_settings
from portability.porting.axes import MULTIPLIES
from portability.porting.base import Port, PortContext
from portability.porting.port import port
from portability.porting.settings import peft_settings


@dataclass
class PortedAdapter:
    """An adapter on its receiving host.

    Attributes:
        attached: the method on a skeleton of the receiving host.
        parameters: by their names on the receiving host.
        port: module, masks and report.
        prefix: of the receiving model inside the class that the folder is for.
    """

    adapter: AdapterFolder
    origin: HostSpec
    receiving: HostSpec
    attached: AttachedMethod
    parameters: dict[str, Tensor]
    port: Port
    prefix: str = ""

    def write(self, folder: Path, base: str, revision: str | None = None) -> None:
        """Write the folder, in the numbers' type of the one that came in.

        Args:
            base: the receiving host's name for base_model_name_or_path.
        """
        if isinstance(self.attached, AdaptersMethod) and isinstance(self.adapter, AdaptersFolder):
            named = {"base_model_name_or_path": base, "name": self.adapter.name}
            self.attached.save(self.parameters, folder, named, self.adapter.dtype)
            return
        assert isinstance(self.attached, PeftMethod)
        about = {"base_model_name_or_path": base, "revision": revision,
                 "task_type": self.adapter.config.get("task_type")}
        beside = {key: tensor.to(self.adapter.dtypes[key]) for key, tensor in self.adapter.tensors.items()
                  if key.rsplit(".", 1)[-1] in PROJECTIONS}
        self.attached.save(self.parameters, folder, about, Form(self.adapter.dtype, self.prefix, beside))

    @property
    def spec(self) -> MethodSpec:
        """The method, with the receiving host's names."""
        return self.attached.spec


def port_folder(
    adapter: AdapterFolder, origin: HostSpec, receiving: HostSpec, strategy: str = "pad",
    layer_map: str = "stretch", partial: bool = False, seed: int = 0,
    load: Callable[[HostSpec], Host] = load_host,
) -> PortedAdapter:
    """An adapter fitted to another host. No host's weights are read, unless the strategy asks for them or a
    part of the module stays fresh.

    Args:
        partial: whether what has no counterpart may stay fresh, or be dropped.
        seed: of fresh parts.

    Raises:
        UserError: the adapter is of another base, the hosts do not go together, or the library refuses the
            method on the receiving host.
    """
    module = module_of(adapter, origin.shape)
    settings = _settings(adapter, module, origin.shape, receiving.shape, layer_map)
    spec = replace(adapter.spec, settings=settings)
    with torch.device("meta"):
        attached = attach(load_skeleton(receiving), spec)
    fresh = attached.to_state({name: torch.zeros(shape) for name, shape in attached.shapes.items()})
    context = PortContext(origin, receiving, fresh, PortSpec(strategy, strategy, layer_map, partial), load)
    done = port(module, context)
    if any(not mask.all() and (slot.role in MULTIPLIES or not mask.any())
           for slot, mask in done.carried.items()):  # what stays fresh has to be drawn
        there = attach(load(receiving), spec)
        done = port(module, replace(context, fresh=there.init_parameters(seed)))
    return PortedAdapter(adapter, origin, receiving, attached, attached.to_parameters(done.module), done,
                         _prefix(adapter, origin, receiving))


def _settings(adapter: AdapterFolder, module: ModuleState, origin: HostShape, receiving: HostShape,
              layer_map: str) -> dict[str, Any]:
    """The method's settings on the receiving host, by the adapter's library."""
    if isinstance(adapter, AdaptersFolder):
        return adapters_settings(adapter, origin, receiving, layer_map)
    assert isinstance(adapter, PeftFolder)
    return peft_settings(adapter, module, origin, receiving, layer_map)


def _prefix(adapter: AdapterFolder, origin: HostSpec, receiving: HostSpec) -> str:
    """The name under which a class with a head of its own holds the receiving model, where the folder was
    made on such a class, as of BertForSequenceClassification ("bert.")."""
    def prefix(spec: HostSpec) -> str:
        return str(load_skeleton(spec).model.base_model_prefix)

    if adapter.library != "peft":
        return ""
    if origin.shape.layers.keys() != {"encoder"} or receiving.shape.layers.keys() != {"encoder"}:
        return ""
    inside = f"base_model.model.{prefix(origin)}."
    return f"{prefix(receiving)}." if all(key.startswith(inside) for key in adapter.tensors) else ""
