"""Hosts: frozen language models from a local folder or a pinned hub revision, described without loading them."""

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from portability.errors import UserError, choose
from portability.families import FAMILIES
from portability.fingerprints import combined_digest
from portability.spec import HostShape, HostSpec

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

EMBEDDED = Path(__file__).parent / "embedded"
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", "spiece.model", "tokenizer.model")
IRRELEVANT = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "architectures", "adapters")


@dataclass(frozen=True)
class HostSource:
    """Where a host comes from: exactly one of a local folder (``embedded:NAME`` for shipped ones) and a hub id."""

    name: str
    path: str | None = None
    hub: str | None = None
    revision: str | None = None


def host_shape(config: Mapping[str, Any]) -> HostShape:
    """Read the shape off a host's config.json.

    Raises:
        UserError: the architecture is none of the known families.
    """
    name = choose(str(config.get("model_type")), FAMILIES, "host family (model_type)")
    family = FAMILIES[name]
    widths = {axis: config.get(key) for axis, key in family.widths.items()}
    widths["ffn"] = widths["ffn"] or 4 * widths["hidden"]
    widths["kv_heads"] = widths.get("kv_heads") or widths["heads"]
    widths["head_dim"] = widths.get("head_dim") or widths["hidden"] // widths["heads"]
    depth = {stack: config.get(key) or config["num_layers"] for stack, key in family.stacks.items()}
    return HostShape(family=name, layers=depth, **widths)


def folder_of(source: HostSource | HostSpec) -> Path:
    """The local folder of a host; a hub id is fetched (safetensors and JSON only) at its pinned revision.

    Raises:
        UserError: no such folder, no pinned revision, or the hub cannot be reached.
    """
    path = source.path if isinstance(source, HostSource) else source.source
    if isinstance(source, HostSource) and path is None:
        return _from_hub(source.name, source.hub, source.revision)
    if isinstance(source, HostSpec) and source.revision is not None:
        return _from_hub(source.name, source.source, source.revision)
    assert path is not None
    folder = EMBEDDED / "hosts" / path.removeprefix("embedded:") if path.startswith("embedded:") else Path(path)
    if not (folder / "config.json").is_file():
        raise UserError(f"host '{source.name}': no config.json in {folder}; set its path in conf/host or host_root=...")
    return folder


@functools.cache
def _from_hub(name: str, hub: str | None, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    if not hub or not revision or len(revision) != 40:
        raise UserError(f"host '{name}': give a path, or a hub id with its 40-digit revision (got {hub}@{revision})")
    try:
        patterns = ["*.json", "*.safetensors", "*.txt", "*.model"]
        return Path(snapshot_download(hub, revision=revision, allow_patterns=patterns))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise UserError(
            f"host '{name}': cannot fetch {hub}@{revision[:8]} ({type(error).__name__}); without the hub use the "
            f"embedded hosts, for example origin=nano-raw-base receiving=nano-tuned-base"
        ) from error


def describe(source: HostSource) -> HostSpec:
    """The host's shape and fingerprint, without loading weights or importing torch.

    Raises:
        UserError: unknown family, or weights that are not safetensors.
    """
    folder = folder_of(source)
    config = json.loads((folder / "config.json").read_text())
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        pickled = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl"))
        found = f"only {', '.join(pickled)}, and pickled weights are refused" if pickled else "none"
        raise UserError(f"host '{source.name}': needs *.safetensors in {folder}, found {found}")
    tokenizer = [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
    if not tokenizer:
        raise UserError(f"host '{source.name}': no tokenizer file in {folder} (one of {', '.join(TOKENIZER_FILES)})")
    relevant = {key: value for key, value in config.items() if key not in IRRELEVANT}
    mark = combined_digest([*weights, *tokenizer], json.dumps(relevant, sort_keys=True))
    return HostSpec(source.name, source.path or str(source.hub), source.revision, mark, host_shape(config))


@dataclass
class Host:
    """A loaded, frozen host. `label_ids` are the first tokens of the label words (negative, positive)."""

    spec: HostSpec
    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"

    @property
    def family(self) -> str:
        """Name of the architecture family (families.FAMILIES)."""
        return self.spec.shape.family

    @property
    def scoring(self) -> str:
        """"label" or "head"."""
        return FAMILIES[self.family].scoring


def load_host(spec: HostSpec) -> Host:
    """Load weights in fp32, frozen, in eval mode (no dropout), with eager attention, ready for adapters.

    Eager attention because the sdpa path builds its mask with data-dependent control flow, which `vmap` rejects.

    Raises:
        UserError: the folder's bytes are no longer those that were planned.
    """
    import adapters
    import torch
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

    folder = folder_of(spec)
    kinds = {"t5": AutoModelForSeq2SeqLM, "gpt2": AutoModelForCausalLM, "llama": AutoModelForCausalLM}
    loader = kinds.get(spec.shape.family, AutoModel)
    options = {"local_files_only": True, "trust_remote_code": False}
    model = loader.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32, use_safetensors=True, **options
    )
    adapters.init(model)
    model.requires_grad_(False).eval()
    return Host(spec, model, AutoTokenizer.from_pretrained(folder, **options))


def label_ids(tokenizer: "PreTrainedTokenizerBase", words: tuple[str, str], seq2seq: bool) -> tuple[int, int]:
    """First token of each label word (negative, positive).

    Args:
        seq2seq: True where the label stands alone (T5 decoder); False where it continues the prompt.

    Raises:
        UserError: the two words begin with the same token or with the unknown one, so scoring could not tell them apart.
    """
    def tokens(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    before = [] if seq2seq else tokens("it is")  # a label that continues a prompt: the first token after it
    first = [tokens(word if seq2seq else f"it is {word}")[len(before)] for word in words]
    if first[0] == first[1]:
        raise UserError(f"label words {words} begin with the same token {first[0]}; choose others (task.label_words)")
    if tokenizer.unk_token_id in first:
        raise UserError(f"a label word of {words} is unknown to the host's tokenizer; choose others (task.label_words)")
    return first[0], first[1]


def frozen_parameters(host: Host) -> "dict[str, torch.Tensor]":
    """The host's own parameters by name (to prove that training left them alone)."""
    return {name: value for name, value in host.model.named_parameters() if not value.requires_grad}
