"""Pickled checkpoints of pinned repositories: read once by torch's restricted loader, which runs no code of
theirs, and kept as safetensors."""

import json
import logging
import shutil
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from portability.core.errors import UserError
from portability.core.hashing import cache_folder, file_digest
from portability.core.hub import TEXTS
from portability.core.specs import digest

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)
RECORD = "pickled.json"  # of a folder made here: what it was made of, and what was made


def digests_of(folder: Path) -> dict[str, str]:
    """SHA-256 of each weight file of a folder, by name; of one that was made of pickled files, those of the
    pickled files.

    Raises:
        UserError: its weights are no longer those that were made.
    """
    own = {path.name: file_digest(path) for path in sorted(folder.glob("*.safetensors"))}
    if not (folder / RECORD).is_file():
        return own
    try:
        record = json.loads((folder / RECORD).read_text())
        made, pickled = record["made"], dict(record["pickled"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / RECORD} cannot be read ({error!r}); delete its folder, and run the "
                        "command again") from error
    if own != made:
        raise UserError(f"the weights in {folder} are not those that were made of "
                        f"{', '.join(pickled)}; delete the folder, and run the command again")
    return pickled


def converted(name: str, pinned: str, pickled: Mapping[str, str], fetch: Callable[[], Path]) -> Path:
    """The folder of a host whose weights are pickled at their source: texts as they are, weights as
    safetensors. It is made where it is not there yet, by one process at a time, and is whole once it has its
    name.

    Args:
        name: of the host, for messages.
        pinned: repository@revision.
        pickled: name -> SHA-256 of each pickled file.
        fetch: gives the folder with those files and the host's texts.

    Raises:
        UserError: a file is refused, or the cache cannot be written.
    """
    repository, _, revision = pinned.partition("@")
    home = cache_folder() / "hosts" / repository.replace("/", "--") / revision
    folder, draft = (home / f"{digest(dict(pickled))[:16]}{ending}" for ending in ("", ".draft"))
    if folder.is_dir():
        return folder
    source = fetch()
    from filelock import FileLock

    try:
        home.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not folder.is_dir():
                log.info("reading the pickled weights of %s once; kept as safetensors in %s", name, folder)
                shutil.rmtree(draft, ignore_errors=True)  # of a process that was killed
                draft.mkdir()
                _convert(name, source, pickled, draft)
                draft.rename(folder)
    except OSError as error:
        raise UserError(f"host '{name}': its weights cannot be kept as safetensors in {home}: {error}; make "
                        "room, or set PORTABILITY_CACHE to another folder") from error
    finally:
        if not folder.is_dir():
            shutil.rmtree(draft, ignore_errors=True)
    return folder


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
    record = {"pickled": dict(pickled), "made": digests_of(target)}
    (target / RECORD).write_text(json.dumps(record, indent=1))


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
