"""Hosts of named shapes with random weights, and sentences to train on: what a machine without a hub needs.

Speed and memory depend on shapes and lengths, not on what the weights have learned.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from portability.bench.workload import Workload, save_set, task_spec
from portability.core.seeds import stream_seed

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SPECIAL = ["<pad>", "</s>", "<unk>"]
SMALL_VOCABULARY = 4_000  # words, for hosts that a CPU can train: the real 32,128 would be most of their arithmetic
CHARGED = 200  # words of each polarity; the rest are neutral
# Words of SST-2's sentences (6,907 of them, mean 19.3): share of sentences that are at most so long.
LENGTHS = {0.0: 2, 0.05: 6, 0.25: 12, 0.5: 19, 0.75: 25, 0.95: 36, 1.0: 52}


@dataclass(frozen=True)
class Shape:
    """Sizes of a host; T5s have `layers` in the encoder and again in the decoder."""

    family: str
    hidden: int
    layers: int
    heads: int
    ffn: int
    vocabulary: int = SMALL_VOCABULARY
    kv_heads: int = 0  # llama alone


SHAPES = {
    "t5-64x2": Shape("t5", 64, 2, 2, 256),  # a smoke test
    "t5-128x4": Shape("t5", 128, 4, 4, 512),  # heads of 32, ffn of 4 d as in T5-small, relu as in T5 (not v1.1's gelu)
    "t5-256x4": Shape("t5", 256, 4, 4, 1024),  # heads of 64
    "t5-small": Shape("t5", 512, 6, 8, 2048, 32_128),  # published sizes of t5-small
    "t5-base": Shape("t5", 768, 12, 12, 3072, 32_128),  # and of t5-base
    "minilm": Shape("bert", 384, 6, 12, 1536, 30_522),  # all-MiniLM-L6-v2
    "bert-256x4": Shape("bert", 256, 4, 4, 1024),
    "llama-256x4": Shape("llama", 256, 4, 4, 1024, kv_heads=2),
}


def prepare(work: Workload) -> dict[str, int | float]:
    """Write the host and the token ids under the work folder, and tell their sizes.

    The training set has `train_batches` batches, because the window over which transformers sorts by length shrinks
    on small sets.
    """
    shape = SHAPES[work.shape]
    vocabulary = words(shape.vocabulary)
    model, tokenizer = build(shape), build_tokenizer(vocabulary)
    model.save_pretrained(work.path / "host", safe_serialization=True)
    tokenizer.save_pretrained(work.path / "host")
    template = "{text}" if shape.family == "bert" else task_spec().template
    longest = int(max(LENGTHS.values()))
    many, some = work.train_batches * work.batch_size, 8 * work.batch_size
    mean = round(float(lengths(many, 0).mean()))
    plans = {"train": lengths(many, 0), "test": lengths(work.test_examples, 1),
             "mean": np.full(some, mean), "longest": np.full(some, longest)}
    facts: dict[str, int | float] = {"host_parameters": sum(p.numel() for p in model.parameters())}
    for name, counts in plans.items():
        texts, labels = sentences(counts, vocabulary, name)
        rows = tokenizer([template.replace("{text}", text) for text in texts])["input_ids"]
        save_set(work.path, name, rows, labels)
        facts[f"{name}_examples"], facts[f"{name}_tokens"] = len(rows), float(np.mean([len(row) for row in rows]))
    return facts


def lengths(number: int, seed: int) -> np.ndarray:
    """Words of so many sentences, drawn from SST-2's distribution.

    Example:
        >>> drawn = lengths(10_000, 0)
        >>> int(drawn.min()), int(drawn.max()), round(float(drawn.mean()))
        (2, 52, 20)
    """
    draw = np.random.default_rng(stream_seed("bench", "lengths", seed)).random(number)
    return np.interp(draw, list(LENGTHS), list(LENGTHS.values())).round().astype(int)


def words(size: int) -> list[str]:
    """A vocabulary of this size: special tokens, the words of the template and the labels, then w0, w1 and so on."""
    task = task_spec()
    asked = task.template.replace("{text}", "").split()
    named = list(dict.fromkeys([*SPECIAL, *task.label_words, *asked]))
    return named + [f"w{i}" for i in range(size - len(named))]


def sentences(counts: np.ndarray, vocabulary: list[str], purpose: str) -> tuple[list[str], list[int]]:
    """Sentences of so many words each, and labels that follow from their one charged word."""
    draw = np.random.default_rng(stream_seed("bench", "sentences", purpose))
    first = vocabulary.index("w0")
    texts, labels = [], []
    for count in counts:
        label = int(draw.integers(2))
        picks = draw.integers(first + 2 * CHARGED, len(vocabulary), int(count))
        picks[draw.integers(int(count))] = first + label * CHARGED + draw.integers(CHARGED)
        texts.append(" ".join(vocabulary[pick] for pick in picks))
        labels.append(label)
    return texts, labels


def build_tokenizer(vocabulary: list[str]) -> "PreTrainedTokenizerBase":
    """One token a word."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def build(shape: Shape) -> "PreTrainedModel":
    """A host with random weights; dropout stays what the library sets (0.1 in T5 and BERT)."""
    import torch
    import transformers

    torch.manual_seed(0)
    common = {"vocab_size": shape.vocabulary, "pad_token_id": 0}
    if shape.family == "t5":
        return transformers.T5ForConditionalGeneration(transformers.T5Config(
            **common, d_model=shape.hidden, d_kv=shape.hidden // shape.heads, d_ff=shape.ffn, num_layers=shape.layers,
            num_heads=shape.heads, decoder_start_token_id=0, eos_token_id=1))
    sizes = {"hidden_size": shape.hidden, "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads,
             "intermediate_size": shape.ffn, "max_position_embeddings": 512}
    if shape.family == "bert":
        return transformers.BertModel(transformers.BertConfig(**common, **sizes))
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(
        **common, **sizes, num_key_value_heads=shape.kv_heads, bos_token_id=1, eos_token_id=1))
