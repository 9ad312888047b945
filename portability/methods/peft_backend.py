"""Methods of the `peft` library (Mangrulkar et al. 2022): every tuner that puts parameters beside or into the
layers of a host.

A method is a config class of peft with settings as in an ``adapter_config.json``; `sites` is ours, and stands
for the modules of a family's sites (core.architectures). A parameter's part of the method is read off its
name (`PARTS`); "in" and "out" stand for the axes of the layer that it is put beside. What peft trains and no
row names is a method's own, which no port changes in size.

The forward pass is peft's. No other module of the package, but for files and the benchmark, knows the
library.
"""

import copy
import math
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from portability.core.architectures import FAMILIES, LORA_AXES, NORM_AXES, SITE_GROUPS, Slot, parse_name
from portability.core.errors import UserError, validate_choice
from portability.core.specs import HOST_AXES, HostShape, MethodSpec
from portability.hosts.host import Host
from portability.methods.base import AttachedMethod, ParameterLayout, SlotLayout
from portability.methods.module import Axes

NAME = "module"  # the adapter's name inside the host
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
BARE_LEAF = ("lora_magnitude_vector",)  # parameters whose "weight" the library leaves out of the key
GLOBAL = ("vblora_vector_bank",)  # saved without a place

PARTS: dict[str, tuple[str, Axes]] = {  # part of a parameter's name -> role, axes
    "lora_A": ("A", ("rank", "in")),  # LoRA, DoRA, AdaLoRA
    "lora_B": ("B", ("out", "rank")),
    "lora_E": ("E", ("rank", "one")),  # AdaLoRA's singular values
    "lora_embedding_A": ("A", ("rank", "in")),
    "lora_embedding_B": ("B", ("out", "rank")),
    "lora_magnitude_vector": ("magnitude", ("out",)),  # DoRA
    "hada_w1_a": ("w1_a", ("out", "rank")),  # LoHa: (w1_a w1_b) * (w2_a w2_b)
    "hada_w1_b": ("w1_b", ("rank", "in")),
    "hada_w2_a": ("w2_a", ("out", "rank")),
    "hada_w2_b": ("w2_b", ("rank", "in")),
    "hra_u": ("u", ("in", "rank")),  # HRA: a Householder reflection a column
    "ln_tuning_layers": ("weight", ("norm",)),
}
NORMS = "norms"  # all normalisations inside the layers, as a site
CONSTANT = ("ranknum",)  # AdaLoRA's, which peft lists among what is trained
PROJECTIONS = ("vera_A", "vera_B", "randlora_A", "randlora_B")  # frozen, drawn from a seed; saved with some
NAMED = re.compile(r"^(?P<place>.+?)\.(?P<part>\w+)\.module(?:\.(?P<leaf>weight|bias))?$")
SHARED = ("vblora_vector_bank",)  # one parameter of all layers, which peft names by the first of them
PROMPT = "prompt_embeddings"  # the one parameter of a method that stands before the text
PREFIX = "PrefixTuningConfig"
PROMPTS = ("PromptTuningConfig", PREFIX)

# Settings whose other values change the host itself, need peft's own training loop, or train what is no
# module: setting -> values that are understood.
UNDERSTOOD: dict[str, tuple[Any, ...]] = {
    "bias": ("none",), "modules_to_save": (None,), "layer_replication": (None,), "megatron_config": (None,),
    "init_lora_weights": (True, False, "gaussian", "orthogonal"), "trainable_token_indices": (None,),
    "target_parameters": (None,), "use_qalora": (False,), "use_bdlora": (None, False),
    "alora_invocation_tokens": (None,), "arrow_config": (None,), "lora_bias": (False,),
    "boft_n_butterfly_factor": (1,),  # without CUDA's compiler peft makes 1 of any other
    "corda_config": (None,), "loftq_config": (None, {}), "monteclora_config": (None,),
    "prefix_projection": (False,),
}


class Form(NamedTuple):
    """How a folder's weights are written.

    Attributes:
        prefix: of the model inside the class that the adapter is for, such as "bert.".
        beside: further tensors by key.
    """

    dtype: torch.dtype = torch.float32
    prefix: str = ""
    beside: Mapping[str, Tensor] = {}


PLAIN = Form()


class PeftBackend:
    """The library as a `MethodBackend`."""

    def attach(self, host: Host, spec: MethodSpec) -> "PeftMethod":
        """As `MethodBackend.attach`."""
        config = config_of(spec, host)
        kind: type[PeftMethod] = PeftMethod
        if config.is_prompt_learning:
            from portability.methods.peft_prompts import PromptMethod

            kind = PromptMethod
        method = kind(host, spec, config)
        try:
            method.read_layouts()
        except UserError:
            method.detach()
            raise
        return method


class PeftMethod(AttachedMethod):
    """A tuner of the library on a host; `config` is the library's own."""

    def __init__(self, host: Host, spec: MethodSpec, config: Any):
        super().__init__(host, spec)
        self.config = config
        self._add()

    def _add(self) -> None:
        from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
        from peft.tuners.boft import layer as boft

        tuner = PEFT_TYPE_TO_TUNER_MAPPING[self.config.peft_type]
        boft._FBD_CUDA = False  # else every layer of a BOFT starts a compiler, for a kernel that vmap refuses
        try:
            with warnings.catch_warnings():  # of compilers for GPUs, and of GPT-2's transposed layers
                warnings.simplefilter("ignore")
                self.tuner = tuner(self.host.model, self.config, NAME)
                self.tuner._cast_adapter_dtype(NAME)  # to fp32, as PeftModel does beside frozen bf16
        except Exception as error:  # each tuner has its own
            self.detach()
            raise UserError(f"method '{self.spec.name}': peft refuses {self.spec.config} on host "
                            f"'{self.host.spec.name}': {str(error) or type(error).__name__}") from error
        self.host.model.eval()

    def read_layouts(self) -> None:
        """Set the layouts, of the parameters that the library wants to train, and the scale.

        Raises:
            UserError: a parameter whose place is not known.
        """
        self.layouts = [layout_of(name, tuple(parameter.shape), self.spec, self.host.spec.shape)
                        for name, parameter in self.host.model.named_parameters()
                        if parameter.requires_grad and name.rpartition(".")[0].split(".")[-1] not in CONSTANT]
        family = self.host.spec.shape.family
        self.scales = {parse_name(family, f"{name}.weight"): float(layer.scaling[NAME])
                       for name, layer in self.host.model.named_modules()
                       if isinstance(getattr(layer, "scaling", None), dict) and NAME in layer.scaling}
        scales = set(self.scales.values())
        self.scale = scales.pop() if len(scales) == 1 else 1.0

    def draw(self, seed: int) -> dict[str, Tensor]:
        """As the library initialises them, under torch's global generator."""
        self._remove()
        return self._drawn(seed, self._add)

    def _remove(self) -> None:
        """Put the host's own layers back, of a half-finished attachment too."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        for parent in list(self.host.model.modules()):
            for name, child in parent.named_children():
                if isinstance(child, BaseTunerLayer):
                    setattr(parent, name, child.get_base_layer())

    def detach(self) -> None:
        """Put the host's own layers back."""
        self._remove()
        self.host.model.requires_grad_(False)

    def save(self, parameters: Mapping[str, Tensor], folder: Path, about: Mapping[str, Any],
             form: Form = PLAIN) -> None:
        """As `AttachedMethod.save`.

        Args:
            form: how the file's keys and numbers are to be.
        """
        from safetensors.torch import save_file

        config = copy.deepcopy(self.config)
        for key, value in {**about, "inference_mode": True}.items():
            setattr(config, key, value)
        values = {file_key(name, form.prefix): value.to(form.dtype).contiguous().clone()
                  for name, value in parameters.items()}
        folder.mkdir(parents=True)
        config.save_pretrained(str(folder))
        save_file(values | self._projections() | dict(form.beside), folder / WEIGHTS, {"format": "pt"})

    def _projections(self) -> dict[str, Tensor]:
        """Frozen random matrices that all layers share, by key; none of a host without numbers."""
        found = {}
        for name, value in self.host.model.named_buffers():
            if (part := name.removesuffix(f".{NAME}").rpartition(".")[
                2]) in PROJECTIONS and not value.is_meta:
                found[f"base_model.{part}"] = value.detach().cpu().contiguous().clone()
        return found

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """The tuner's layers compute as the host's own within it."""
        self.tuner.disable_adapter_layers()
        try:
            yield
        finally:
            self.tuner.enable_adapter_layers()


# ---- from a library's parameter to slots


def layout_of(name: str, shape: tuple[int, ...], spec: MethodSpec, host: HostShape) -> ParameterLayout:
    """The slots of a parameter; beside a layer of several sites what comes out is a slot a site.

    Raises:
        UserError: a parameter whose place or size is not known.
    """
    if name.endswith(PROMPT):
        return _prompt_layout(name, shape, spec, host)
    found = NAMED.match(name)
    if found is None:
        raise UserError(f"method '{spec.name}': no meaning is known for parameter {name} "
                        "(portability/methods/peft_backend.py)")
    part, leaf = found["part"], found["leaf"]
    try:
        stack, layer, site = ("shared", 0, part) if part in SHARED else parse_name(
            host.family, f"{found['place']}.weight")
    except KeyError as error:
        raise UserError(f"method '{spec.name}': {error.args[0]}") from error
    role, labels = PARTS.get(part) or (part, _own_axes(part, shape, host))
    if leaf == "bias":
        role, labels = f"{role}_bias" if part != "ln_tuning_layers" else "bias", (labels[0],)
    slots = []
    sites = site.split("+")
    for one in sites if labels[0] == "out" else sites[:1]:
        slot = Slot(stack, layer, site, role if len(sites) == 1 or labels[0] != "out" else f"{role}_{one}")
        slots.append(_slot(slot, one, labels, shape, host))
    if sum(math.prod(slot.sizes) for slot in slots) != math.prod(shape):
        raise UserError(f"method '{spec.name}': parameter {name} has shape {shape}, which does not belong to "
                        f"a {host.family} host of width {host.hidden}: it was made on another base; name "
                        "that one (--from HOST, or origin=HOST)")
    return ParameterLayout(name, shape, tuple(slots))


def _prompt_layout(name: str, shape: tuple[int, ...], spec: MethodSpec, host: HostShape) -> ParameterLayout:
    """A prompt is one slot, a flat prefix (prefix, layer, key | value, kv_heads, head_dim)."""
    count, stack = shape[0], next(iter(host.layers))
    slots = [SlotLayout(Slot("shared", 0, "prompt", "prompt"), ("prefix", "hidden"), (count, host.hidden))]
    if spec.config == PREFIX:
        axes, sizes = ("prefix", "kv_heads", "head_dim"), (count, host.kv_heads, host.head_dim)
        places = [(stack, layer, "self_prefix") if len(host.layers) == 1 else ("shared", 0, f"{layer}_prefix")
                  for layer in range(host.layers[stack])]  # of a decoder a pair may be several layers'
        slots = [SlotLayout(Slot(*place, role), axes, sizes)
                 for place in places for role in ("prefix_key", "prefix_value")]
    if (count, sum(math.prod(slot.sizes[1:]) for slot in slots)) != shape:
        raise UserError(f"method '{spec.name}': {name} has shape {shape}, which does not belong to a "
                        f"{host.family} host of width {host.hidden}: it was made on another base; name that "
                        "one (--from HOST, or origin=HOST)")
    return ParameterLayout(name, shape, tuple(slots), axis=1 if spec.config == PREFIX else 0)


def _own_axes(part: str, shape: tuple[int, ...], host: HostShape) -> Axes:
    """Labels of a parameter that means something beside layers of these widths alone, as weights of a frozen
    random matrix do; (IA)3's scale by what it meets."""
    if part == "ia3_l":
        return ("one", "in") if shape[0] == 1 else ("out", "one")
    widths = "x".join(str(host.size(axis)) for axis in HOST_AXES)
    return tuple(f"{part}.{axis} at {widths}" for axis in range(len(shape)))


def _slot(slot: Slot, site: str, labels: Axes, shape: tuple[int, ...], host: HostShape) -> SlotLayout:
    """A slot's axes and sizes; the method's own sizes, and a vocabulary's, are the parameter's."""
    axes: list[str] = []
    sizes: list[int] = []
    for label, size in zip(labels, shape, strict=True):
        into, out = LORA_AXES.get(site.removeprefix("cross_"), ((), ()))
        names = {"in": into, "out": out, "norm": NORM_AXES.get(site, ("hidden",))}.get(label, (label,))
        axes += names
        sizes += [host.size(name) or size for name in names]
    return SlotLayout(slot, tuple(axes), tuple(sizes))


# ---- from a method's settings to the library's config


def config_of(spec: MethodSpec, host: Host) -> Any:
    """A config object of the library.

    Raises:
        UserError: unknown config class or setting, or a value that cannot be ported or trained here.
    """
    import peft

    classes = {kind.__name__: kind for kind in peft.PEFT_TYPE_TO_CONFIG_MAPPING.values()}
    settings = dict(spec.settings)
    if (sites := settings.pop("sites", None)) is not None:
        if "target_modules" in settings:
            raise UserError(f"method '{spec.name}': sites and target_modules both say where it stands; leave "
                            f"one out, as in '~method.{spec.name}.settings.sites'")
        settings["target_modules"] = modules_at(sites, host.spec.shape, spec.name)
        if spec.config == "IA3Config" and "ffn_down" in sites:  # its scale meets what goes in
            settings.setdefault("feedforward_modules", modules_at(["ffn_down"], host.spec.shape, spec.name))
    for key, value in settings.items():
        if "dropout" in key and value:
            raise UserError(f"method '{spec.name}': {key}={value} is not supported, set it to 0")
        if key in UNDERSTOOD and value not in UNDERSTOOD[key]:
            known = " or ".join(str(one).lower() for one in UNDERSTOOD[key])
            raise UserError(f"method '{spec.name}': {spec.config} with {key}={value} cannot be ported, only "
                            f"with {known} (conf/method/{spec.name}.yaml)")
    try:
        return classes[validate_choice(spec.config, classes, "config class of peft")](**settings)
    except (TypeError, ValueError) as error:
        raise UserError(f"method '{spec.name}': {error} (conf/method/{spec.name}.yaml)") from error


def modules_at(sites: list[str], host: HostShape, method: str) -> list[str] | str:
    """A host's modules at sites or groups of sites, as peft takes them.

    Raises:
        UserError: a site that no family has, or that this one has nothing of.
    """
    family, found = FAMILIES[host.family], set()
    for site in sites:
        known = {*SITE_GROUPS, *LORA_AXES, NORMS}
        wanted = SITE_GROUPS.get(validate_choice(site, known, f"site of method '{method}'"), (site,))
        if site == NORMS:
            found |= {path for stack in family.norms.values() for path in stack}
            continue
        paths = [path for stack in family.matrices.values() for path, names in stack.items()
                 if set(wanted) & {name.removeprefix("cross_") for name in names.split("+")}]
        paths += [path for path, name in family.shared.items() if name in wanted]
        if not paths:
            raise UserError(f"method '{method}': a {host.family} host has no site '{site}'")
        found |= set(paths)
    return endings(found, host.family)


def endings(paths: set[str], family: str) -> list[str] | str:
    """What peft takes as target_modules for modules at these paths in every layer: the paths, or a regular
    expression where another path of the family ends like one of them.

    Example:
        >>> endings({"output.dense"}, "bert"), endings({"attention.self.query"}, "bert")
        ('(.*\\\\.)?\\\\d+\\\\.(output\\\\.dense)', ['attention.self.query'])
    """
    rows = FAMILIES[family]
    others = {path for part in (*rows.matrices.values(), *rows.norms.values()) for path in part} - paths
    if not any(other.endswith(f".{path}") for other in others for path in paths):
        return sorted(paths)
    inside = "|".join(re.escape(path) for path in sorted(paths - rows.shared.keys()))
    outside = "".join(f"|{re.escape(path)}" for path in sorted(paths & rows.shared.keys()))
    return rf"(.*\.)?\d+\.({inside})" + (f"|(.*\\.)?({outside[1:]})" if outside else "")


def file_key(name: str, prefix: str = "") -> str:
    """The inverse: the key of a host's parameter in a file of peft.

    Args:
        prefix: of the model inside the class that the adapter was made on, such as "bert.".

    Example:
        >>> file_key("layers.0.self_attn.q_proj.lora_A.module.weight")
        'base_model.model.layers.0.self_attn.q_proj.lora_A.weight'
    """
    if name.endswith(PROMPT):
        return PROMPT
    bare = name.replace(f".{NAME}", "")
    part = bare.rsplit(".", 2)[-2:]
    if part[-1] in GLOBAL:
        return f"base_model.{part[-1]}"
    if part[0] in BARE_LEAF:
        bare = bare.removesuffix(".weight")
    return f"base_model.model.{prefix}{bare}"
