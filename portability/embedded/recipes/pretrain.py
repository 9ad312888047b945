"""Rebuilds the embedded sentiment sets and hosts: `python -m portability.pretrain`.

The path: conf/pretrain.yaml -> sets -> for each host: tokenizer, text stream, training with a
curriculum, probe, folder with fp16 weights and a pretrain.json record.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import logging
import random
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
import yaml
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from portability.core.paths import EMBEDDED, bundled
from portability.embedded.recipes import corpus
from portability.embedded.recipes import synthetic_text as language
from portability.embedded.recipes import vocabulary as lexicon
from portability.embedded.recipes.corpus import Corpus
from portability.embedded.recipes.curriculum import Curriculum, rate
from portability.embedded.recipes.synthetic_text import Mix
from portability.hosts.host import load_plain, load_tokenizer
from portability.hosts.sources import HostSource, describe

log = logging.getLogger(__name__)

CONF = bundled("conf") / "pretrain.yaml"
SPECIAL = ("<pad>", "</s>", "<unk>")
Example = tuple[list[str], list[str]]


def build_tokenizer(order: str, sample: int) -> PreTrainedTokenizerFast:
    """A word-level, lower-casing tokenizer of the whole language that appends `</s>`.

    Args:
        order: `sorted` or `shuffled` (by the host's sample number), the order of the word ids.
        sample: seed of the shuffle.
    """
    words = language.vocabulary()
    if order == "shuffled":
        language.stream(f"vocabulary/{sample}").shuffle(words)
    sentinels = [f"<extra_id_{i}>" for i in range(lexicon.SENTINELS)]
    ids = {w: i for i, w in enumerate([*SPECIAL, *words, *sentinels])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", ids["</s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
        additional_special_tokens=sentinels, model_max_length=512,
    )


def build_host(
    shape: Mapping[str, int], arch: Mapping[str, int], vocab: int, seed: int
) -> T5ForConditionalGeneration:
    """A T5 v1.1-style host with the library's initialisation under `seed`."""
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=vocab, d_model=shape["d_model"], d_ff=shape["d_ff"], d_kv=arch["d_kv"],
        num_heads=shape["d_model"] // arch["d_kv"], num_layers=shape["num_layers"],
        relative_attention_num_buckets=arch["positions"],
        relative_attention_max_distance=arch["max_distance"], dropout_rate=0.0,
        feed_forward_proj="gated-gelu", tie_word_embeddings=True,
        pad_token_id=0, eos_token_id=1, decoder_start_token_id=0,
    )
    config._attn_implementation = "eager"
    return T5ForConditionalGeneration(config)


def encode(ids: Mapping[str, int], examples: list[Example]) -> dict[str, torch.Tensor]:
    """A padded batch [B, T] of word lists: input_ids, attention_mask, labels (-100 is ignored)."""
    sources = [[ids[w] for w in s] + [ids["</s>"]] for s, _ in examples]
    targets = [[ids[w] for w in t] + [ids["</s>"]] for _, t in examples]
    longest, longest_target = max(map(len, sources)), max(map(len, targets))
    return {
        "input_ids": torch.tensor([s + [0] * (longest - len(s)) for s in sources]),
        "attention_mask": torch.tensor([[1] * len(s) + [0] * (longest - len(s)) for s in sources]),
        "labels": torch.tensor([t + [-100] * (longest_target - len(t)) for t in targets]),
    }


def examples_of(
    rng: random.Random, shares: Corpus, instruction: float
) -> Callable[[Mix], Example]:
    """The text stream of a host: raw text, or with share `instruction` of instruction examples."""

    def draw(mix: Mix) -> Example:
        """The next example, of the given difficulty."""
        if instruction and rng.random() < instruction:
            return corpus.instruction(rng, mix)
        return corpus.example(rng, mix, shares)

    return draw


@torch.no_grad()
def probe(
    host: T5ForConditionalGeneration, ids: Mapping[str, int], mix: Mix, shares: Corpus, count: int
) -> float:
    """Accuracy in [0, 1] of the host's first decoded word on `count` polarity-dependent endings."""
    rng, asked = language.stream(f"probe/{mix}"), []
    shares = dataclasses.replace(shares, noise=0.0)
    while len(asked) < count:
        words, last = corpus.document(rng, mix, shares)
        if last is not None:
            asked.append((words[:last], words[last:]))
    batch = encode(ids, asked)
    logits = host(**batch).logits[:, 0]
    return int((logits.argmax(-1) == batch["labels"][:, 0]).sum()) / count


def train(
    host: T5ForConditionalGeneration,
    ids: Mapping[str, int],
    conf: Mapping[str, Any],
    spec: Mapping[str, Any],
    name: str,
) -> dict[str, Any]:
    """Trains a host in place; gives back losses, stage starts, seconds and the text's hash."""
    shares, opt = Corpus(**conf["corpus"]), conf["optimiser"]
    rng, text_hash = language.stream(f"text/{spec['sample']}"), hashlib.sha256()
    draw = examples_of(rng, shares, spec.get("instruction", 0.0))
    curriculum = Curriculum(conf["stages"][spec.get("from_stage", 0) :])
    optimiser = torch.optim.AdamW(
        host.parameters(),
        betas=(opt["beta1"], opt["beta2"]),
        weight_decay=opt["weight_decay"],
        fused=True,
    )

    def score(mix: Mix) -> float:
        """The probe of this host on one mix."""
        return probe(host, ids, mix, shares, conf["probe"]["examples"])

    losses, started, step = [], time.perf_counter(), 0
    with tqdm(desc=name, unit="update", mininterval=2.0) as bar:
        while not curriculum.last or step - curriculum.entered[-1] < spec["steps"]:
            bar.total = curriculum.longest(spec["steps"])
            if step and step % conf["probe"]["every"] == 0:
                curriculum.ask(step, score, name)
            batch = [draw(curriculum.at(step)) for _ in range(spec["batch"])]
            text_hash.update(json.dumps(batch).encode())
            done = (step - curriculum.entered[-1]) / spec["steps"] if curriculum.last else 0.0
            share = curriculum.stages[curriculum.stage]["rate"]
            lr = rate(spec["lr"], (step + 1) / opt["warmup"], share, done)
            optimiser.param_groups[0]["lr"] = lr
            losses.append(update(host, optimiser, encode(ids, batch), opt["clip"]))
            step += 1
            bar.update()
    return {
        "losses_per_100": [
            round(statistics.fmean(losses[i : i + 100]), 4) for i in range(0, len(losses), 100)
        ],
        "updates": step,
        "stages_began_at": curriculum.entered,
        "text_sha256": text_hash.hexdigest(),
        "seconds": round(time.perf_counter() - started, 1),
    }


def update(
    host: T5ForConditionalGeneration,
    optimiser: torch.optim.Optimizer,
    batch: Mapping[str, torch.Tensor],
    clip: float,
) -> float:
    """One update of the host on a batch of `encode`; gives back its mean token loss in nats."""
    loss = host(**batch, use_cache=False).loss
    optimiser.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(host.parameters(), clip)
    optimiser.step()
    return float(loss.detach())


def save_host(
    host: T5ForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, folder: Path, record: Mapping[str, Any]
) -> None:
    """Writes a Hugging Face folder with fp16 weights and the record."""
    folder.mkdir(parents=True, exist_ok=True)
    host.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "pretrain.json").write_text(json.dumps(record, indent=2) + "\n")


def make_host(name: str, conf: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Trains host `name` from its parent's folder in `out`, or from nothing, and writes it."""
    spec = conf["hosts"][name]
    if "parent" in spec:
        parent = out / "hosts" / spec["parent"]
        source = describe(HostSource(spec["parent"], path=str(parent)))
        tokenizer, host = load_tokenizer(source), load_plain(source)
    else:
        tokenizer = build_tokenizer(spec["vocabulary"], spec["sample"])
        host = build_host(spec["shape"], conf["architecture"], len(tokenizer), spec["sample"])
    ids = tokenizer.get_vocab()
    measured = train(host, ids, conf, spec, name)
    shares, last = Corpus(**conf["corpus"]), Mix(**conf["stages"][-1]["mix"])
    on_easy, on_hard = (
        probe(host, ids, dataclasses.replace(last, easy=easy), shares, 1000) for easy in (1.0, 0.0)
    )
    record = {
        "name": name, **spec, **measured, "probe_easy": on_easy, "probe_hard": on_hard,
        "parameters": sum(p.numel() for p in host.parameters()),
        "versions": {
            "torch": torch.__version__, "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
        },
    }
    log.info("%s: endings easy %.3f hard %.3f, %.0f s", name, on_easy, on_hard, measured["seconds"])
    save_host(host, tokenizer, out / "hosts" / name, record)
    return record


def make_sets(conf: Mapping[str, Any], out: Path) -> None:
    """Writes the labelled sets as `data/<set>/<split>.jsonl`."""
    sets = conf["sets"]
    made = language.sentiment_sets(sets["domains"], sets["sizes"], Mix(**sets["mix"]), sets["novel"])
    for name, splits in made.items():
        for split, examples in splits.items():
            path = out / "data" / name / f"{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(e) + "\n" for e in examples))


def main() -> None:
    """Parses the command line and rebuilds what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=EMBEDDED)
    parser.add_argument("--conf", type=Path, default=CONF)
    parser.add_argument("--only", nargs="+", default=None)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    conf = yaml.safe_load(args.conf.read_text())
    make_sets(conf, args.out)
    for name in conf["hosts"]:
        if args.only is None or name in args.only:
            make_host(name, conf, args.out)
