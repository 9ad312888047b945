"""A host's weights read from its safetensors, one layer or one matrix at a time, always in fp32; and what two
hosts' weights have in common."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig
from transformers.modeling_utils import str_to_torch_dtype

from portability.core.architectures import FAMILIES, within_layer
from portability.core.errors import UserError
from portability.core.specs import HOST_AXES, HostSpec
from portability.hosts.host import load_tokenizer, model_class
from portability.hosts.sources import check_weights, folder_of, texts_of, weight_files
from portability.inits.extraction.options import ExtractionOptions, Place
from portability.inits.extraction.threads import share, slices

NO_WEIGHTS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq", "embeddings.position_ids",
              "EncDecAttention.relative_attention_bias.weight")
Sizes = dict[Place, tuple[int, int]]


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
        files: whether names and shapes are those of its files, which are held against its model; else they
            are its model's alone, and no parameter can be read.

    Attributes:
        base: the host's model without its head, on torch's meta device.
        shared: sites outside the layers ("embedding", "head") with the parameter of each; a tied host has one
            for both.
        layers: (stack, layer) -> name inside the layer -> name in the host, of every parameter there.
        parts: every matrix that a pair can stand beside.

    Raises:
        UserError: no safetensors, a damaged file, or other weights than the config.json asks for.
    """

    def __init__(self, spec: HostSpec, device: str = "cpu", files: bool = True):
        self.spec, self.family, self.device = spec, spec.shape.family, device
        self.folder, family = (folder_of if files else texts_of)(spec), FAMILIES[spec.shape.family]
        self.config: Any = AutoConfig.from_pretrained(
            self.folder, local_files_only=True, trust_remote_code=False, attn_implementation="eager")
        with torch.device("meta"):
            blank = model_class(self.family).from_config(self.config)
        self.base, prefix = blank.base_model, f"{blank.base_model_prefix}."
        self.shared = {site: f"{path}.weight" for path, site in family.shared.items()}
        wanted = {_plain(name, prefix): weight
                  for name, weight in blank.named_parameters(remove_duplicate=False)}
        self.stored = self._stored(prefix) if files else {}
        self.shapes = {name: tuple(one.shape) for name, one in (self.stored if files else wanted).items()}
        if files:
            self._check(wanted)
        self.tied = bool(self.config.tie_word_embeddings)
        if self.tied and "head" in self.shared:
            self.shared["head"] = self.shared["embedding"]
        self.layers: dict[tuple[str, int], dict[str, str]] = {
            (stack, layer): {} for stack, depth in spec.shape.layers.items() for layer in range(depth)}
        for name in self.shapes:
            if inside := within_layer(self.family, name):
                self.layers[inside[:2]][inside[2]] = name
        self.parts: dict[Place, Part] = {}
        for (stack, layer), names in self.layers.items():
            for short, name in names.items():
                path, _, kind = short.rpartition(".")
                sites = family.matrices[stack].get(path, "").split("+") if kind == "weight" else []
                self.parts |= {Place(stack, layer, site): Part(name, short, nth, len(sites))
                               for nth, site in enumerate(sites) if site}
        self.parts |= {Place("shared", 0, site): Part(name, name, 0, 1) for site, name in self.shared.items()}

    def _stored(self, prefix: str) -> dict[str, Stored]:
        """The parameters by their plain names, from the files' headers; masks and tables that older
        checkpoints keep are left out."""
        found: dict[str, Stored] = {}
        for path in weight_files(self.spec.name, self.folder):
            try:
                with safe_open(path, "np"), path.open("rb") as file:  # the first sees that the file is whole
                    length = int.from_bytes(file.read(8), "little")
                    header = json.loads(file.read(length))
                found |= {_plain(key, prefix): Stored(path, str_to_torch_dtype[one["dtype"]],
                                                      tuple(one["shape"]),
                                                      8 + length + one["data_offsets"][0])
                          for key, one in header.items()
                          if key != "__metadata__" and not key.endswith(NO_WEIGHTS)}
            except (SafetensorError, OSError, KeyError) as error:
                raise UserError(f"host '{self.spec.name}': {path} cannot be read: {error}") from error
        if self.shared["embedding"] not in found:
            raise UserError(f"host '{self.spec.name}': no {self.shared['embedding']} in the safetensors of "
                            f"{self.folder}")
        return found

    def _check(self, wanted: dict[str, Tensor]) -> None:
        """Hold the files' names and shapes against those of the model, which was built without memory."""
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
            UserError: a number in it is not finite.
        """
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

    def places(self, options: ExtractionOptions) -> Sizes:
        """Every matrix that the options ask for, with its (out, in) shape; an embedding's is (hidden,
        vocabulary)."""
        empty = {place: self.view(place, torch.empty(self.shapes[part.name], device="meta"))
                 for place, part in self.parts.items() if options.wanted(place.site)}
        return {place: (matrix.shape[0], matrix.shape[1]) for place, matrix in empty.items()}

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


def before_work(spec: HostSpec) -> Weights:
    """A host's names and shapes as they are known before work: of one from the hub without its files."""
    return Weights(spec, files=spec.revision is None)


def _plain(key: str, prefix: str) -> str:
    """A stored name without the base model's prefix, and with today's names of norms."""
    for old, new in (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias")):
        key = key.replace(old, new)  # of BERTs of 2018
    return key.removeprefix(prefix)


# ---- what two hosts have in common


def check_fit(teacher: Weights, student: Weights, options: ExtractionOptions) -> tuple[Sizes, Sizes]:
    """The matrices of both hosts, after refusing hosts of two families, and a student that is larger in depth
    or in any matrix, or has other matrices or none of those that are asked for.

    Raises:
        UserError: names both hosts, the place and both sizes.
    """
    small, large = f"student '{student.spec.name}'", f"teacher '{teacher.spec.name}'"
    if teacher.family != student.family:
        raise UserError(f"{large} is a {teacher.family} host and {small} a {student.family} one; extraction "
                        "needs one family")
    had, wanted = teacher.spec.shape, student.spec.shape
    sizes = [(f"{stack} layers", had.layers[stack], depth) for stack, depth in wanted.layers.items()]
    if options.structure == "aligned":
        sizes += [(axis, had.size(axis) or 0, wanted.size(axis) or 0) for axis in HOST_AXES]
    for what, most, count in sizes:
        if count > most:
            raise UserError(f"{small} has {count} {what} and {large} only {most}; extraction only shrinks, "
                            "so exchange them (or, for widths, use structure=block)")
    have, want = teacher.places(options), student.places(options)
    if odd := sorted({one[::2] for one in have} ^ {one[::2] for one in want}):
        stack, site = odd[0]
        raise UserError(f"only one of {large} and {small} has {stack} {site}; leave {site} out of the "
                        "extraction's sites")
    if not want:
        raise UserError(f"{large} and {small} have none of the sites {', '.join(options.sites)}")
    for place, size in want.items():
        source = have[place]
        tall = size[0] > source[0] and place.site != "head"  # vocabularies may differ: tokens are matched
        if tall or size[1] > source[1] and place.site != "embedding":
            raise UserError(f"{place.key} is {size[0]} x {size[1]} in {small} and only {source[0]} x "
                            f"{source[1]} in {large}; extraction only shrinks, so exchange them")
        if options.rank > min(size):
            raise UserError(f"rank {options.rank} is larger than the smaller side of {place.key}, {size[0]} "
                            f"x {size[1]} in {small}; lower the method's r")
    return have, want


def shared_tokens(teacher: Weights, student: Weights, rank: int) -> Tensor:
    """Rows of the teacher's and the student's embedding that belong to the same token, by its text.

    Where both tokenizers and sizes are equal that is every row, also those beyond the tokenizer's last token;
    else the tokens whose text both have, in the student's order.

    Args:
        rank: of the pairs, which need as many tokens at least.

    Returns:
        (2, S) int64: rows of the teacher, and of the student; S is at least `rank`.

    Raises:
        UserError: too few tokens in common, or a tokenizer that cannot be loaded.
    """
    words, others = (load_tokenizer(host.spec).get_vocab() for host in (teacher, student))
    size, most = (host.shapes[host.shared["embedding"]][0] for host in (teacher, student))
    if words == others and size == most:
        return torch.arange(size).expand(2, -1)
    pairs = [(words[text], row) for text, row in sorted(others.items(), key=lambda item: item[1])
             if text in words and words[text] < size and row < most]
    if len(pairs) < rank:
        raise UserError(f"teacher '{teacher.spec.name}' and student '{student.spec.name}' have only "
                        f"{len(pairs)} tokens in common, too few for pairs of rank {rank}; leave out "
                        "embedding and head (the sites of the method)")
    return torch.tensor(pairs).T
