"""A host or an adapter by the words a user gives: a local folder, the name of a host of conf/host,
``embedded:NAME``, or a hub id."""

import os
import re
from pathlib import Path

import yaml

from portability.core.errors import UnknownName, UserError, closest
from portability.core.hub import TEXTS, look_for_hub, remedy
from portability.core.paths import PORTABLE, bundled
from portability.core.specs import HostSpec
from portability.hosts.sources import HostSource, describe, folder_of, read_config, shape_of

HUB_ID = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?(@[\w.-]+)?")
INSTEAD = "fetch it where there is a network, and give its folder"
ADAPTER_FILES = ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin",
                 "adapter.safetensors", "pytorch_adapter.bin", "README.md"]


def public_name(words: str) -> str:
    """A hub id as it is, and of a folder its name alone, for what may be shown to others.

    Example:
        >>> public_name("owner/model@v1"), public_name("/home/me/models/mine")
        ('owner/model@v1', 'mine')
    """
    if HUB_ID.fullmatch(words) and not Path(words).is_dir():
        return words
    return Path(os.path.abspath(Path(words).expanduser())).name


def find_folder(words: str, what: str, patterns: list[str]) -> tuple[Path, str | None]:
    """A local folder for what a user named, and the hub's revision where it was fetched; without the hub what
    was fetched before.

    Args:
        words: a folder, or a hub id, perhaps with ``@revision``.
        what: for messages, such as "host".
        patterns: of the files to fetch.

    Raises:
        UserError: there is no such folder and no such repository, or the hub cannot be reached.
    """
    folder = Path(words).expanduser()
    if words and folder.is_dir():
        return folder, None
    near, said = _near(folder, what), f"{what} '{words}': there is no such folder, and it"
    meant = f"; did you mean '{near}'?" if near else ""
    if not HUB_ID.fullmatch(words):
        raise UnknownName(f"{said} is no hub id (owner/name){meant}", words, near)
    look_for_hub()
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    name, _, revision = words.partition("@")
    try:
        if os.environ.get("HF_HUB_OFFLINE"):
            found = Path(snapshot_download(name, revision=revision or None, local_files_only=True))
            return found, found.name
        commit = HfApi().model_info(name, revision=revision or None).sha
        return Path(snapshot_download(name, revision=commit, allow_patterns=patterns)), commit
    except (LocalEntryNotFoundError, HfHubHTTPError, OfflineModeIsEnabled, OSError, ValueError) as error:
        raise UnknownName(f"{said} cannot be fetched from the hub: {remedy(error, name, INSTEAD)}{meant}",
                          words, near) from error


def _near(folder: Path, what: str) -> str:
    """The folder, or name of conf/host, that was probably meant by one that is not there."""
    names = [path.stem for path in (bundled("conf") / "host").glob("*.yaml")] if what == "host" else []
    there = {path.name: str(path) for path in folder.parent.glob("*") if path.is_dir()}
    close = closest(folder.name, [*there, *names])
    return there.get(close, close)


def _of_configuration(words: str) -> str:
    """What a name of conf/host stands for, as a user would write it; other words as they are.

    Raises:
        UserError: it is the name of a derived host, which `portability derive` makes.
    """
    file = bundled("conf") / "host" / f"{words}.yaml"
    if Path(words).is_dir() or not re.fullmatch(r"[\w.-]+", words) or not file.is_file():
        return words
    found = HostSource(words, **yaml.safe_load(file.read_text())[words])
    if found.derive:
        raise UserError(f"host '{words}' is derived from {found.derive['from']}: make it by portability "
                        f"derive {words}, and give the folder that this names")
    if found.hub:
        return f"{found.hub}@{found.revision}"
    return words if "${" in found.place else found.place


def find_host(words: str) -> HostSpec:
    """A host by its shape; nothing of its weights is read, and its fingerprint is left empty.

    Raises:
        UserError: as `find_folder`, or the folder holds no host of a known family.
    """
    said, words = words, _of_configuration(words)
    if words.startswith(PORTABLE):
        folder, revision, source = folder_of(HostSource(said, path=words)), None, words
    else:
        folder, revision = find_folder(words, "host", [*TEXTS, "README.md"])
        source = words.partition("@")[0] if revision else str(folder)
    if not (folder / "config.json").is_file():
        raise UserError(f"host '{words}': there is no config.json in {folder}")
    shape = shape_of(read_config(folder / "config.json"), words, folder)
    if words.startswith(PORTABLE):
        name = said.partition(":")[2] or said
    else:
        name = Path(words.partition("@")[0] if revision else os.path.abspath(words)).name
    return HostSpec(name, source, revision, "", shape)


def with_weights(spec: HostSpec) -> HostSpec:
    """The same host with its fingerprint, which loading checks.

    Raises:
        UserError: it has no weights that can be loaded.
    """
    if spec.revision:
        return describe(HostSource(spec.name, hub=spec.source, revision=spec.revision))
    return describe(HostSource(spec.name, path=spec.source))
