"""A host's weights read from its safetensors, one layer or one matrix at a time, always in fp32."""

import json
import math
from collections.abc import Iterator, Mapping
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
    "t5": "shared.weight", "bert": "embeddings.word_embeddings.weight", "roberta": "embeddings.word_embeddings.weight",
    "gpt2": "wte.weight", "llama": "embed_tokens.weight",
}
NO_WEIGHTS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq", "embeddings.position_ids",
              "EncDecAttention.relative_attention_bias.weight")
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}
OLD_NAMES = (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias"))  # BERTs of 2018


class Stored(NamedTuple):
    """Where a parameter stands: a file, its type there, its shape, and its first byte."""

    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    first: int

    def open(self) -> Tensor:
        """The parameter mapped from its file, of which what is looked at is read. Each is mapped alone: Linux refuses a
        private map of a whole file that is larger than memory, which is what safetensors makes for torch."""
        size = math.prod(self.shape) * self.dtype.itemsize
        return torch.from_numpy(np.memmap(self.path, np.uint8, "c", self.first, size)).view(self.dtype).view(self.shape)


class Weights:
    """Names and shapes of a host's parameters, and the parameters on demand.

    Args:
        device: where they are read to.

    Raises:
        UserError: no safetensors, a damaged file, or other weights than the config.json asks for.
    """

    def __init__(self, spec: HostSpec, device: str = "cpu"):
        from transformers import AutoConfig

        self.spec, self.family, self.device = spec, spec.shape.family, device
        self.folder = folder_of(spec)
        self.config: Any = AutoConfig.from_pretrained(
            self.folder, local_files_only=True, trust_remote_code=False, attn_implementation="eager")
        self.stored: dict[str, Stored] = {}
        for path in weight_files(spec.name, self.folder):
            try:
                found = _stored(path)
            except (SafetensorError, OSError, KeyError) as error:
                raise UserError(f"host '{spec.name}': {path} cannot be read: {error}") from error
            self.stored |= {_plain(key, PREFIX[self.family]): one for key, one in found.items()}
        self.shapes = {name: one.shape for name, one in self.stored.items()}
        if EMBEDDING[self.family] not in self.stored:
            raise UserError(f"host '{spec.name}': no {EMBEDDING[self.family]} in the safetensors of {self.folder}")
        self.tied = bool(self.config.tie_word_embeddings)
        self._check()

    def _check(self) -> None:
        """Hold the file's names and shapes against those of the model, which is built without memory."""
        with torch.device("meta"):
            blank = model_class(self.family).from_config(self.config)
        wanted = {_plain(name, PREFIX[self.family]): weight for name, weight in blank.named_parameters(remove_duplicate=False)}
        there = {id(weight) for name, weight in wanted.items() if name in self.stored}  # of tied weights one name is enough
        check_weights(
            self.spec.name, self.family, self.folder,
            missing=[name for name, weight in wanted.items() if id(weight) not in there],
            unexpected=self.stored.keys() - wanted.keys(),
            mismatched=[n for n, weight in wanted.items() if n in self.stored and self.shapes[n] != tuple(weight.shape)])

    def read(self, name: str, rows: Tensor | None = None, finite: bool = True) -> Tensor:
        """A parameter in fp32, or some of its rows (any shape of indices), read without the others.

        Args:
            finite: whether to refuse numbers that are not finite.

        Raises:
            UserError: the file lacks it, or a number in it is not finite.
        """
        if name not in self.stored:
            raise UserError(f"host '{self.spec.name}': no parameter {name} in the safetensors of {self.folder}")
        mapped = self.stored[name].open()
        source = mapped if rows is None else mapped[rows.cpu()]
        tensor = torch.empty(source.shape, device=self.device)

        def work(parts: Iterator[slice]) -> None:
            for part in parts:
                tensor[part] = source[part]
                if finite and not torch.isfinite(tensor[part].sum()) and len(bad := (~tensor[part].isfinite()).nonzero()):
                    place = (part.start + int(bad[0, 0]), *bad[0, 1:].tolist())
                    row = place[0] if rows is None else int(rows[place[: rows.ndim]])
                    raise UserError(f"host '{self.spec.name}': row {row} of {name} in {self.folder} has a number that is "
                                    f"not finite; mend the file, or take another host")

        share(work, slices(tensor))
        return tensor

    def names(self, stack: str, layer: int) -> dict[str, str]:
        """A layer's parameters: name inside the layer -> name in the host."""
        prefix = LAYER[self.family][stack].format(layer)
        return {name.removeprefix(prefix): name for name in self.stored if name.startswith(prefix)}

    def layer(self, stack: str, layer: int) -> dict[str, Tensor]:
        """A layer's parameters by their names inside the layer."""
        return {short: self.read(name) for short, name in self.names(stack, layer).items()}

    @property
    def shared(self) -> dict[str, str]:
        """Sites outside the layers ("embedding", "head") with the parameter of each; a tied host has one for both."""
        names = {"embedding": EMBEDDING[self.family]}
        if self.family in ("t5", "gpt2", "llama"):
            names["head"] = EMBEDDING[self.family] if self.tied else HEAD
        return names

    def places(self, options: ExtractionOptions) -> dict[Place, tuple[int, int]]:
        """Every matrix that the options ask for, with its (out, in) shape; an embedding's is (hidden, vocabulary).

        Raises:
            UserError: a site was named that the host lacks, or there is nothing to extract.
        """
        found: dict[Place, tuple[int, int]] = {}
        for stack, depth in self.spec.shape.layers.items():
            for layer in range(depth):
                blank = {s: torch.empty(self.shapes[n], device="meta") for s, n in self.names(stack, layer).items()}
                for site, matrix in matrices(self.family, stack, layer, blank).items():
                    found[Place(stack, layer, site)] = (matrix.shape[0], matrix.shape[1])
        for site, name in self.shared.items():
            rows, columns = self.shapes[name]
            found[Place("shared", 0, site)] = (columns, rows) if site == "embedding" else (rows, columns)
        have = {place.site.removeprefix("cross_") for place in found}
        lacking = [site for site in options.sites if site not in have | SITE_GROUPS.keys()]
        if lacking:
            raise UserError(f"host '{self.spec.name}' ({self.family}) has no site '{lacking[0]}'; "
                            f"it has {', '.join(sorted(have))}")
        wanted = {place: size for place, size in found.items() if options.wanted(place.site)}
        if not wanted:
            raise UserError(f"host '{self.spec.name}' ({self.family}) has none of the sites {', '.join(options.sites)}")
        return wanted

    def matrix(self, place: Place) -> Tensor:
        """The (out, in) matrix at a place, fp32; an embedding's is (hidden, vocabulary)."""
        if place.stack == "shared":
            weight = self.read(self.shared[place.site])
            return weight.T if place.site == "embedding" else weight
        for short, name in self.names(place.stack, place.layer).items():
            if place.site in _sites(self.family, place.stack, place.layer, short):
                return matrices(self.family, place.stack, place.layer, {short: self.read(name)})[place.site]
        raise KeyError(place.key)


def matrices(family: str, stack: str, layer: int, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Site -> (out, in) matrix, as views, of a layer's tensors by their names inside the layer; norms and biases are left.

    GPT-2 keeps its weights as (in, out), and query, key and value in one.
    """
    found: dict[str, Tensor] = {}
    for short, tensor in tensors.items():
        sites = _sites(family, stack, layer, short)
        if sites:
            parts = (tensor.T if family == "gpt2" else tensor).chunk(len(sites), 0)
            found |= dict(zip(sites, parts, strict=True))
    return found


def _sites(family: str, stack: str, layer: int, short: str) -> list[str]:
    """The sites of a parameter: those of the pair that LoRA would put beside it."""
    if not short.endswith(".weight"):
        return []
    name = LAYER[family][stack].format(layer) + short.removesuffix("weight")
    try:
        return parse_name(family, f".{name}loras.")[2].split("+")
    except KeyError:
        return []


def _stored(path: Path) -> dict[str, Stored]:
    """The parameters of a safetensors file by their names there, from its header; masks and tables that older checkpoints
    keep are left out.

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
