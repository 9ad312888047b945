"""Hosts: frozen language models, loaded from their folder with all of its weights and no others."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from portability.core.architectures import FAMILIES
from portability.core.errors import UserError
from portability.core.specs import SECOND, HostSpec
from portability.data.tokenization import after, joined
from portability.hosts.devices import DeviceMap
from portability.hosts.sources import (
    check_unchanged,
    check_weights,
    folder_of,
    quantisation,
    read_config,
    texts_of,
)

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

GENERIC = ("PreTrainedTokenizerFast", "TokenizersBackend")  # of tokenizer.json alone, in transformers 4, 5


@dataclass
class Host:
    """A loaded, frozen host, computing in `precision` ("fp32", or "bf16" by autocast).

    Attributes:
        devices: where its parts stand (hosts/spread.py); empty of a host that is whole in one place.
        main: the device of what it reads and gives, of a spread host.
    """

    spec: HostSpec
    model: "PreTrainedModel"
    tokenizer: Any  # PreTrainedTokenizerBase; None of a skeleton
    precision: str = "fp32"
    devices: "Mapping[str, torch.device]" = field(default_factory=dict)
    main: "torch.device | None" = None

    @property
    def device(self) -> "torch.device":
        """Where what it reads is to be, and what it gives is."""
        return self.main or self.model.device

    @property
    def is_spread(self) -> bool:
        """Whether a part of it stands elsewhere than what it reads and gives."""
        return len({*self.devices.values(), *([self.main] if self.main else [])}) > 1

    @property
    def family(self) -> str:
        """Name of the architecture family (architectures.FAMILIES)."""
        return self.spec.shape.family

    @property
    def scoring(self) -> str:
        """"label" or "head"."""
        return FAMILIES[self.family].scoring


def load_host(spec: HostSpec, device: str = "cpu", precision: str = "fp32",
              device_map: DeviceMap | None = None) -> Host:
    """Load weights, frozen, in eval mode (no dropout).

    Args:
        device: "cpu", or "cuda:N".
        precision: "fp32"; or "bf16", where the forward pass runs under autocast and the frozen linear layers
            are kept in bf16, which is what autocast would make of them in every pass.
        device_map: how it is spread over further devices; what it reads and gives is on `device`.

    Raises:
        UserError: the folder's bytes are no longer those that were planned, or cannot be loaded; or as
            `spread.devices_of`.
    """
    model, tokenizer = load_plain(spec, attention_of(spec.shape.family, device)), load_tokenizer(spec)
    if precision == "bf16":
        narrow(model)
    model.requires_grad_(False).eval()
    if device_map is None:
        model.to(device)
        return Host(spec, model, tokenizer, precision)
    import torch

    from portability.hosts.spread import devices_of, spread

    devices = devices_of(spec.name, model, device_map, device)
    spread(model, devices)
    return Host(spec, model, tokenizer, precision, devices, torch.device(device))


def load_plain(spec: HostSpec, attention: str = "eager") -> "PreTrainedModel":
    """A host's model as transformers has it, in fp32.

    Raises:
        UserError: the folder's bytes are no longer those that were planned, or as `from_folder`.
    """
    import torch

    check_unchanged(spec)
    options = {"attn_implementation": attention, "dtype": torch.float32}
    return from_folder(spec.name, spec.shape.family, folder_of(spec), **options)


def load_skeleton(spec: HostSpec) -> Host:
    """A host without numbers: its modules by name and shape, on torch's meta device, whatever its size. It
    has no tokenizer.

    Raises:
        UserError: the folder's config.json makes no model.
    """
    import torch
    from transformers import AutoConfig

    folder = texts_of(spec)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            model = model_class(spec.shape.family).from_config(config)
    except Exception as error:  # config classes raise plain ones
        raise UserError(f"host '{spec.name}': no model can be made of {folder / 'config.json'}: "
                        f"{error}") from error
    return Host(spec, model.requires_grad_(False).eval(), None)


def from_folder(name: str, family: str, folder: Path, **options: Any) -> "PreTrainedModel":
    """A host's model with the weights of its folder, all of them and no others.

    Args:
        options: of transformers' `from_pretrained`.

    Raises:
        UserError: the folder cannot be read, or as `check_weights`.
    """
    from safetensors import SafetensorError

    if packed := quantisation(read_config(folder / "config.json")):
        raise UserError(f"host '{name}': the weights in {folder} are quantised ({packed}), and here they are "
                        "computed with as plain numbers; take the host that they were made of")
    try:
        with quiet():
            model, found = model_class(family).from_pretrained(
                folder, use_safetensors=True, local_files_only=True, trust_remote_code=False,
                output_loading_info=True, ignore_mismatched_sizes=True, **options)
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"host '{name}' cannot be loaded from {folder}: {error}") from error
    mismatched = [one if isinstance(one, str) else one[0]  # with both shapes in transformers 5
                  for one in found["mismatched_keys"]]
    check_weights(name, family, folder, found["missing_keys"], found["unexpected_keys"], mismatched)
    return model


@contextmanager
def quiet() -> Iterator[None]:
    """Within it transformers shows no progress bars, of which version 5 has one for each host's weights, and
    says nothing of weights that do not fit, which `check_weights` does."""
    from transformers.utils import logging

    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


def model_class(family: str) -> Any:
    """The class of transformers that loads a family's hosts."""
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    if FAMILIES[family].scoring == "head":
        return AutoModel
    return AutoModelForSeq2SeqLM if "encoder" in FAMILIES[family].stacks else AutoModelForCausalLM


def load_tokenizer(spec: HostSpec) -> "PreTrainedTokenizerBase":
    """A host's tokenizer, without its weights."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    folder = texts_of(spec)
    settings = folder / "tokenizer_config.json"
    try:
        said = json.loads(settings.read_text()).get("tokenizer_class") if settings.is_file() else None
        # transformers 5 gives some families' hosts the tokenizer of their family, whatever their file says
        kind = PreTrainedTokenizerFast if said in GENERIC else AutoTokenizer
        return kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # tokenizers raises plain ones
        raise UserError(f"the tokenizer of host '{spec.name}' cannot be loaded from {folder}: "
                        f"{error}") from error


def attention_of(family: str, device: str) -> str:
    """Kind of attention: torch's scaled-dot-product on a GPU where the family has it; eager on a CPU, where
    `vmap` would take the members one by one and the bits of finished studies would change."""
    return "sdpa" if device != "cpu" and FAMILIES[family].sdpa else "eager"


def narrow(model: "PreTrainedModel") -> None:
    """Keep the linear layers in bf16, but not one that shares its weight with the embedding, whose output is
    fp32."""
    import torch

    for part in _narrowed(model):
        part.to(torch.bfloat16)


def _narrowed(model: "PreTrainedModel") -> list[Any]:
    import torch

    embedding = model.get_input_embeddings().weight
    return [part for part in model.modules()
            if isinstance(part, torch.nn.Linear) and part.weight is not embedding]


def weight_bytes(model: "PreTrainedModel", precision: str) -> int:
    """Bytes of a host's weights as `load_host` keeps them; the model may be one without numbers."""
    parts = _narrowed(model) if precision == "bf16" else []
    halved = {id(value) for part in parts for value in part.parameters()}
    return sum(value.numel() * (2 if id(value) in halved else 4) for value in model.parameters())


def label_tokens(
    tokenizer: "PreTrainedTokenizerBase", words: Sequence[str], seq2seq: bool, template: str = "{text}"
) -> list[list[int]]:
    """Tokens of each label word, as they follow a question (tokenization.joined): a word that begins with a
    blank is taken as it is written.

    Args:
        seq2seq: True where the label stands alone (T5 decoder); False where it continues the question.
        template: of the question; it ends as the question does.
    """
    def tokens(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    asked = template.replace("{text}", "it is").replace(SECOND, "it is")
    if seq2seq:
        return [tokens(word) for word in words]
    return [after(tokens(asked), tokens(asked + joined(asked, word)), tokens(word)) for word in words]


def label_ids(
    tokenizer: "PreTrainedTokenizerBase", words: Sequence[str], seq2seq: bool, template: str = "{text}"
) -> tuple[int, ...]:
    """First token of each label word; arguments as of `label_tokens`.

    Raises:
        UserError: two words begin with the same token, or one with the unknown one or with none, so scoring
            could not tell them apart.
    """
    first: dict[int, str] = {}
    for word, tokens in zip(words, label_tokens(tokenizer, words, seq2seq, template), strict=True):
        wrong = None
        if not tokens:
            wrong = f"label word {word!r} has no token"
        elif tokens[0] in first:
            wrong = f"label words {(first[tokens[0]], word)} begin with the same token {tokens[0]}"
        elif tokens[0] == tokenizer.unk_token_id:
            wrong = f"label word {word!r} is unknown to the host's tokenizer"
        if wrong:
            raise UserError(f"{wrong}; choose others (task.label_words, or data.NAME.task.label_words)")
        first[tokens[0]] = word
    return tuple(first)
