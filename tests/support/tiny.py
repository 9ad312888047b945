"""Tiny hosts of every family and tiny data sets, made on the spot: no download, no GPU."""

import json
import random
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from portability.core.paths import bundled
from portability.core.specs import MethodSpec, TaskSpec
from portability.hosts.host import model_class
from portability.methods.base import AttachedMethod

torch.set_num_threads(1)
CONF = bundled("conf")
GOOD = ["fine", "lovely", "bright", "great", "warm", "clever"]
BAD = ["awful", "dull", "grim", "weak", "cold", "silly"]
PLAIN = ["the", "film", "plot", "actor", "was", "and", "very", "a", "story", "with", "scene", "music"]
WORDS = ["<pad>", "</s>", "<unk>", "negative", "positive", "answer", ":", *GOOD, *BAD, *PLAIN]
TASK = TaskSpec("{text} answer :", ("negative", "positive"), 32)
METHODS = {
    "adapter": MethodSpec("adapter", "adapters", "DoubleSeqBnConfig", {"bottleneck": 8}, 3e-3),
    "lora": MethodSpec("lora", "adapters", "LoRAConfig", {
        "r": 4, "alpha": 8, "attn_matrices": ["q", "k", "v"], "selfattn_lora": True,
        "intermediate_lora": True, "output_lora": True}, 3e-3),
    "prefix": MethodSpec("prefix", "adapters", "PrefixTuningConfig", {"flat": True, "prefix_length": 5},
                         3e-2),
    "compacter": MethodSpec("compacter", "adapters", "CompacterConfig", {"bottleneck": 8, "phm_dim": 4},
                            1e-2),
}
FAMILIES = ("t5", "bert", "roberta", "gpt2", "llama")   # of most tests; architectures.FAMILIES has all


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a word."""
    tok = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tok.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tok, pad_token="<pad>", eos_token="</s>",
                                   unk_token="<unk>")


def model(family: str, hidden: int, layers: int, heads: int) -> transformers.PreTrainedModel:
    """A host with random weights, made of its family's config class."""
    config = transformers.AutoConfig.for_model(family, **_sizes(family, hidden, layers, heads))
    return model_class(family).from_config(config)


def _sizes(family: str, hidden: int, layers: int, heads: int) -> dict:
    """Keywords of a family's config class; ids of special tokens are those of `tokenizer`."""
    ids = {"vocab_size": len(WORDS), "eos_token_id": 1, "bos_token_id": 1}
    if family not in ("gpt2", "llama", "mistral", "qwen2", "qwen3"):
        ids["pad_token_id"] = 0
    usual = {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
             "intermediate_size": 2 * hidden}
    if family in ("t5", "mt5"):
        return ids | {"d_model": hidden, "d_kv": hidden // heads, "d_ff": 2 * hidden, "num_layers": layers,
                      "num_decoder_layers": layers, "num_heads": heads, "feed_forward_proj": "gated-gelu",
                      "decoder_start_token_id": 0}
    if family == "bart":
        return ids | {"d_model": hidden, "encoder_ffn_dim": 2 * hidden, "decoder_ffn_dim": 2 * hidden,
                      "encoder_layers": layers, "decoder_layers": layers, "encoder_attention_heads": heads,
                      "decoder_attention_heads": heads, "decoder_start_token_id": 1,
                      "max_position_embeddings": 64, "init_std": 0.1}
    if family == "gpt2":
        return ids | {"n_embd": hidden, "n_layer": layers, "n_head": heads, "n_positions": 64}
    if family == "distilbert":
        return ids | {"dim": hidden, "hidden_dim": 2 * hidden, "n_layers": layers, "n_heads": heads,
                      "max_position_embeddings": 64}
    if family == "opt":
        return ids | usual | {"ffn_dim": 2 * hidden, "word_embed_proj_dim": hidden,
                              "max_position_embeddings": 64, "init_std": 0.1}
    if family in ("bert", "roberta", "xlm-roberta", "deberta-v2", "modernbert"):
        more = {"deberta-v2": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"],
                               "position_buckets": 8},
                "modernbert": {"reference_compile": False, "cls_token_id": 1, "sep_token_id": 1}}
        return ids | usual | {"max_position_embeddings": 64} | more.get(family, {})
    return ids | usual | {"num_key_value_heads": heads // 2} | (
        {} if family in ("qwen2", "phi3") else {"head_dim": hidden // heads})


def noisy(attached: AttachedMethod, seed: int):
    """A module in which no tensor is zero, so that nothing is equal by accident."""
    state = attached.init_parameters(seed)
    generator = torch.Generator().manual_seed(seed)
    return state.map({s: t + 0.1 * torch.randn(t.shape, generator=generator)
                      for s, t in state.tensors.items()})


def sentences(number: int, seed: int) -> list[dict]:
    """Distinct sentences whose polarity is that of their one charged word."""
    draw, rows, seen = random.Random(seed), [], set()
    while len(rows) < number:
        label = len(rows) % 2
        words = draw.sample(PLAIN, draw.randint(3, 9))
        words.insert(draw.randint(0, len(words)), draw.choice(GOOD if label else BAD))
        text = " ".join(words)
        if text not in seen:
            seen.add(text)
            rows.append({"text": text, "label": label})
    return rows


def write_set(folder: Path, train: list[dict], validation: list[dict], test: list[dict]) -> Path:
    """A data set as a folder of jsonl files."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in (("train", train), ("validation", validation), ("test", test)):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
