"""Pickled checkpoints of pinned repositories: read once by torch's restricted loader, which runs no code of
theirs, and kept as safetensors."""

import json
import shutil
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from portability.core.errors import UserError
from portability.core.hashing import cache_folder
from portability.core.hub import TEXTS
from portability.core.specs import digest
from portability.hosts.converted import converted

if TYPE_CHECKING:
    from torch import Tensor


def of_pickles(name: str, pinned: str, pickled: Mapping[str, str], fetch: Callable[[], Path]) -> Path:
    """The folder of a host whose weights are pickled at their source: texts as they are, weights as
    safetensors, made once.

    Args:
        name: of the host, for messages.
        pinned: repository@revision.
        pickled: name -> SHA-256 of each pickled file.
        fetch: gives the folder with those files and the host's texts.

    Raises:
        UserError: a file is refused, or as `converted`.
    """
    repository, _, revision = pinned.partition("@")
    home = cache_folder() / "hosts" / repository.replace("/", "--") / revision
    return converted(name, home / digest(dict(pickled))[:16], pickled,
                     lambda draft: _convert(name, fetch(), pickled, draft))


def _convert(name: str, source: Path, pickled: Mapping[str, str], target: Path) -> None:
    """Write a host's texts, and its weights file by file, under names that transformers looks for."""
    from safetensors.torch import save_file

    table, size, count = dict[str, str](), 0, len(pickled)
    for number, file in enumerate(sorted(pickled), start=1):
        made = "model.safetensors" if count == 1 else f"model-{number:05}-of-{count:05}.safetensors"
        try:
            tensors = apart(read_pickle(source / file, mapped=True))
            save_file(tensors, target / made, {"format": "pt"})
        except (RuntimeError, ValueError) as error:  # a UserError is a ValueError
            raise UserError(f"host '{name}': {error}") from error
        table |= dict.fromkeys(tensors, made)
        size += sum(tensor.nbytes for tensor in tensors.values())
    if count > 1:
        index = {"metadata": {"total_size": size}, "weight_map": table}
        (target / "model.safetensors.index.json").write_text(json.dumps(index, indent=1, sort_keys=True))
    for path in sorted(path for pattern in TEXTS for path in source.glob(pattern)):
        if not path.name.endswith(".index.json"):
            shutil.copyfile(path, target / path.name)


def apart(tensors: Mapping[str, "Tensor"]) -> dict[str, "Tensor"]:
    """Tensors that share no memory, which safetensors cannot say: of one under several names the first stays,
    as a model's own order has its source first and the others are tied to it when it is loaded; but a head
    stays always, as what config.json says may untie it.

    Example:
        >>> import torch
        >>> table = torch.ones(3, 2)
        >>> list(apart({"shared.weight": table, "embed_tokens.weight": table, "lm_head.weight": table}))
        ['shared.weight', 'lm_head.weight']
    """
    import torch

    kept, views, memory = dict[str, "Tensor"](), set[tuple[object, ...]](), set[int]()
    for name, tensor in tensors.items():
        view = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and view in views and not name.endswith("lm_head.weight"):
            continue
        place = tensor.untyped_storage().data_ptr()
        kept[name] = tensor.clone(memory_format=torch.contiguous_format) if place in memory else (
            tensor.contiguous())
        views.add(view)
        memory.add(place)
    return kept


def read_pickle(path: Path, mapped: bool = False) -> dict[str, "Tensor"]:
    """Key -> tensor of a file, by torch's restricted loader, which runs no code of it.

    Args:
        mapped: whether tensors are read from the file as they are used, which must then stay as it is.

    Raises:
        UserError: it holds something else, or is damaged.
    """
    import torch

    try:
        archive = zipfile.is_zipfile(path)  # as torch writes since 1.6, and as can be mapped
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped and archive)
    except Exception as error:  # of unpicklers there are many
        said = (str(error).splitlines() or [type(error).__name__])[0][:200]  # of a file cut short: nothing
        raise UserError(f"{path} is refused by torch's restricted loader, or damaged: {said}; have it saved "
                        "as safetensors") from error
    if not isinstance(found, dict) or not all(isinstance(key, str) and isinstance(value, torch.Tensor)
                                              for key, value in found.items()):
        raise UserError(f"{path} holds something else than tensors by name")
    return found
