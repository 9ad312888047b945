"""Repositories of the hub in miniature: T5s and data sets in the layout of the real ones, with random weights
and invented sentences."""

import io
import json
from pathlib import Path

import sentencepiece
import torch
from datasets import ClassLabel, Dataset, Features, Value
from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration

from support.hub import Hub
from support.tiny import sentences

PINS = {  # as conf/host and conf/data have them
    "google/t5-v1_1-base": "b5fc947a416ea3cb079532cb3c2bbadeb7f800fc",
    "google/t5-v1_1-large": "a98b0fcd0b8137ded40cdf0c0cf0ee884e7c9726",
    "google/flan-t5-base": "7bcac572ce56db69c1ea7c8af255c5d7c9672fc2",
    "google/flan-t5-large": "0613663d0d48ea86ba8cb3d7a44f0f65dc596a2a",
    "nyu-mll/glue": "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c",
    "cornell-movie-review-data/rotten_tomatoes": "aa13bc287fa6fcab6daf52f0dfb9994269ffea28",
}
PIECES, EXTRA, VOCABULARY = 80, 100, 192  # of spiece.model, T5's own behind them, and rows of the embedding
SPECIAL = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>",
           "additional_special_tokens": [f"<extra_id_{number}>" for number in range(EXTRA)]}


def study_hub(root: Path) -> Hub:
    """The four hosts and two data sets of `+sweep=full host_set=t5`."""
    for number, size in enumerate(("base", "large")):
        for kind in ("t5-v1_1", "flan-t5"):
            write_t5(root / f"models/google/{kind}-{size}", 32 + 16 * number, 1 + number,
                     pickled=kind == "t5-v1_1")
    rows = sentences(400, 5)
    write_data(root / "datasets/nyu-mll/glue", rows[:200], "sst2/{}-00000-of-00001.parquet", "sst2",
               "sentence", ["negative", "positive"])
    write_data(root / "datasets/cornell-movie-review-data/rotten_tomatoes", rows[200:], "{}.parquet",
               "default", "text", ["neg", "pos"])
    return Hub(root, PINS)


def model(hidden: int = 32, layers: int = 1, vocabulary: int = VOCABULARY) -> T5ForConditionalGeneration:
    """A T5 v1.1: gated, its head apart from its embedding."""
    with torch.random.fork_rng():
        torch.manual_seed(hidden)
        return T5ForConditionalGeneration(T5Config(
            vocab_size=vocabulary, d_model=hidden, d_kv=8, d_ff=2 * hidden, num_layers=layers,
            num_decoder_layers=layers, num_heads=4, feed_forward_proj="gated-gelu", tie_word_embeddings=False,
            decoder_start_token_id=0))


def write_t5(folder: Path, hidden: int, layers: int, pickled: bool, vocabulary: int = VOCABULARY) -> None:
    """A repository of T5 v1.1 (pickled, a tokenizer of sentencepiece alone) or of Flan-T5 (safetensors
    beside the pickle, tokenizer.json); both with the files of other frameworks, which are never read."""
    folder.mkdir(parents=True)
    host = model(hidden, layers, vocabulary)
    for name in ("tf_model.h5", "flax_model.msgpack", *([] if pickled else ["pytorch_model.bin"])):
        (folder / name).write_bytes(b"not to be read")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    (folder / "spiece.model").write_bytes(pieces())
    (folder / "special_tokens_map.json").write_text(json.dumps(SPECIAL))
    (folder / "tokenizer_config.json").write_text(json.dumps(SPECIAL | {"extra_ids": EXTRA}))
    if pickled:
        host.config.save_pretrained(folder)
        torch.save(host.state_dict(), folder / "pytorch_model.bin")
    else:
        host.save_pretrained(folder)
        AutoTokenizer.from_pretrained(folder).save_pretrained(folder)


def pieces() -> bytes:
    """A sentencepiece model of the invented sentences, with T5's numbers of special tokens."""
    said = "question : negative or positive ? {} answer :"
    text, made = [said.format(row["text"]) for row in sentences(200, 5)], io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text), model_writer=made, vocab_size=PIECES, model_type="unigram", pad_id=0,
        eos_id=1, unk_id=2, bos_id=-1, pad_piece="<pad>", hard_vocab_limit=False, minloglevel=2,
        user_defined_symbols=["▁negative", "▁positive"])
    return made.getvalue()


def write_data(folder: Path, rows: list[dict], names: str, config: str, column: str,
               labels: list[str]) -> None:
    """A repository of Parquet files, a test split without labels for GLUE, and the README that names them."""
    parts = {"train": rows[:120], "validation": rows[120:160], "test": rows[160:]}
    listed = []
    for split, part in parts.items():
        path = folder / names.format(split)
        path.parent.mkdir(parents=True, exist_ok=True)
        hidden = config == "sst2" and split == "test"
        Dataset.from_dict(
            {column: [row["text"] for row in part],
             "label": [-1 if hidden else row["label"] for row in part]},
            features=Features({column: Value("string"), "label": ClassLabel(names=labels)}),
        ).to_parquet(path)
        listed.append(f"  - split: {split}\n    path: {names.format(split)}\n")
    head = f"configs:\n- config_name: {config}\n  data_files:\n"
    (folder / "README.md").write_text(f"---\n{head}{''.join(listed)}---\n")
