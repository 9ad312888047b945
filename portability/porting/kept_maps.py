"""Maps of spaces kept in the user's cache by what they follow from, so that other processes, and a study that
goes on, read no text again. What is read has the bits of what was made."""

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from portability.core.hashing import cache_folder
from portability.core.specs import digest
from portability.core.versions import own_code
from portability.porting.activations import Pair
from portability.store.atomic import replacing

log = logging.getLogger(__name__)
MOST = 1 << 30  # bytes of one port's maps; larger ones are not kept (our choice)
ROOM = 4 << 30  # bytes of all of them, of which the longest unused ones go first (our choice)


class Fitted(NamedTuple):
    """The map T (d_o, d_r), float64, of each pair of spaces, and how many tokens of texts it was made of."""

    maps: Mapping[Pair, Tensor]
    tokens: int


def place_of_maps(key: Sequence[Any]) -> Path:
    """The file of the maps that follow from a key (as JSON), the libraries, this package's code and the
    number of threads."""
    return cache_folder() / "maps" / f"{digest([own_code(), torch.get_num_threads(), *key])}.safetensors"


def kept(path: Path, pairs: Sequence[Pair]) -> Fitted | None:
    """What a file holds; None where there is none that is intact."""
    try:
        with safe_open(path, "pt") as file:
            said = file.metadata()
            tensors = [file.get_tensor(str(one)) for one in range(len(file.keys()))]
        if _digest(tensors, said["places"], said["strides"], said["tokens"]) != said["digest"]:
            raise ValueError("another digest")
        # in memory laid out as those that are made, because the last bit of a product depends on it
        own = [torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype).copy_(tensor)
               for tensor, strides in zip(tensors, json.loads(said["strides"]), strict=True)]
        found = [own[one] for one in json.loads(said["places"])]
        with contextlib.suppress(OSError):  # somebody else's, or gone meanwhile
            os.utime(path)
        return Fitted(dict(zip(pairs, found, strict=True)), int(said["tokens"]))
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        log.warning("%s is damaged (%s); its maps are made anew", path, error)
        return None


def keep(path: Path, pairs: Sequence[Pair], fitted: Fitted) -> None:
    """Write maps whole or not at all; a cache that cannot be written costs time, not the study."""
    own = list({id(matrix): matrix for matrix in fitted.maps.values()}.values())  # pairs may share a map
    places = {id(matrix): place for place, matrix in enumerate(own)}
    if sum(matrix.nbytes for matrix in own) > MOST or any(0 in matrix.stride() for matrix in own):
        return  # too large, or one number in several places
    tensors = [matrix.contiguous() for matrix in own]
    said = {"places": json.dumps([places[id(fitted.maps[pair])] for pair in pairs]),
            "strides": json.dumps([matrix.stride() for matrix in own]), "tokens": str(fitted.tokens)}
    said["digest"] = _digest(tensors, said["places"], said["strides"], said["tokens"])
    try:
        with replacing(path, flush=False) as draft:
            save_file({str(one): tensor for one, tensor in enumerate(tensors)}, draft, said)
        _make_room(path.parent)
    except OSError as error:
        log.warning("cannot keep maps in %s (%s); made anew next time", path.parent, error.strerror)


def _digest(tensors: Sequence[Tensor], *words: str) -> str:
    found = hashlib.sha256("\n".join(words).encode())
    for tensor in tensors:
        found.update(str(tuple(tensor.shape)).encode())
        found.update(tensor.numpy().data)
    return found.hexdigest()


def _make_room(folder: Path) -> None:
    """Remove what was not used for longest, beyond `ROOM`."""
    with contextlib.suppress(FileNotFoundError):  # another process was first
        held = 0
        for path in sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True):
            held += path.stat().st_size
            if held > ROOM:
                path.unlink()
