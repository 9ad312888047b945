"""Where hosts come from, a local folder, a pinned hub revision or an installed package, and what they are,
without loading them or torch."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from portability.core.architectures import FAMILIES
from portability.core.errors import UserError, validate_choice
from portability.core.hashing import file_digest, fingerprint
from portability.core.paths import EMBEDDED
from portability.core.specs import HostShape, HostSpec
from portability.hosts import hub
from portability.hosts.converted import digests_of
from portability.hosts.packages import unpacked

TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", "spiece.model",
                   "tokenizer.model")
TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")
SETTINGS_FILES = ("config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
TABLES = (".attn.masked_bias",)  # of GPT-2 before 2023: a constant, which transformers 5 reports
HEAD = "lm_head.weight"  # of every family that has a language-model head
PACKAGE = "package:"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
IRRELEVANT = ("_name_or_path", "name_or_path", "transformers_version", "torch_dtype", "dtype",
              "architectures", "adapters", "_commit_hash")  # of versions and paths: they change no number


@dataclass(frozen=True)
class HostSource:
    """Where a host comes from: exactly one of a local folder (``embedded:NAME`` for shipped ones), a hub id,
    an installed Python package, and a recipe by which it is derived from another host.

    Attributes:
        revision: of the hub's repository, 40 hex digits.
        version: of the package.
        derive: see `recipes.read_recipe`.
    """

    name: str
    path: str | None = None
    hub: str | None = None
    revision: str | None = None
    package: str | None = None
    version: str | None = None
    derive: Mapping[str, Any] | None = None

    @property
    def place(self) -> str:
        """As a host's description keeps it: the path, the hub's id, or ``package:NAME==VERSION``."""
        if self.package:
            return f"{PACKAGE}{self.package}" + (f"=={self.version}" if self.version else "")
        return self.path or str(self.hub)


def folder_of(source: HostSource | HostSpec) -> Path:
    """The local folder of a host; a hub id is fetched at its pinned revision, pickled weights and a package's
    GGUF are converted.

    Raises:
        UserError: no such folder, no pinned revision, or as `hub.whole`.
    """
    if isinstance(source, HostSpec):
        path, place = (source.source, None) if source.revision is None else (None, source.source)
        source = HostSource(source.name, path, place, source.revision)
    if source.package or source.path and source.path.startswith(PACKAGE):
        package, _, version = source.place.removeprefix(PACKAGE).partition("==")
        return unpacked(source.name, package, version or None)
    if source.path is None:
        hub.texts(source.name, source.hub, source.revision)  # refuses what is not pinned
        return hub.whole(source.name, str(source.hub), str(source.revision))
    embedded = source.path.removeprefix("embedded:")
    folder = Path(source.path).expanduser() if embedded == source.path else EMBEDDED / "hosts" / embedded
    if not (folder / "config.json").is_file():
        raise UserError(f"host '{source.name}': no config.json in {folder}; set host.{source.name}.path="
                        "FOLDER, or host_root=FOLDER")
    return folder


def texts_of(spec: HostSpec) -> Path:
    """The local folder with a host's configuration and tokenizer; of one from the hub without its weights.

    Raises:
        UserError: as `folder_of`.
    """
    return folder_of(spec) if spec.revision is None else hub.texts(spec.name, spec.source, spec.revision)


def describe(source: HostSource) -> HostSpec:
    """The host's shape and fingerprint; of one from the hub, no weights are fetched for it.

    Raises:
        UserError: unknown family, weights that are not safetensors, no tokenizer, or a file that cannot be
            read.
    """
    check_place(source)
    here = bool(source.path or source.package)
    folder = folder_of(source) if here else hub.texts(source.name, source.hub, source.revision)
    weights = digests_of(source.name, folder) if here else hub.digests(
        source.name, str(source.hub), str(source.revision))
    config = read_config(folder / "config.json")
    if not weights:
        there = sorted(path.name for path in folder.glob("*.*") if path.suffix in PICKLES)
        raise UserError(f"host '{source.name}': no *.safetensors in {folder}, found "
                        f"{', '.join(there) or 'none'}; pickled weights are refused, convert them once "
                        f"(docs/operations.md) and set host.{source.name}.path=FOLDER")
    shape = shape_of(config, source.name, folder)
    if here:
        _check_head(source.name, config, folder)
    tokenizer = [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
    if not tokenizer:
        raise UserError(f"host '{source.name}': no tokenizer file in {folder} (one of "
                        f"{', '.join(TOKENIZER_FILES)})")
    settings = {name: read_config(folder / name) for name in SETTINGS_FILES if (folder / name).is_file()}
    templates = [folder / name for name in TEMPLATE_FILES if (folder / name).is_file()]
    digests = weights | {path.name: file_digest(path) for path in [*tokenizer, *templates]}
    revision = None if here else source.revision
    return HostSpec(source.name, source.place, revision, fingerprint(digests, settings), shape)


def check_place(source: HostSource) -> None:
    """Refuse a host that is said to come from several places.

    Raises:
        UserError: names them.
    """
    given = [key for key in ("path", "hub", "package", "derive") if getattr(source, key)]
    if len(given) > 1:
        raise UserError(f"host '{source.name}': give one place, not {' and '.join(given)} "
                        f"({' '.join(f'host.{source.name}.{key}=null' for key in given[1:])})")


def check_unchanged(spec: HostSpec) -> None:
    """See that a host's folder holds what was planned with.

    Raises:
        UserError: it does not.
    """
    folder = folder_of(spec)
    changed = f"host '{spec.name}' changed since the study was planned"
    try:
        found = describe(HostSource(spec.name, path=str(folder)))
    except UserError as error:
        raise UserError(f"{changed}: {error}") from error
    if found.fingerprint != spec.fingerprint:
        raise UserError(f"{changed} ({folder}); run the command again")


def shape_of(config: Mapping[str, Any], name: str, folder: Path) -> HostShape:
    """As `host_shape`, with the host's name and folder in the message."""
    try:
        return host_shape(config)
    except UserError as error:
        raise UserError(f"host '{name}': {error} ({folder})") from error


def host_shape(config: Mapping[str, Any]) -> HostShape:
    """Read the shape off a host's config.json.

    Raises:
        UserError: the architecture is none of the known families, or a size is missing or no size.
    """
    try:
        name = validate_choice(str(config.get("model_type")), FAMILIES, "host family (model_type)")
    except UserError as error:
        raise UserError(
            f"{error}; a new one is a row of FAMILIES in portability/core/architectures.py") from error
    family = FAMILIES[name]
    for key in (*family.widths.values(), *family.stacks.values(), "num_layers"):
        if (size := config.get(key)) is not None and (type(size) is not int or size < 1):
            raise UserError(f"a {name} host's config.json must have a whole number from 1 on as {key}, got "
                            f"{size!r}")
    lacking = [family.widths[axis] for axis in ("hidden", "heads") if not config.get(family.widths[axis])]
    lacking += [key for key in family.stacks.values() if not (config.get(key) or config.get("num_layers"))]
    if lacking:
        raise UserError(f"a {name} host's config.json lacks {', '.join(lacking)}")
    widths: dict[str, Any] = {axis: config.get(key) for axis, key in family.widths.items()}
    widths["ffn"] = widths["ffn"] or 4 * widths["hidden"]
    widths["kv_heads"] = widths.get("kv_heads") or widths["heads"]
    widths["head_dim"] = widths.get("head_dim") or widths["hidden"] // widths["heads"]
    depth = {stack: config.get(key) or config["num_layers"] for stack, key in family.stacks.items()}
    return HostShape(family=name, layers=depth, **widths)


def read_config(path: Path) -> dict[str, Any]:
    """A host's JSON file without what cannot change a number, at any depth.

    Raises:
        UserError: the file is not a JSON object.
    """
    try:
        return {**json.loads(path.read_text(), object_hook=lambda one: {
            key: value for key, value in one.items() if key not in IRRELEVANT})}
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is not a JSON object: {error}") from error


def quantisation(config: Mapping[str, Any]) -> str | None:
    """How a host's weights are packed, such as "bitsandbytes"; None where they are plain numbers."""
    found = config.get("quantization_config")
    if not found:
        return None
    return str(found.get("quant_method", "unknown")) if isinstance(found, Mapping) else "unknown"


# ---- weights


def _check_head(name: str, config: Mapping[str, Any], folder: Path) -> None:
    """See, without loading, that the weight files are whole and hold a language-model head where one is
    needed.

    Raises:
        UserError: a file or the head is missing, or a file cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    stored, family = set[str](), FAMILIES[config["model_type"]]
    for file in weight_files(name, folder):
        try:
            with safe_open(file, "numpy") as opened:
                stored |= set(opened.keys())
        except (SafetensorError, OSError) as error:
            raise UserError(f"host '{name}': {file} cannot be read: {error}") from error
    needed = family.scoring == "label" and not config.get("tie_word_embeddings", family.tied)
    if needed and HEAD not in stored:
        check_weights(name, config["model_type"], folder, missing={HEAD}, unexpected=(), mismatched=())


def weight_files(name: str, folder: Path) -> list[Path]:
    """The files that transformers would load: model.safetensors, else those in the index.

    Raises:
        UserError: neither is there, or a file that the index names is not.
    """
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    index = folder / "model.safetensors.index.json"
    try:
        found = json.loads(index.read_text())
        table, _ = found["weight_map"], found["metadata"]  # transformers wants both
        files = [folder / file for file in sorted(set(table.values()))]
        wrong = ", ".join(file.name for file in files if not file.is_file())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"host '{name}': no model.safetensors in {folder}, and {index.name} is no index of "
                        f"weights ({error!r}); take a whole copy of the host") from error
    if wrong:
        raise UserError(f"host '{name}': {index} names {wrong}, not in its folder; take a whole copy of the "
                        "host")
    return files


def check_weights(
    name: str, family: str, folder: Path,
    missing: Iterable[str], unexpected: Iterable[str], mismatched: Iterable[str],
) -> None:
    """Refuse a host whose file and config.json do not ask for the same weights: transformers would draw those
    that are missing at random, anew at every load, and pass over the others.

    Args:
        missing, unexpected, mismatched: names of weights that the file lacks, has beyond the model, or has in
            another shape; those of parts that are never used here (`Family.unused`) do not count.

    Raises:
        UserError: there are such weights; the first of each kind are named.
    """
    kinds = {"lacks": missing, "has beyond them": unexpected, "has in another shape": mismatched}
    found = {kind: sorted(one for one in names if not one.startswith(FAMILIES[family].unused)
                          and not one.endswith(TABLES))
             for kind, names in kinds.items()}
    said = [f"it {kind} {', '.join(names[:3])}{f' and {len(names) - 3} more' if names[3:] else ''}"
            for kind, names in found.items() if names]
    if said:
        raise UserError(f"host '{name}': the weights in {folder} are not those that its config.json asks "
                        f"for: {'; '.join(said)}; take a whole copy of the host, or mend its config.json")
