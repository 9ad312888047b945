"""Methods of the `adapters` library (Poth et al. 2023, arXiv 2311.11077).

    adapter   (Houlsby et al. 2019)     h + U f(D h), D (bottleneck, hidden), U (hidden, bottleneck)
    compacter (Mahabadi et al. 2021)    the same, D and U sums of Kronecker products of shared rules with L R
    lora      (Hu et al. 2021)          W x + alpha / r  B A x, A (r, in), B (out, r)
    prefix    (Li & Liang 2021)         vectors (prefix, heads, head size) before each layer's keys and values
    loreft    (Wu et al. 2024)          states of a text's first and last tokens edited (adapters_reft.py)

No other module of the package, but for the benchmark, knows the library. It replaces layers of a host by its
own when it is attached first, and these round a T5's attention otherwise: see `prepare`.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from portability.core.errors import UserError, validate_choice
from portability.core.specs import HostShape, MethodSpec
from portability.core.versions import look_for
from portability.hosts.host import Host
from portability.methods.adapters_places import BOTTLENECKS, layout_of, parts_of
from portability.methods.adapters_reft import check_reft, mount, to_file
from portability.methods.base import AttachedMethod

NAME = "module"  # the adapter's name inside the host
CONFIG, WEIGHTS = "adapter_config.json", "adapter.safetensors"

PORTABLE: dict[str, tuple[Any, ...]] = {  # setting -> the values with which a module can be ported
    "composition_mode": ("add", "scale"), "use_dora": (False,), "vera_d": (None,), "vera_b": (None,),
    "dtype": (None,), "init_weights_seed": (None,), "inv_adapter": (None,), "stochastic_depth": (0.0,),
    "shared_phm_rule": (True,), "factorized_phm_rule": (False,), "factorized_phm_W": (True,),
    "shared_W_phm": (False,),
}
REFUSED = {  # kind of method -> why
    "prompt_tuning": "a prompt lengthens the texts, whose masks are ready-made; prefix changes no length",
    "mtl_lora": "the modules of several tasks are one in it",
}
NO_HOSTS = {
    "modernbert": " (it gives their query, key and value layer a random bias, which changes the host)",
}
REASONS = {
    "use_dora": "DoRA is of library peft here (LoraConfig with use_dora)",
    "vera_d": "VeRA is of library peft here (VeraConfig)",
}
UNIONS = {  # config class of several methods -> argument -> config class of each
    "MAMConfig": {"prefix_tuning": "PrefixTuningConfig", "adapter": "ParBnConfig"},
    "UniPELTConfig": {"prefix_tuning": "PrefixTuningConfig", "adapter": "SeqBnConfig", "lora": "LoRAConfig"},
}


class AdaptersBackend:
    """The library as a `MethodBackend`."""

    def attach(self, host: Host, spec: MethodSpec) -> "AdaptersMethod":
        """As `MethodBackend.attach`; the first call on a host changes its layers' classes for good."""
        look_for("adapters", f"method '{spec.name}'")
        if host.family not in BOTTLENECKS:
            raise UserError(f"method '{spec.name}': adapters has no {host.family} hosts"
                            f"{NO_HOSTS.get(host.family, '')}; use a method of peft, such as lora_peft")
        config = config_of(spec, host.spec.shape)
        prepare(host)
        method = AdaptersMethod(host, spec, config)
        try:
            method.read_layouts()
        except UserError:
            method.detach()
            raise
        return method


class AdaptersMethod(AttachedMethod):
    """A method of the library on a host; `config` is the library's own."""

    def __init__(self, host: Host, spec: MethodSpec, config: Any):
        super().__init__(host, spec)
        self.config = config
        self.hooks: list[RemovableHandle] = []
        self._add()

    def _add(self) -> None:
        try:
            self.host.model.add_adapter(NAME, config=self.config)
        except Exception as error:  # each method has its own
            self.detach()
            said, kind = str(error).split("\n")[0][:200] or type(error).__name__, self.spec.config
            if "is not supported by this model" in str(error):
                said = (f"adapters has no {kind} for {self.host.family} hosts; use a method of peft, such as "
                        "lora_peft")
            else:
                said = f"adapters refuses {kind} on host '{self.host.spec.name}': {said}"
            raise UserError(f"method '{self.spec.name}': {said}") from error
        self.host.model.train_adapter(NAME)
        self.host.model.eval()
        if any(part.architecture == "reft" for part in parts_of(self.config)):
            self.hooks = mount(self.host, NAME)

    def read_layouts(self) -> None:
        """Set the layouts, of the parameters that the library wants to train, and the scale.

        Raises:
            UserError: a parameter whose place or meaning is not known.
        """
        trained = {name: tuple(p.shape) for name, p in self.host.model.named_parameters() if p.requires_grad}
        self.layouts = [layout_of(name, shape, self.spec, self.config, self.host.spec.shape)
                        for name, shape in trained.items()]
        factor = getattr(self.config, "scaling", 1.0)
        if hasattr(self.config, "alpha") and not self.config.use_gating:
            self.scale = self.config.alpha / self.config.r
        elif not isinstance(factor, str):  # else it is trained
            self.scale = float(factor)

    def draw(self, seed: int) -> dict[str, Tensor]:
        """As the library initialises them, under torch's global generator."""
        self._remove()
        return self._drawn(seed, self._add)

    def _remove(self) -> None:
        self.host.model.delete_adapter(NAME)
        for hook in self.hooks:
            hook.remove()

    def detach(self) -> None:
        """Delete the adapter."""
        self.host.model.set_active_adapters(None)
        self._remove()

    def save(self, parameters: Mapping[str, Tensor], folder: Path, about: Mapping[str, Any],
             dtype: torch.dtype = torch.float32) -> None:
        """As `AttachedMethod.save`: `load_adapter` reads the folder.

        The file has each parameter once. The library's own `save_adapter` asks safetensors to write a prefix
        once a layer, which it refuses, and leaves out what Compacter's layers share.

        Args:
            about: base_model_name_or_path, and perhaps the adapter's name.
        """
        from adapters.configuration.model_adapters_config import build_full_config
        from safetensors.torch import save_file

        model, name = self.host.model, about.get("name") or NAME
        config = build_full_config(
            self.config, model.config, model_name=about.get("base_model_name_or_path"), name=name,
            model_class=type(model).__name__)
        values = {key.replace(f".{NAME}.", f".{name}."): tensor for parameter, value in parameters.items()
                  for key, tensor in to_file(parameter, value, dtype).items()}
        folder.mkdir(parents=True)
        (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True))
        save_file(values, folder / WEIGHTS, {"format": "pt"})

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """No adapter is active within it."""
        self.host.model.set_active_adapters(None)
        try:
            yield
        finally:
            self.host.model.set_active_adapters(NAME)


def prepare(host: Host) -> Host:
    """Replace a host's layers by the library's, in place, unless they are already.

    Whoever computes numbers that are stored calls it on a new host: without a method the layers compute the
    same function, but the last bits of a T5's attention differ, which must not depend on what was attached
    before. Where the library is not installed, or knows no such hosts, no method of it can be attached, and
    hosts stay as they are.
    """
    if host.family not in BOTTLENECKS:
        return host
    try:
        import adapters
    except ImportError:
        return host

    if not isinstance(host.model, adapters.ModelAdaptersMixin):
        device = host.model.device
        adapters.init(host.model)
        host.model.requires_grad_(False).eval()
        if not host.devices:
            host.model.to(device)
        if host.family in ("llama", "mistral"):
            for layer in host.model.base_model.layers:
                layer.register_forward_pre_hook(_former_name, with_kwargs=True)
    return host


def _former_name(layer: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """The library's layer of a llama or mistral takes a cache by its former name alone."""
    cache = kwargs.pop("past_key_values", None)
    return args, kwargs if cache is None else kwargs | {"past_key_value": cache}


# ---- from a method's settings to the library's config


def config_of(spec: MethodSpec, shape: HostShape) -> Any:
    """A config object of the library; of a union each part has settings of its own.

    Raises:
        UserError: unknown config class or setting, a kind of method that cannot be ported, or a width that
            does not divide.
    """
    import adapters

    if spec.config == "ConfigUnion":
        parts = [(adapters.AdapterConfig._get_config_class(part).__name__,
                  {key: value for key, value in part.items() if key != "architecture"})
                 for part in spec.settings["configs"]]
        try:
            return adapters.ConfigUnion(*[_one_config(kind, part, spec, shape) for kind, part in parts])
        except ValueError as error:
            raise UserError(f"method '{spec.name}': {str(error)[:300]}") from error
    if (kinds := UNIONS.get(spec.config)) is None:
        return _one_config(spec.config, spec.settings, spec, shape)
    for key in spec.settings:
        validate_choice(key, kinds, f"setting of method '{spec.name}'")
    return getattr(adapters, spec.config)(**{
        key: _one_config(kind, spec.settings.get(key, {}), spec, shape) for key, kind in kinds.items()})


def _one_config(kind: str, given: Mapping[str, Any], spec: MethodSpec, shape: HostShape) -> Any:
    """A config object of one method.

    `bottleneck` is a setting of our own: the library ties the bottleneck to the width through
    `reduction_factor`, so the factor follows here and the module keeps its size on every host.
    """
    import adapters

    classes = {name for name in dir(adapters) if name.endswith("Config")}
    settings = dict(given)
    if (bottleneck := settings.pop("bottleneck", None)) is not None:
        settings["reduction_factor"] = shape.hidden / (bottleneck + 0.5)  # the library rounds down
    try:
        config = getattr(adapters, validate_choice(kind, classes, "config class of adapters"))(**settings)
    except (TypeError, ValueError) as error:
        raise UserError(f"method '{spec.name}': {error} (conf/method/{spec.name}.yaml)") from error
    if config.architecture in REFUSED:
        raise UserError(f"method '{spec.name}': {kind} cannot be ported: {REFUSED[config.architecture]}")
    if config.architecture == "reft":
        try:
            check_reft(config, kind, shape)
        except UserError as error:
            raise UserError(f"method '{spec.name}': {error} (conf/method/{spec.name}.yaml)") from error
    for key in ("dropout", "attention_dropout"):
        if value := getattr(config, key, None):
            raise UserError(f"method '{spec.name}': {key}={value} is not supported, set it to 0")
    for key, wanted in PORTABLE.items():
        if (found := getattr(config, key, wanted[0])) not in wanted:
            known = " or ".join(str(one) for one in wanted)
            reason = f": {REASONS[key]}" if key in REASONS else (
                "; choose another config class or setting (conf/method)")
            raise UserError(f"method '{spec.name}': {kind} with {key}={found} cannot be ported, only with "
                            f"{key}={known}{reason}")
    if parts := getattr(config, "phm_layer", False) and config.phm_dim:
        for what, size in (("width", shape.hidden), ("bottleneck", bottleneck)):
            if size is not None and size % parts:
                raise UserError(f"method '{spec.name}': the {what} {size} must divide by phm_dim {parts}; a "
                                f"{what} of {max(size - size % parts, parts)} would fit")
    return config
