"""Extraction a second, slow way: whole models, one example at a time, every block tried, numpy's
decomposition."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import transformers
from torch import Tensor
from torch.func import functional_call

from portability.core.specs import HostSpec
from portability.hosts.host import Host
from portability.hosts.sources import HostSource, describe
from portability.tasks.base import Answered as Seed
from portability.tasks.classification import Scorer
from support.tiny import TASK, model, tokenizer

BERT = {"query": "attention.self.query", "key": "attention.self.key", "value": "attention.self.value",
        "attention_out": "attention.output.dense", "ffn_up": "intermediate.dense", "ffn_down": "output.dense"}
T5_SELF = {"query": "layer.0.SelfAttention.q", "key": "layer.0.SelfAttention.k",
           "value": "layer.0.SelfAttention.v", "attention_out": "layer.0.SelfAttention.o"}
T5_CROSS = {f"cross_{site}": name.replace("layer.0.Self", "layer.1.EncDec") for site, name in T5_SELF.items()}
T5_FFN = {"ffn_up": "wi_1", "ffn_gate": "wi_0", "ffn_down": "wo"}
# family, stack -> where layers stand, and each site in them
NAMES: dict[tuple[str, str], tuple[str, dict[str, str]]] = {
    ("llama", "decoder"): ("model.layers.{}.", {
        "query": "self_attn.q_proj", "key": "self_attn.k_proj", "value": "self_attn.v_proj",
        "attention_out": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj"}),
    ("gpt2", "decoder"): ("transformer.h.{}.", {
        "query": "attn.c_attn", "key": "attn.c_attn", "value": "attn.c_attn", "attention_out": "attn.c_proj",
        "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"}),
    ("bert", "encoder"): ("encoder.layer.{}.", BERT),
    ("roberta", "encoder"): ("encoder.layer.{}.", BERT),
    ("t5", "encoder"): ("encoder.block.{}.", T5_SELF | {s: f"layer.1.DenseReluDense.{n}"
                                                        for s, n in T5_FFN.items()}),
    ("t5", "decoder"): ("decoder.block.{}.", T5_SELF | T5_CROSS | {
        s: f"layer.2.DenseReluDense.{n}" for s, n in T5_FFN.items()}),
}
WORD = {"llama": "model.embed_tokens.weight", "gpt2": "transformer.wte.weight", "t5": "shared.weight",
        "bert": "embeddings.word_embeddings.weight", "roberta": "embeddings.word_embeddings.weight"}


class Slow(NamedTuple):
    """Parameters of a host by transformers' names, and their scores."""

    spec: HostSpec
    values: dict[str, Tensor]
    scores: dict[str, Tensor]

    def total(self, stack: str, layer: int) -> float:
        prefix = NAMES[self.spec.shape.family, stack][0].format(layer)
        return sum(float(part.double().sum()) for name, part in self.scores.items()
                   if name.startswith(prefix))

    def matrix(self, kind: str, stack: str, layer: int, site: str) -> np.ndarray:
        """(out, in), of "values" or "scores"."""
        prefix, sites = NAMES[self.spec.shape.family, stack]
        weight = getattr(self, kind)[f"{prefix.format(layer)}{sites[site]}.weight"].double().numpy()
        if self.spec.shape.family != "gpt2":
            return weight
        weight, width = weight.T, self.spec.shape.hidden
        third = {"query": 0, "key": 1, "value": 2}.get(site)
        return weight if third is None else weight[third * width : (third + 1) * width]


def plain_model(spec: HostSpec) -> transformers.PreTrainedModel:
    """The host as transformers loads it."""
    kinds = {"t5": transformers.AutoModelForSeq2SeqLM, "llama": transformers.AutoModelForCausalLM,
             "gpt2": transformers.AutoModelForCausalLM}
    loader = kinds.get(spec.shape.family, transformers.AutoModel)
    return loader.from_pretrained(spec.source, attn_implementation="eager", dtype=torch.float32).eval()


def loss(host: transformers.PreTrainedModel, spec: HostSpec, seed: Seed,
         head: dict[str, Tensor] | None) -> Tensor:
    """One example's loss, by the model's own forward pass; for encoders by the project's Scorer."""
    ids = torch.tensor([list(seed.ids)])
    if spec.shape.family == "t5":
        return host(input_ids=ids, labels=torch.tensor([list(seed.target)])).loss
    if head is not None:
        scorer = Scorer(Host(spec, host, tokenizer()), TASK)
        logits = functional_call(scorer, head, ("label_logits", ids, torch.ones_like(ids)), strict=False)
        return torch.nn.functional.cross_entropy(logits, torch.tensor([seed.label]))
    labels = ids.clone()
    labels[:, : seed.start] = -100
    return host(input_ids=ids, labels=labels).loss


def slow(spec: HostSpec, seeds: list[Seed], head: dict[str, Tensor] | None) -> Slow:
    """|theta dL/dtheta| summed over the seeds, by one backward pass through the whole model for each."""
    host = plain_model(spec)
    values = {name: p.detach().clone() for name, p in host.named_parameters()}
    scores = {name: torch.zeros_like(value) for name, value in values.items()}
    for seed in seeds:
        host.zero_grad()
        loss(host, spec, seed, head).backward()
        for name, parameter in host.named_parameters():
            if parameter.grad is not None:
                scores[name] += (parameter.detach() * parameter.grad).abs()
    return Slow(spec, values, scores)


def best_block(scores: np.ndarray, m: int, n: int) -> tuple[int, int]:
    """Every offset tried."""
    best = {(row, column): scores[row : row + m, column : column + n].sum()
            for row in range(scores.shape[0] - m + 1) for column in range(scores.shape[1] - n + 1)}
    return max(best, key=best.__getitem__)


def truncated(matrix: np.ndarray, rank: int) -> np.ndarray:
    """The nearest matrix of this rank."""
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    return (left[:, :rank] * values[:rank]) @ right[:rank]


def seeds_of(family: str) -> list[Seed]:
    """Five examples of unequal lengths in tiny.tokenizer()'s ids, and none of them with the padding id."""
    draw = torch.Generator().manual_seed(7)
    rows = [torch.randint(3, 31, (length,), generator=draw).tolist() for length in (6, 3, 9, 5, 9)]
    if family == "t5":
        return [Seed(row, target=(row[0], row[1], 1)[place % 2 :]) for place, row in enumerate(rows)]
    if family in ("bert", "roberta"):
        return [Seed(row, label=place % 2) for place, row in enumerate(rows)]
    return [Seed(row, start=1 + place % (len(row) - 1)) for place, row in enumerate(rows)]


def head_of(family: str, hidden: int) -> dict[str, Tensor] | None:
    """A classification head for encoders."""
    if family not in ("bert", "roberta"):
        return None
    draw = torch.Generator().manual_seed(3)
    return {"head.weight": torch.randn(2, hidden, generator=draw),
            "head.bias": torch.randn(2, generator=draw)}


def changed_host(folder: Path, family: str, hidden: int = 32, heads: int = 4, words: list[str] | None = None,
                 **config: object) -> HostSpec:
    """A tiny host of two layers with other settings than tiny.model gives, or with other words in its
    tokenizer."""
    torch.manual_seed(1)
    made = model(family, hidden, 2, heads)
    settings = made.config.to_dict()
    if "feed_forward_proj" in config:  # T5's config would keep what followed from the old one
        settings = {key: value for key, value in settings.items()
                    if key not in ("is_gated_act", "dense_act_fn")}
    other = type(made)(type(made.config).from_dict({**settings, **config}))
    other.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    if words is not None:
        path = folder / "tokenizer.json"
        saved = json.loads(path.read_text())
        saved["model"]["vocab"] = {word: place for place, word in enumerate(words)}
        saved["added_tokens"] = []
        path.write_text(json.dumps(saved))
    return describe(HostSource(folder.name, path=str(folder)))
