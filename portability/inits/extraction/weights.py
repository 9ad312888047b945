"""A host's weights read from its safetensors, one layer or one matrix at a time, always in fp32."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from portability.core.architectures import SITE_GROUPS, parse_name
from portability.core.errors import UserError
from portability.core.specs import HostSpec
from portability.hosts.host import model_class
from portability.hosts.sources import HEAD, check_weights, folder_of, weight_files
from portability.inits.extraction.options import ExtractionOptions, Place
from portability.inits.extraction.threads import share, slices

PREFIX = {"t5": "", "bert": "bert.", "roberta": "roberta.", "gpt2": "transformer.", "llama": "model."}
LAYER = {  # where a layer's parameters stand, below the prefix
    "t5": {"encoder": "encoder.block.{}.", "decoder": "decoder.block.{}."},
    "bert": {"encoder": "encoder.layer.{}."},
    "roberta": {"encoder": "encoder.layer.{}."},
    "gpt2": {"decoder": "h.{}."},
    "llama": {"decoder": "layers.{}."},
}
EMBEDDING = {
    "t5": "shared.weight", "gpt2": "wte.weight", "llama": "embed_tokens.weight",
    "bert": "embeddings.word_embeddings.weight", "roberta": "embeddings.word_embeddings.weight",
}
NO_WEIGHTS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq", "embeddings.position_ids",
              "EncDecAttention.relative_attention_bias.weight")
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}
OLD_NAMES = (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias"))  # BERTs of 2018


class Stored(NamedTuple):
    """Where a parameter stands: a file, its type there, its shape, and its first byte."""

    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    first: int

    def open(self) -> Tensor:
        """The parameter mapped from its file, of which what is looked at is read. Each is mapped alone: Linux
        refuses a private map of a whole file that is larger than memory, which is what safetensors makes for
        torch."""
        size = math.prod(self.shape) * self.dtype.itemsize
        mapped = torch.from_numpy(np.memmap(self.path, np.uint8, "c", self.first, size))
        return mapped.view(self.dtype).view(self.shape)


class Part(NamedTuple):
    """Where the matrix of a place is: its parameter's name in the host and inside the layer, and which of how
    many equal parts of it."""

    name: str
    short: str
    nth: int
    out_of: int


class Weights:
    """Names and shapes of a host's parameters, and the parameters on demand.

    Args:
        device: where they are read to.

    Attributes:
        base: the host's model without its head, on torch's meta device.
        shared: sites outside the layers ("embedding", "head") with the parameter of each; a tied host has one
            for both.
        layers: (stack, layer) -> name inside the layer -> name in the host, of every parameter there.
        parts: every matrix that a pair can stand beside.

    Raises:
        UserError: no safetensors, a damaged file, or other weights than the config.json asks for.
    """

    def __init__(self, spec: HostSpec, device: str = "cpu"):
        from transformers import AutoConfig

        self.spec, self.family, self.device = spec, spec.shape.family, device
        self.folder = folder_of(spec)
        self.config: Any = AutoConfig.from_pretrained(
            self.folder, local_files_only=True, trust_remote_code=False, attn_implementation="eager")
        with torch.device("meta"):
            blank = model_class(self.family).from_config(self.config)
        self.base = blank.base_model
        self.stored = self._stored()
        self.shapes = {name: one.shape for name, one in self.stored.items()}
        self.tied = bool(self.config.tie_word_embeddings)
        self._check(dict(blank.named_parameters(remove_duplicate=False)))
        self.shared = {"embedding": EMBEDDING[self.family]}
        if self.family in ("t5", "gpt2", "llama"):
            self.shared["head"] = EMBEDDING[self.family] if self.tied else HEAD
        self.layers: dict[tuple[str, int], dict[str, str]] = {}
        self.parts: dict[Place, Part] = {}
        depths = spec.shape.layers.items()
        for stack, layer in ((stack, layer) for stack, depth in depths for layer in range(depth)):
            prefix = LAYER[self.family][stack].format(layer)
            names = {name.removeprefix(prefix): name for name in self.stored if name.startswith(prefix)}
            self.layers[stack, layer] = names
            for short, name in names.items():
                sites = _sites(self.family, name)
                self.parts |= {Place(stack, layer, site): Part(name, short, index, len(sites))
                               for index, site in enumerate(sites)}
        self.parts |= {Place("shared", 0, site): Part(name, name, 0, 1) for site, name in self.shared.items()}

    def _stored(self) -> dict[str, Stored]:
        found: dict[str, Stored] = {}
        for path in weight_files(self.spec.name, self.folder):
            try:
                found |= {_plain(key, PREFIX[self.family]): one for key, one in _stored(path).items()}
            except (SafetensorError, OSError, KeyError) as error:
                raise UserError(f"host '{self.spec.name}': {path} cannot be read: {error}") from error
        if EMBEDDING[self.family] not in found:
            raise UserError(f"host '{self.spec.name}': no {EMBEDDING[self.family]} in the safetensors of "
                            f"{self.folder}")
        return found

    def _check(self, parameters: dict[str, Tensor]) -> None:
        """Hold the files' names and shapes against those of the model, which was built without memory."""
        wanted = {_plain(name, PREFIX[self.family]): weight for name, weight in parameters.items()}
        there = {id(weight) for name, weight in wanted.items() if name in self.stored}  # one of tied names
        check_weights(
            self.spec.name, self.family, self.folder,
            missing=[name for name, weight in wanted.items() if id(weight) not in there],
            unexpected=self.stored.keys() - wanted.keys(),
            mismatched=[name for name, weight in wanted.items()
                        if self.shapes.get(name, weight.shape) != weight.shape])

    def read(self, name: str, rows: Tensor | None = None, finite: bool = True) -> Tensor:
        """A parameter in fp32, or some of its rows (any shape of indices), read without the others.

        Args:
            finite: whether to refuse numbers that are not finite.

        Raises:
            UserError: the file lacks it, or a number in it is not finite.
        """
        if name not in self.stored:
            raise UserError(f"host '{self.spec.name}': no parameter {name} in the safetensors of "
                            f"{self.folder}")
        mapped = self.stored[name].open()
        source = mapped if rows is None else mapped[rows.cpu()]
        tensor = torch.empty(source.shape, device=self.device)

        def work(part: slice) -> None:
            tensor[part] = source[part]
            sound = not finite or bool(torch.isfinite(tensor[part].sum()))  # a sum may overflow
            if not sound and len(bad := (~tensor[part].isfinite()).nonzero()):
                place = (part.start + int(bad[0, 0]), *bad[0, 1:].tolist())
                row = place[0] if rows is None else int(rows[place[: rows.ndim]])
                raise UserError(f"host '{self.spec.name}': row {row} of {name} in {self.folder} has a number "
                                "that is not finite; mend the file, or take another host")

        share(work, slices(tensor))
        return tensor

    def layer(self, stack: str, layer: int) -> dict[str, Tensor]:
        """A layer's parameters by their names inside the layer."""
        return {short: self.read(name) for short, name in self.layers[stack, layer].items()}

    def places(self, options: ExtractionOptions) -> dict[Place, tuple[int, int]]:
        """Every matrix that the options ask for, with its (out, in) shape; an embedding's is (hidden,
        vocabulary).

        Raises:
            UserError: a site was named that the host lacks, or there is nothing to extract.
        """
        have = {place.site.removeprefix("cross_") for place in self.parts}
        if lacking := [site for site in options.sites if site not in have | SITE_GROUPS.keys()]:
            raise UserError(f"host '{self.spec.name}' ({self.family}) has no site '{lacking[0]}'; "
                            f"it has {', '.join(sorted(have))}")
        found = {}
        for place, part in self.parts.items():
            if options.wanted(place.site):
                size = self.view(place, torch.empty(self.shapes[part.name], device="meta")).shape
                found[place] = size[0], size[1]
        if not found:
            raise UserError(f"host '{self.spec.name}' ({self.family}) has none of the sites "
                            f"{', '.join(options.sites)}")
        return found

    def view(self, place: Place, parameter: Tensor) -> Tensor:
        """The (out, in) matrix at a place, as a view of its parameter or of the parameter's scores. GPT-2
        keeps its weights as (in, out), and query, key and value in one; an embedding's matrix is (hidden,
        vocabulary)."""
        part = self.parts[place]
        turned = place.site == "embedding" or self.family == "gpt2" and place.stack != "shared"
        return (parameter.T if turned else parameter).chunk(part.out_of, 0)[part.nth]

    def matrix(self, place: Place) -> Tensor:
        """The (out, in) matrix at a place, fp32."""
        return self.view(place, self.read(self.parts[place].name))


def _sites(family: str, name: str) -> list[str]:
    """The sites of a parameter: those of the pairs that LoRA would put beside it."""
    if not name.endswith(".weight"):
        return []
    try:
        return parse_name(family, f".{name.removesuffix('weight')}loras.")[2].split("+")
    except KeyError:
        return []


def _stored(path: Path) -> dict[str, Stored]:
    """The parameters of a safetensors file by their names there, from its header; masks and tables that older
    checkpoints keep are left out.

    Raises:
        SafetensorError: the file is damaged or cut short.
        KeyError: a type of numbers that is not known.
    """
    with safe_open(path, "np"):  # looks whether header and length fit
        pass
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    return {key: Stored(path, DTYPES[one["dtype"]], tuple(one["shape"]), 8 + length + one["data_offsets"][0])
            for key, one in header.items() if key != "__metadata__" and not key.endswith(NO_WEIGHTS)}


def _plain(key: str, prefix: str) -> str:
    """A stored name without the base model's prefix, and with today's names of norms."""
    for old, new in OLD_NAMES:
        key = key.replace(old, new)
    return key.removeprefix(prefix)
