"""A LoRA in the other library's form: the same matrices, ranks and scales under that library's names."""

from typing import Any

from torch import Tensor

from portability.core.architectures import FAMILIES
from portability.core.errors import UserError
from portability.core.specs import HostShape
from portability.methods.adapters_backend import NAME
from portability.methods.adapters_files import AdaptersFolder
from portability.methods.adapters_places import BOTTLENECKS
from portability.methods.files import module_of
from portability.methods.folder import AdapterFolder
from portability.methods.module import ModuleState
from portability.methods.peft_backend import UNDERSTOOD, file_key
from portability.methods.peft_files import PeftFolder
from portability.porting.adapters_settings import lora_flags
from portability.porting.settings import Place, full_name, low_ranks, sites_of

OURS = ("query", "key", "value")
ONLY = UNDERSTOOD | {  # settings of peft that change what a LoRA computes -> the values that adapters has too
    "use_dora": (False,), "use_rslora": (False,)}


def in_library(adapter: AdapterFolder, shape: HostShape, library: str) -> AdapterFolder:
    """The folder, in memory, as `library` would have written it on the same base.

    Args:
        shape: of its base.

    Raises:
        UserError: it is no LoRA, or the other library has none of the same matrices, rank and scale.
    """
    if adapter.library == library:
        return adapter
    spec = adapter.spec
    if spec.config.lower() != "loraconfig" or spec.settings.get("composition_mode", "add") != "add":
        kind = "IA3Config" if spec.config == "LoRAConfig" else spec.config
        raise UserError(f"--format {library}: a LoRA alone can change its library, and {adapter.folder} "
                        f"holds a module of {kind}")
    module = module_of(adapter, shape)
    have = {site for slot in module.tensors for site in slot.site.split("+")}
    joined = {site for stack in FAMILIES[shape.family].matrices.values() for site in stack.values()
              if "+" in site and have & set(OURS) & set(site.split("+"))}
    if joined:
        raise UserError(f"--format {library}: a {shape.family} host has query, key and value in one matrix, "
                        "beside which peft has one A for all and adapters one for each")
    return _to_adapters(adapter, module, shape) if library == "adapters" else _to_peft(adapter, module, shape)


def _paths(module: ModuleState, shape: HostShape) -> dict[Place, str]:
    """Place of each pair -> the name of its matrix; of several, T5's ungated and gated
    feed-forward layer, one of them, whose place is the same."""
    wanted = dict.fromkeys((slot.stack, slot.layer, slot.site) for slot in module.tensors)
    return {place: full_name(place, path, shape.family) for place in wanted
            for site, path in sites_of(shape.family, place[0]) if site == place[2]}


def _named(module: ModuleState, paths: dict[Place, str]) -> dict[tuple[str, str], Tensor]:
    """Matrix's name, role -> A (r, in) or B (out, r)."""
    return {(paths[slot.stack, slot.layer, slot.site], slot.role):
            tensor.reshape(tensor.shape[0], -1) if slot.role == "A" else tensor.reshape(-1, tensor.shape[-1])
            for slot, tensor in module.tensors.items()}


def _to_peft(adapter: AdapterFolder, module: ModuleState, shape: HostShape) -> PeftFolder:
    """A folder of peft."""
    if adapter.spec.settings.get("use_gating"):
        raise UserError(f"--format peft: the LoRA in {adapter.folder} has gates, and peft has none")
    paths = _paths(module, shape)
    outer = next((key.partition(name)[0] for key in adapter.tensors for name in paths.values()
                  if f".{name}.loras." in f".{key}"), "")  # of the class that the folder was made on
    tensors = {file_key(f"{outer}{name}.lora_{role}.{NAME}.weight"): tensor
               for (name, role), tensor in _named(module, paths).items()}
    settings = adapter.spec.settings
    config: dict[str, Any] = {
        "peft_type": "LORA", "base_model_name_or_path": adapter.base, "task_type": None,
        "r": settings["r"], "lora_alpha": settings["alpha"]}
    return PeftFolder(adapter.folder, config, tensors, dict.fromkeys(tensors, adapter.dtype))


def _to_adapters(adapter: AdapterFolder, module: ModuleState, shape: HostShape) -> AdaptersFolder:
    """A folder of adapters, whose one rank and scale hold for all matrices."""
    where = f"--format adapters: the LoRA in {adapter.folder}"
    if shape.family not in BOTTLENECKS:
        raise UserError(f"--format adapters: adapters has no {shape.family} hosts")
    assert isinstance(adapter, PeftFolder)
    settings = adapter.spec.settings
    for key, values in ONLY.items():
        if settings.get(key, values[0]) not in values:
            raise UserError(f"{where} has {key}={settings[key]}, and adapters has no such setting")
    lows = set(low_ranks(adapter, shape).values())
    if len(lows) != 1:
        raise UserError(f"{where} has several ranks or scales, and adapters has one for all matrices")
    rank, alpha = lows.pop()
    if alpha != int(alpha):
        raise UserError(f"{where} has lora_alpha={alpha:g}, and adapters' alpha is a whole number")
    have = {slot.site.removeprefix("cross_") for slot in module.tensors}
    config = {"architecture": "lora", "r": rank, "alpha": int(alpha), "selfattn_lora": bool(have & set(OURS)),
              "attn_matrices": [site[0] for site in OURS if site in have],
              **{flag: site in have for site, flag in lora_flags(shape.family).items()}}
    _check_places({(slot.stack, slot.layer, slot.site) for slot in module.tensors}, config, shape, where)
    tensors = {f"{name}.loras.{NAME}.lora_{role}": tensor
               for (name, role), tensor in _named(module, _paths(module, shape)).items()}
    return AdaptersFolder(adapter.folder, {
        "config": config, "model_name": adapter.base, "model_type": shape.family, "hidden_size": shape.hidden,
        "name": NAME}, tensors, dict.fromkeys(tensors, adapter.dtype))


def _check_places(have: set[Place], config: dict[str, Any], shape: HostShape, where: str) -> None:
    """Refuse pairs that stand elsewhere than adapters puts them for these settings."""
    flags, found = lora_flags(shape.family), set[Place]()
    for stack, paths in FAMILIES[shape.family].matrices.items():
        for site in paths.values():
            plain = site.removeprefix("cross_")
            flag = flags.get(plain, "")
            if plain[0] in config["attn_matrices"] if plain in OURS else config.get(flag, False):
                found |= {(stack, layer, site) for layer in range(shape.layers[stack])}
    if odd := sorted(have ^ found):
        stack, layer, site = odd[0]
        what = "has a pair" if odd[0] in have else "has none"
        raise UserError(f"{where} {what} beside {site} of {stack} layer {layer}, and adapters has them "
                        "beside query, key, value and the feed-forward's two layers, in all layers alike")
