"""Where a method's matrices sit in each architecture family: data, and the look-ups over it, no logic of porting.

A slot is (stack, layer, site, role). A library's parameter name is taken apart by the family's patterns into stack,
layer and site; the role and the axes follow from the method's own part of the name.
"""

import re
from dataclasses import dataclass
from typing import NamedTuple


class Slot(NamedTuple):
    """Place of one tensor of a module; `stack` is "shared" and `layer` 0 for what belongs to no layer."""

    stack: str
    layer: int
    site: str
    role: str

    @property
    def key(self) -> str:
        """The slot as text, for file keys: ``encoder.3.attention.down_weight``."""
        return f"{self.stack}.{self.layer}.{self.site}.{self.role}"

    @classmethod
    def parse(cls, key: str) -> "Slot":
        """The slot of a file key."""
        stack, layer, site, role = key.split(".")
        return cls(stack, int(layer), site, role)


@dataclass(frozen=True)
class Family:
    """How one architecture names its parts.

    Attributes:
        scoring: "label" (a language-model head scores the label words) or "head" (a classification head).
        stacks: the stacks it has, with the config key of each one's depth.
        widths: config key of hidden, ffn, heads, kv_heads, head_dim (missing ones are derived).
        sites: (regular expression over parameter names, stack or None where group "stack" says it, site).
        sdpa: whether transformers has scaled-dot-product attention for it (used on a GPU, with ready-made masks).
        tied: whether a config.json that does not say so ties head and embedding (`tie_word_embeddings`).
        unused: beginnings of the weights' names of parts on top of the last states, which are never used here: a file may
            lack them or have them all the same.
    """

    scoring: str
    stacks: dict[str, str]
    widths: dict[str, str]
    sites: tuple[tuple[str, str | None, str], ...]
    sdpa: bool = False
    tied: bool = True
    unused: tuple[str, ...] = ()


_T5_ATTENTION = {"q": "query", "k": "key", "v": "value", "o": "attention_out"}
_BERT_SITES = (
    (r"encoder\.layer\.(?P<layer>\d+)\.attention\.output\.adapters\.", "encoder", "attention"),
    (r"encoder\.layer\.(?P<layer>\d+)\.output\.adapters\.", "encoder", "ffn"),
    (r"encoder\.layer\.(?P<layer>\d+)\.attention\.self\.(?P<name>query|key|value)\.loras\.", "encoder", "{name}"),
    (r"encoder\.layer\.(?P<layer>\d+)\.attention\.output\.dense\.loras\.", "encoder", "attention_out"),
    (r"encoder\.layer\.(?P<layer>\d+)\.intermediate\.dense\.loras\.", "encoder", "ffn_up"),
    (r"encoder\.layer\.(?P<layer>\d+)\.output\.dense\.loras\.", "encoder", "ffn_down"),
    (r"self_prefix\.control_trans$", "encoder", "self_prefix"),
)
_BERT_WIDTHS = {"hidden": "hidden_size", "ffn": "intermediate_size", "heads": "num_attention_heads"}
_ON_TOP = ("pooler.", "cls.", "lm_head.", "classifier.", "qa_outputs.")  # of models that pretraining and fine-tuning leave
_SHARED = (
    (r"shared_parameters\.", "shared", "phm"),
    (r"(^|\.)(shared|embeddings\.word_embeddings|wte|embed_tokens)\.loras\.", "shared", "embedding"),
    (r"(^|\.)lm_head\.loras\.", "shared", "head"),
)

FAMILIES: dict[str, Family] = {
    "t5": Family(
        scoring="label",
        stacks={"encoder": "num_layers", "decoder": "num_decoder_layers"},
        widths={"hidden": "d_model", "ffn": "d_ff", "heads": "num_heads", "head_dim": "d_kv"},
        sites=(
            (r"(?P<stack>encoder|decoder)\.block\.(?P<layer>\d+)\.layer\.0\.adapters\.", None, "attention"),
            (r"decoder\.block\.(?P<layer>\d+)\.layer\.1\.adapters\.", "decoder", "cross_attention"),
            (r"encoder\.block\.(?P<layer>\d+)\.layer\.1\.adapters\.", "encoder", "ffn"),
            (r"decoder\.block\.(?P<layer>\d+)\.layer\.2\.adapters\.", "decoder", "ffn"),
            (r"(?P<stack>encoder|decoder)\.block\.(?P<layer>\d+)\.layer\.0\.SelfAttention\.(?P<name>[qkvo])\.loras\.",
             None, "{name}"),
            (r"decoder\.block\.(?P<layer>\d+)\.layer\.1\.EncDecAttention\.(?P<name>[qkvo])\.loras\.",
             "decoder", "cross_{name}"),
            (r"(?P<stack>encoder|decoder)\.block\.(?P<layer>\d+)\.layer\.\d\.DenseReluDense\.wi(_1)?\.loras\.",
             None, "ffn_up"),
            (r"(?P<stack>encoder|decoder)\.block\.(?P<layer>\d+)\.layer\.\d\.DenseReluDense\.wi_0\.loras\.",
             None, "ffn_gate"),
            (r"(?P<stack>encoder|decoder)\.block\.(?P<layer>\d+)\.layer\.\d\.DenseReluDense\.wo\.loras\.",
             None, "ffn_down"),
            (r"encoder_prefix\.control_trans$", "encoder", "self_prefix"),
            (r"self_prefix\.control_trans$", "decoder", "self_prefix"),
            (r"cross_prefix\.control_trans$", "decoder", "cross_prefix"),
        ) + _SHARED,
    ),
    "bert": Family("head", {"encoder": "num_hidden_layers"}, _BERT_WIDTHS, _BERT_SITES + _SHARED, sdpa=True, unused=_ON_TOP),
    "roberta": Family("head", {"encoder": "num_hidden_layers"}, _BERT_WIDTHS, _BERT_SITES + _SHARED, sdpa=True, unused=_ON_TOP),
    "gpt2": Family(
        scoring="label",
        stacks={"decoder": "n_layer"},
        widths={"hidden": "n_embd", "ffn": "n_inner", "heads": "n_head"},
        sites=(
            (r"\.h\.(?P<layer>\d+)\.attention_adapters\.adapters\.", "decoder", "attention"),
            (r"\.h\.(?P<layer>\d+)\.output_adapters\.adapters\.", "decoder", "ffn"),
            (r"\.h\.(?P<layer>\d+)\.attn\.c_attn\.loras\.", "decoder", "query+key+value"),
            (r"\.h\.(?P<layer>\d+)\.attn\.c_proj\.loras\.", "decoder", "attention_out"),
            (r"\.h\.(?P<layer>\d+)\.mlp\.c_fc\.loras\.", "decoder", "ffn_up"),
            (r"\.h\.(?P<layer>\d+)\.mlp\.c_proj\.loras\.", "decoder", "ffn_down"),
            (r"self_prefix\.control_trans$", "decoder", "self_prefix"),
        ) + _SHARED,
        sdpa=True,
    ),
    "llama": Family(
        scoring="label",
        stacks={"decoder": "num_hidden_layers"},
        widths=_BERT_WIDTHS | {"kv_heads": "num_key_value_heads", "head_dim": "head_dim"},
        sites=(
            (r"\.layers\.(?P<layer>\d+)\.attention_adapters\.adapters\.", "decoder", "attention"),
            (r"\.layers\.(?P<layer>\d+)\.output_adapters\.adapters\.", "decoder", "ffn"),
            (r"\.layers\.(?P<layer>\d+)\.self_attn\.(?P<name>[qkvo])_proj\.loras\.", "decoder", "{name}"),
            (r"\.layers\.(?P<layer>\d+)\.mlp\.gate_proj\.loras\.", "decoder", "ffn_gate"),
            (r"\.layers\.(?P<layer>\d+)\.mlp\.up_proj\.loras\.", "decoder", "ffn_up"),
            (r"\.layers\.(?P<layer>\d+)\.mlp\.down_proj\.loras\.", "decoder", "ffn_down"),
            (r"self_prefix\.control_trans$", "decoder", "self_prefix"),
        ) + _SHARED,
        sdpa=True,
        tied=False,
    ),
}

# Axes of a low-rank pair beside each matrix of the host: what goes in, and what comes out. Query heads are laid out as
# (key-value head, place in its group), so that a query keeps its key and value when heads are cut, padded or repeated.
LORA_AXES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "query": (("hidden",), ("kv_heads", "group", "head_dim")),
    "key": (("hidden",), ("kv_heads", "head_dim")),
    "value": (("hidden",), ("kv_heads", "head_dim")),
    "attention_out": (("kv_heads", "group", "head_dim"), ("hidden",)),
    "ffn_up": (("hidden",), ("ffn",)),
    "ffn_gate": (("hidden",), ("ffn",)),
    "ffn_down": (("ffn",), ("hidden",)),
    "embedding": (("vocab",), ("hidden",)),  # of the embedding's transpose, which takes a token to its vector
    "head": (("hidden",), ("vocab",)),
}
SITE_GROUPS: dict[str, tuple[str, ...]] = {  # names for what a family has of these sites
    "attention": ("query", "key", "value", "attention_out"),
    "ffn": ("ffn_up", "ffn_gate", "ffn_down"),
    "embedding": ("embedding",),
    "head": ("head",),
}


def locate(family: str, name: str) -> tuple[str, int, str]:
    """Stack, layer and site of a library's parameter name.

    Raises:
        KeyError: no pattern of the family fits, so the name would be lost in a port.

    Example:
        >>> locate("bert", "encoder.layer.3.attention.self.key.loras.m.lora_A")
        ('encoder', 3, 'key')
    """
    for pattern, stack, site in FAMILIES[family].sites:
        if match := re.search(pattern, name):
            parts = match.groupdict()
            short = parts.get("name", "")
            site = site.replace("{name}", _T5_ATTENTION.get(short, short))
            return stack or parts["stack"], int(parts.get("layer") or 0), site
    raise KeyError(f"no place is known for parameter {name!r} in the {family} family (portability/core/architectures.py)")
