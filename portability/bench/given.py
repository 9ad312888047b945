"""What is trained on: a host of a named shape with random weights, or any other, and sentences as long as
SST-2's.

Speed and memory depend on shapes and lengths, not on what the weights have learned, so no hub is needed.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, PreTrainedModel

from portability.core.seeds import stream_seed
from portability.hosts.host import load_tokenizer, model_class
from portability.run import compose

BATCHES = 200  # of the data set; on smaller ones transformers sorts by length within a smaller window
SMALL = 4_000  # words, for hosts that a CPU can train: 32,128 would be most of their arithmetic
SHAPES = {  # family, width, layers (of each stack), heads, vocabulary; the feed-forward is four times as wide
    "t5-64x2": ("t5", 64, 2, 2, SMALL),  # a smoke test
    "llama-64x2": ("llama", 64, 2, 4, SMALL),  # another
    "t5-128x4": ("t5", 128, 4, 4, SMALL),  # heads of 32, relu as in T5 (v1.1 has gelu)
    "t5-256x4": ("t5", 256, 4, 4, SMALL),  # heads of 64
    "t5-small": ("t5", 512, 6, 8, 32_128),  # published sizes of t5-small
    "t5-base": ("t5", 768, 12, 12, 32_128),  # and of t5-base
    "minilm": ("bert", 384, 6, 12, 30_522),  # all-MiniLM-L6-v2
    "bert-256x4": ("bert", 256, 4, 4, SMALL),
    "llama-256x4": ("llama", 256, 4, 4, SMALL),  # two key-value heads
    "llama-1b": ("llama", 2048, 16, 32, 32_000),  # Llama 3.2 1B's layers, with the vocabulary of Llama 2
}
# Words of SST-2's sentences (6,907 of them, mean 19.3): share of sentences -> the most words that they have.
LENGTHS = {0.0: 2, 0.05: 6, 0.25: 12, 0.5: 19, 0.75: 25, 0.95: 36, 1.0: 52}


def prepare(folder: str, shape: str, method: str, batch_size: int, precision: str, device: str,
            host: str | None = None) -> list[str]:
    """Write the host and the data set, and give the words of `portability.run` for a study that trains a
    scratch module on them. The labels follow from nothing, which costs no more and no less.

    Args:
        host: takes the place of the one with random weights: a folder, or a name of conf/host.

    Raises:
        UserError: there is no such host.
    """
    made = host is None
    if host is None:
        tokenizer, host = load_tokenizer(compose([]).grid.pairs[0][0]), f"{folder}/host"
        for part in (random_host(*SHAPES[shape]), tokenizer):
            part.save_pretrained(host)
    named = [f"+host.bench.path={Path(host).resolve()}"] if Path(host).is_dir() else []
    host = "bench" if named else host
    pairs = [*named, f"grid.pairs=[[{host},{host}]]"]
    if not made:
        tokenizer = load_tokenizer(compose(pairs).grid.pairs[0][0])
    draw = np.random.default_rng(stream_seed("bench"))
    words = words_of(tokenizer.get_vocab())
    texts = [" ".join(draw.choice(words, count)) for count in lengths(draw, BATCHES * batch_size)]
    rows = [json.dumps({"text": text, "label": i % 2}) + "\n" for i, text in enumerate(texts)]
    for split, some in {"train": rows, "validation": rows[:2], "test": rows[:2]}.items():
        Path(folder, f"{split}.jsonl").write_text("".join(some))
    return [*pairs, f"+data.bench.path={folder}", "grid.data=bench", "grid.study_data=[bench]",
            "grid.overlap=keep", "grid.inits=[scratch]", "grid.seeds=[0]", "grid.budgets=[10000]",
            f"method={method}", f"precision={precision}", f"train.batch_size={batch_size}",
            "train.warmup=0", f"engine.device={device}"]


def words_of(vocabulary: Iterable[str]) -> list[str]:
    """Words of a tokenizer's vocabulary that are one token each: those that it marks as following a blank,
    where it marks them.

    Example:
        >>> words_of(["\u0120film", "ing", "\u0120a", "7"]), words_of(["film", "7"])
        (['a', 'film'], ['film'])
    """
    found = list(vocabulary)
    marked = [token[1:] for token in found if token[:1] in ("\u0120", "\u2581")]
    return sorted(word for word in marked or found if word.isascii() and word.isalpha())


def lengths(draw: np.random.Generator, number: int) -> np.ndarray:
    """Words of each sentence, (number,), drawn from SST-2's distribution.

    Example:
        >>> drawn = lengths(np.random.default_rng(0), 10_000)
        >>> int(drawn.min()), int(drawn.max()), round(float(drawn.mean()))
        (2, 52, 20)
    """
    return np.interp(draw.random(number), list(LENGTHS), list(LENGTHS.values())).round().astype(int)


def random_host(family: str, width: int, layers: int, heads: int, vocabulary: int) -> PreTrainedModel:
    """A host with random weights; dropout stays what the library sets (0.1 in T5 and BERT)."""
    if family == "t5":
        sizes = {"d_model": width, "d_kv": width // heads, "d_ff": 4 * width, "num_layers": layers,
                 "num_heads": heads, "decoder_start_token_id": 0}
    else:
        shared = max(2, heads // 4) if family == "llama" else heads
        sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads,
                 "intermediate_size": 4 * width, "num_key_value_heads": shared}
    torch.manual_seed(0)
    common = {"vocab_size": vocabulary, "pad_token_id": 0, "eos_token_id": 1}
    return model_class(family).from_config(AutoConfig.for_model(family, **common, **sizes))
