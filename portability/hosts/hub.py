"""Hosts of the hub at a pinned revision: their texts, the digests of their weights, and the weights, each
fetched when it is asked for."""

import contextlib
import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from portability.core.errors import UserError
from portability.core.hashing import file_digest, remember, remembered
from portability.core.hub import INSTEAD, TEXTS, look_for_hub, remedy
from portability.core.specs import digest
from portability.hosts.converted import weight_names
from portability.hosts.pickles import of_pickles

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".gguf")  # what may hold weights


@functools.cache
def texts(name: str, hub: str | None, revision: str | None) -> Path:
    """The local folder with a host's configuration and tokenizer.

    Args:
        name: of the host, for messages.
        hub: owner/name.
        revision: 40 hex digits.

    Raises:
        UserError: no pinned revision, it cannot be fetched, or there is no config.json.
    """
    if not hub or not revision or len(revision) != 40:
        raise UserError(f"host '{name}': give a path, or a hub id with its 40-digit revision (got "
                        f"{hub}@{revision})")
    folder = _fetched(name, hub, revision, TEXTS)
    if not (folder / "config.json").is_file():
        raise UserError(f"host '{name}': no config.json in {hub}@{revision[:8]}")
    return folder


def commit_of(hub: str) -> str:
    """The commit, 40 hex digits, at which a repository is now.

    Raises:
        UserError: the hub cannot be asked, or has no such repository.
    """
    look_for_hub()
    from huggingface_hub import HfApi

    with _asking(hub, hub, "main"):
        return str(HfApi().model_info(hub).sha)


@functools.cache
def digests(name: str, hub: str, revision: str) -> dict[str, str]:
    """SHA-256 of each of a host's weight files, by name: as the hub says it, or, without the hub, of the
    files in its cache. Which files these are: `converted.weight_names`.

    Raises:
        UserError: the hub cannot be asked, or holds no weights that can be read.
    """
    key = digest([hub, revision])
    folder = texts(name, hub, revision)
    known: dict[str, str] | None = remembered("hub", key)
    if known and weight_names(folder, known) == sorted(known):
        return known
    if os.environ.get("HF_HUB_OFFLINE"):
        there = [path.name for path in folder.iterdir()]
        files = weight_names(folder, there)
        if not files or (lacking := [file for file in files if file not in there]):
            raise _not_here(name, hub, revision, lacking if files else [])
        return {file: file_digest(folder / file) for file in files}
    said = _said(name, hub, revision)
    files = weight_names(folder, said)
    if not files or not {*files} <= {*said}:
        held = ", ".join(sorted(file for file in said if file.endswith(WEIGHTS)))
        raise UserError(f"host '{name}': {hub}@{revision[:8]} holds neither model.safetensors nor "
                        f"pytorch_model.bin, nor all parts that an index of these names, but "
                        f"{held or 'none'}; take a host that does")
    small = [file for file in files if said[file] is None]  # which the hub keeps without a SHA-256
    folder = _fetched(name, hub, revision, [*TEXTS, *small]) if small else folder
    known = {file: said[file] or file_digest(folder / file) for file in files}
    remember("hub", key, known)
    return known


@functools.cache
def whole(name: str, hub: str, revision: str) -> Path:
    """The local folder with all of a host; weights that the hub has pickled are kept there as safetensors.

    Raises:
        UserError: as `texts` and `digests`; a file is not what the hub says it is, or is refused by torch's
            restricted loader.
    """
    known = digests(name, hub, revision)

    def fetch() -> Path:
        folder = _fetched(name, hub, revision, [*TEXTS, *known])
        if lacking := [file for file in known if not (folder / file).is_file()]:
            raise _not_here(name, hub, revision, lacking)
        for file, mark in known.items():
            if file_digest(folder / file) != mark:
                raise UserError(f"host '{name}': the bytes of {file} are not those that {hub}@{revision[:8]} "
                                f"names; delete {(folder / file).resolve()} and run the command again")
        return folder

    if all(file.endswith(".safetensors") for file in known):
        return fetch()
    return of_pickles(name, f"{hub}@{revision}", known, fetch)


def _fetched(name: str, hub: str, revision: str, patterns: Sequence[str]) -> Path:
    """The local folder of a repository, with the files of these patterns that it has."""
    look_for_hub()
    from huggingface_hub import snapshot_download

    with _asking(name, hub, revision):
        return Path(snapshot_download(hub, revision=revision, allow_patterns=list(patterns)))


def _said(name: str, hub: str, revision: str) -> dict[str, str | None]:
    """Each file of a repository, with its SHA-256 where the hub knows it."""
    from huggingface_hub import HfApi

    with _asking(name, hub, revision):
        found = HfApi().model_info(hub, revision=revision, files_metadata=True).siblings or []
        return {one.rfilename: one.lfs.sha256 if one.lfs else None for one in found}


@contextlib.contextmanager
def _asking(name: str, hub: str, revision: str) -> Iterator[None]:
    """Errors of the hub's libraries, and of the network below them, as one sentence."""
    try:
        yield
    except Exception as error:  # there are many, and the versions of huggingface_hub raise different ones
        raise UserError(f"host '{name}': cannot fetch {hub}@{revision[:8]}: {remedy(error, hub)}") from error


def _not_here(name: str, hub: str, revision: str, files: Sequence[str]) -> UserError:
    return UserError(f"host '{name}': cannot fetch {', '.join(files) or 'the weights'} of "
                     f"{hub}@{revision[:8]}: not in the local cache, and the hub does not answer or "
                     f"HF_HUB_OFFLINE is set; {INSTEAD}")
