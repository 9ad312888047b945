"""Where each architecture family keeps its matrices: data, and the look-ups over it.

A slot is (stack, layer, site, role): the site names what the tensor stands beside, the role its part of the
method.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
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
        layer: path of a layer, with {stack} where the stack is part of it and {layer} for its number.
        matrices: stack -> path inside a layer -> site; one matrix for several sites has them joined by "+".
        shared: path -> site of what is outside the layers.
        norms: stack -> path inside a layer -> site of its normalisations.
        sdpa: whether transformers has scaled-dot-product attention for it (used on a GPU, with ready-made
            masks).
        tied: whether a config.json that does not say so ties head and embedding (`tie_word_embeddings`).
        gain: what a normalisation's weight is added to, where it divides by the root of the mean square
            alone (RMSNorm: 0; Gemma's: 1), so that its gain can be folded into the next matrix; None of a
            LayerNorm.
        scaled: whether what a head reads that is the embedding is multiplied by hidden ** -0.5 (T5's).
        rotary: whether queries and keys are rotated by their position, pair by pair (i, i + head_dim / 2).
        unused: beginnings of the weights' names of parts on top of the last states, which are never used
            here: a file may lack them or have them all the same.
    """

    scoring: str
    stacks: Mapping[str, str]
    widths: Mapping[str, str]
    layer: str
    matrices: Mapping[str, Mapping[str, str]]
    shared: Mapping[str, str]
    norms: Mapping[str, Mapping[str, str]]
    sdpa: bool = False
    tied: bool = True
    gain: float | None = None
    scaled: bool = False
    rotary: bool = False
    unused: tuple[str, ...] = ()

    @property
    def seq2seq(self) -> bool:
        """Whether an encoder reads the question and a decoder writes the answer."""
        return len(self.stacks) == 2

    @property
    def kind(self) -> str:
        """What it is asked as: "encoder" (by a head), "seq2seq" or "decoder" (by words)."""
        return "encoder" if self.scoring == "head" else "seq2seq" if self.seq2seq else "decoder"


_T5_NAMES = {"q": "query", "k": "key", "v": "value", "o": "attention_out"}
_T5_SELF = {f"layer.0.SelfAttention.{name}": site for name, site in _T5_NAMES.items()}
_T5_CROSS = {f"layer.1.EncDecAttention.{name}": f"cross_{site}" for name, site in _T5_NAMES.items()}
_T5_FFN = {"wi": "ffn_up", "wi_1": "ffn_up", "wi_0": "ffn_gate", "wo": "ffn_down"}  # wi: ungated, version 1.0
_WIDTHS = {"hidden": "hidden_size", "ffn": "intermediate_size", "heads": "num_attention_heads"}
_GROUPED = _WIDTHS | {"kv_heads": "num_key_value_heads", "head_dim": "head_dim"}
_SELF = {"self_attn.q_proj": "query", "self_attn.k_proj": "key", "self_attn.v_proj": "value"}
_OPT = _SELF | {"self_attn.out_proj": "attention_out", "fc1": "ffn_up", "fc2": "ffn_down"}
_OPT_NORMS = {"self_attn_layer_norm": "attention_norm", "final_layer_norm": "ffn_norm"}
_LLAMA_MATRICES = _SELF | {"self_attn.o_proj": "attention_out", "mlp.gate_proj": "ffn_gate",
                           "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
_LLAMA_NORMS = {"input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm"}
_HEAD_NORMS = {"self_attn.q_norm": "query_norm", "self_attn.k_norm": "key_norm"}
_GEMMA_NORMS = {"input_layernorm": "attention_norm", "post_attention_layernorm": "attention_out_norm",
                "pre_feedforward_layernorm": "ffn_norm", "post_feedforward_layernorm": "ffn_out_norm"}
_T5 = Family(
    scoring="label",
    stacks={"encoder": "num_layers", "decoder": "num_decoder_layers"},
    widths={"hidden": "d_model", "ffn": "d_ff", "heads": "num_heads", "head_dim": "d_kv"},
    layer="{stack}.block.{layer}",
    matrices={
        "encoder": _T5_SELF | {f"layer.1.DenseReluDense.{name}": site for name, site in _T5_FFN.items()},
        "decoder": _T5_SELF | _T5_CROSS | {
            f"layer.2.DenseReluDense.{name}": site for name, site in _T5_FFN.items()},
    },
    norms={
        "encoder": {"layer.0.layer_norm": "attention_norm", "layer.1.layer_norm": "ffn_norm"},
        "decoder": {"layer.0.layer_norm": "attention_norm", "layer.1.layer_norm": "cross_attention_norm",
                    "layer.2.layer_norm": "ffn_norm"},
    },
    shared={"shared": "embedding", "lm_head": "head", "encoder.final_layer_norm": "encoder_norm",
            "decoder.final_layer_norm": "decoder_norm"},
    gain=0.0,
    scaled=True,
)
_BERT = Family(
    scoring="head",
    stacks={"encoder": "num_hidden_layers"},
    widths=_WIDTHS,
    layer="encoder.layer.{layer}",
    matrices={"encoder": {
        "attention.self.query": "query", "attention.self.key": "key", "attention.self.value": "value",
        "attention.output.dense": "attention_out", "intermediate.dense": "ffn_up", "output.dense": "ffn_down",
    }},
    norms={"encoder": {"attention.output.LayerNorm": "attention_norm", "output.LayerNorm": "ffn_norm"}},
    shared={"embeddings.word_embeddings": "embedding", "embeddings.LayerNorm": "embedding_norm"},
    sdpa=True,
    unused=("pooler.", "cls.", "lm_head.", "classifier.", "qa_outputs."),  # of pretraining and fine-tuning
)
_LLAMA = Family(
    scoring="label",
    stacks={"decoder": "num_hidden_layers"},
    widths=_GROUPED,
    layer="layers.{layer}",
    matrices={"decoder": _LLAMA_MATRICES},
    norms={"decoder": _LLAMA_NORMS},
    shared={"embed_tokens": "embedding", "lm_head": "head", "norm": "final_norm"},
    sdpa=True,
    tied=False,
    gain=0.0,
    rotary=True,
)

FAMILIES: dict[str, Family] = {  # by the model_type of config.json
    "t5": _T5,
    "mt5": replace(_T5, tied=False),
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "distilbert": Family(
        scoring="head",
        stacks={"encoder": "n_layers"},
        widths={"hidden": "dim", "ffn": "hidden_dim", "heads": "n_heads"},
        layer="transformer.layer.{layer}",
        matrices={"encoder": {
            "attention.q_lin": "query", "attention.k_lin": "key", "attention.v_lin": "value",
            "attention.out_lin": "attention_out", "ffn.lin1": "ffn_up", "ffn.lin2": "ffn_down",
        }},
        norms={"encoder": {"sa_layer_norm": "attention_norm", "output_layer_norm": "ffn_norm"}},
        shared=_BERT.shared,
        unused=("vocab_", "pre_classifier.", "classifier.", "qa_outputs."),
    ),
    "deberta-v2": replace(_BERT, matrices={"encoder": {
        "attention.self.query_proj": "query", "attention.self.key_proj": "key",
        "attention.self.value_proj": "value", "attention.output.dense": "attention_out",
        "intermediate.dense": "ffn_up", "output.dense": "ffn_down",
    }}, sdpa=False, unused=(*_BERT.unused, "lm_predictions.", "mask_predictions.")),
    "modernbert": Family(
        scoring="head",
        stacks={"encoder": "num_hidden_layers"},
        widths=_WIDTHS,
        layer="layers.{layer}",
        matrices={"encoder": {
            "attn.Wqkv": "query+key+value", "attn.Wo": "attention_out",
            "mlp.Wi": "ffn_gate+ffn_up", "mlp.Wo": "ffn_down",
        }},
        norms={"encoder": {"attn_norm": "attention_norm", "mlp_norm": "ffn_norm"}},
        shared={"embeddings.tok_embeddings": "embedding", "embeddings.norm": "embedding_norm",
                "final_norm": "final_norm"},
        rotary=True,
        unused=("head.", "decoder.", "classifier."),
    ),
    "gpt2": Family(
        scoring="label",
        stacks={"decoder": "n_layer"},
        widths={"hidden": "n_embd", "ffn": "n_inner", "heads": "n_head"},
        layer="h.{layer}",
        matrices={"decoder": {
            "attn.c_attn": "query+key+value", "attn.c_proj": "attention_out",
            "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down",
        }},
        norms={"decoder": {"ln_1": "attention_norm", "ln_2": "ffn_norm"}},
        shared={"wte": "embedding", "lm_head": "head", "ln_f": "final_norm"},
        sdpa=True,
    ),
    "opt": Family(
        scoring="label",
        stacks={"decoder": "num_hidden_layers"},
        widths={"hidden": "hidden_size", "ffn": "ffn_dim", "heads": "num_attention_heads"},
        layer="layers.{layer}",
        matrices={"decoder": _OPT},
        norms={"decoder": _OPT_NORMS},
        shared={"embed_tokens": "embedding", "lm_head": "head", "decoder.final_layer_norm": "final_norm"},
    ),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": replace(_LLAMA, norms={"decoder": _LLAMA_NORMS | _HEAD_NORMS}),
    "gemma2": replace(_LLAMA, norms={"decoder": _GEMMA_NORMS}, sdpa=False, tied=True, gain=1.0),
    "gemma3_text": replace(_LLAMA, norms={"decoder": _GEMMA_NORMS | _HEAD_NORMS}, sdpa=False, tied=True,
                           gain=1.0),
    "phi3": replace(_LLAMA, matrices={"decoder": {
        "self_attn.qkv_proj": "query+key+value", "self_attn.o_proj": "attention_out",
        "mlp.gate_up_proj": "ffn_gate+ffn_up", "mlp.down_proj": "ffn_down",
    }}),
    "bart": Family(
        scoring="label",
        stacks={"encoder": "encoder_layers", "decoder": "decoder_layers"},
        widths={"hidden": "d_model", "ffn": "encoder_ffn_dim", "heads": "encoder_attention_heads"},
        layer="{stack}.layers.{layer}",
        matrices={
            "encoder": _OPT,
            "decoder": _OPT | {
                "encoder_attn.q_proj": "cross_query", "encoder_attn.k_proj": "cross_key",
                "encoder_attn.v_proj": "cross_value", "encoder_attn.out_proj": "cross_attention_out",
            },
        },
        norms={"encoder": _OPT_NORMS,
               "decoder": _OPT_NORMS | {"encoder_attn_layer_norm": "cross_attention_norm"}},
        shared={"shared": "embedding", "lm_head": "head", "encoder.layernorm_embedding": "encoder_norm",
                "decoder.layernorm_embedding": "decoder_norm"},
    ),
}

# Axes of a low-rank pair beside each matrix of the host: what goes in, and what comes out. Query heads are
# laid out as (key-value head, place in its group), so that a query keeps its key and value when heads are
# cut, padded or repeated.
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
NORM_AXES: dict[str, tuple[str, ...]] = {  # of the normalisations that are not as wide as the host
    "query_norm": ("head_dim",), "key_norm": ("head_dim",),
}
SITE_GROUPS: dict[str, tuple[str, ...]] = {  # names for what a family has of these sites
    "attention": ("query", "key", "value", "attention_out"),
    "ffn": ("ffn_up", "ffn_gate", "ffn_down"),
    "embedding": ("embedding",),
    "head": ("head",),
}


def sites_of(targets: list[str]) -> list[str] | None:
    """The sites and groups of sites that names of modules stand for in peft's sense (endings of paths), the
    same in every family that has all of them; None where there are no such sites.

    Example:
        >>> sites_of(["q_proj", "v_proj"]), sites_of(["c_fc", "mlp.c_proj"]), sites_of(["layers.0.up_proj"])
        (['query', 'value'], ['ffn'], None)
    """
    found = [sites for family in FAMILIES.values() if (sites := _sites_in(family, targets)) is not None]
    return found[0] if found and found[0] and all(sites == found[0] for sites in found) else None


def _sites_in(family: Family, targets: list[str]) -> list[str] | None:
    """As `sites_of`, of one family: None where it lacks a name, nothing where the names leave out a module of
    their sites."""
    rows = [*((path, site) for stack in family.matrices.values() for path, site in stack.items()),
            *family.shared.items()]
    paths = {name: {row for row in rows if f".{row[0]}".endswith(f".{name}")} for name in targets}
    if not all(paths.values()):
        return None
    chosen = set().union(*paths.values())

    def named(site: str) -> set[str]:
        return set(site.replace("cross_", "").split("+"))

    sites = set().union(*(named(site) for _, site in chosen))
    if chosen != {row for row in rows if named(row[1]) & sites}:
        return []
    for group, members in SITE_GROUPS.items():
        if (own := set(members) & set().union(*(named(site) for _, site in rows))) and own <= sites:
            sites = sites - own | {group}
    return sorted(sites)


def within_layer(family: str, name: str) -> tuple[str, int, str] | None:
    """Stack and layer of a parameter's name, and the rest of the name inside the layer; None outside the
    layers.

    Example:
        >>> within_layer("bert", "encoder.layer.3.attention.self.key.weight")
        ('encoder', 3, 'attention.self.key.weight')
    """
    stacks = FAMILIES[family].stacks
    path = re.escape(FAMILIES[family].layer).replace(r"\{stack\}", f"(?P<stack>{'|'.join(stacks)})")
    path = path.replace(r"\{layer\}", r"(?P<layer>\d+)")
    match = re.search(rf"(?:^|\.){path}\.(?P<rest>.+)", name)
    if match is None:
        return None
    return match.groupdict().get("stack") or next(iter(stacks)), int(match["layer"]), match["rest"]


def parse_name(family: str, name: str) -> tuple[str, int, str]:
    """Stack, layer and site of a parameter of a host's matrix, or of one that a method put beside it.

    Raises:
        KeyError: the family has no such matrix.

    Example:
        >>> parse_name("bert", "encoder.layer.3.attention.self.key.loras.m.lora_A")
        ('encoder', 3, 'key')
    """
    if inside := within_layer(family, name):
        stack, layer, rest = inside
        places = {**FAMILIES[family].matrices[stack], **FAMILIES[family].norms[stack]}
        for path, site in places.items():
            if rest.startswith(f"{path}."):
                return stack, layer, site
    for path, site in FAMILIES[family].shared.items():
        if f".{path}." in f".{name}":
            return "shared", 0, site
    raise KeyError(f"no place is known for parameter {name!r} in the {family} family "
                   "(portability/core/architectures.py)")
