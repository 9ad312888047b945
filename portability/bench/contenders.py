"""Who trains: stacks of our engine, transformers' Trainer, a plain loop, the cells of a grid one by one; and
on what: a host of a named shape with random weights, and sentences as long as SST-2's.

Speed and memory depend on shapes and lengths, not on what the weights have learned, so no hub is needed.
"""

import json
import logging
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import AutoConfig, DataCollatorForSeq2Seq, PreTrainedModel, Trainer, TrainingArguments

from portability import methods
from portability.core.errors import UserError
from portability.core.seeds import stream_seed
from portability.core.specs import RunSpec, TaskSpec
from portability.execution.execute import WorkerContext, execute
from portability.hosts.devices import places
from portability.hosts.host import Host, from_folder, load_tokenizer, model_class, narrow
from portability.hosts.sources import folder_of
from portability.planning.plan import Plan, plan
from portability.run import compose
from portability.store import Store
from portability.tasks.classification import HEAD, Classification, Scorer
from portability.training.run_output import InitialState
from portability.training.stack import Stack, StackContext
from portability.training.trainer import Trainer as Engine

logging.getLogger("adapters").setLevel(logging.ERROR)  # as in a worker
WINDOW = 50  # batches over which Trainer sorts by length (or a quarter of all), and so those of its segment
SEGMENT = 20  # updates over which ours is timed, whose batches come in no order of length
CAPTURED = 200  # updates after which nearly all lengths of batches were met twice, and are CUDA graphs
LORA_TARGETS = {  # what conf/method/lora.yaml adapts: q, k, v of every attention, and the feed-forward
    "t5": r".*\.(q|k|v|wi|wo)",
    "bert": r".*\.(query|key|value|intermediate\.dense|layer\.\d+\.output\.dense)",
    "llama": r".*\.(q_proj|k_proj|v_proj|up_proj|down_proj)"}  # adapters 1.3.0 leaves the gate alone
BATCHES = 200  # of the data set; on smaller ones transformers sorts by length within a smaller window
SMALL = 4_000  # words, for hosts that a CPU can train: 32,128 would be most of their arithmetic
SHAPES = {  # family, width, layers (of each stack), heads, vocabulary; the feed-forward is four times as wide
    "t5-64x2": ("t5", 64, 2, 2, SMALL),  # a smoke test
    "t5-128x4": ("t5", 128, 4, 4, SMALL),  # heads of 32, relu as in T5 (v1.1 has gelu)
    "t5-256x4": ("t5", 256, 4, 4, SMALL),  # heads of 64
    "t5-small": ("t5", 512, 6, 8, 32_128),  # published sizes of t5-small
    "t5-base": ("t5", 768, 12, 12, 32_128),  # and of t5-base
    "minilm": ("bert", 384, 6, 12, 30_522),  # all-MiniLM-L6-v2
    "bert-256x4": ("bert", 256, 4, 4, SMALL),
    "llama-256x4": ("llama", 256, 4, 4, SMALL),  # two key-value heads
}
# Words of SST-2's sentences (6,907 of them, mean 19.3): share of sentences -> the most words that they have.
LENGTHS = {0.0: 2, 0.05: 6, 0.25: 12, 0.5: 19, 0.75: 25, 0.95: 36, 1.0: 52}



def now() -> float:
    """Seconds on the wall, once the device has done all it was given."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def study_of(words: Sequence[str]) -> tuple[Plan, RunSpec, TaskSpec, WorkerContext]:
    """A study's plan, its first run that trains, the task, and where to carry it out, without a store."""
    study = compose(words)
    planned, place = plan(study.grid), places(study.engine.device, 1)[0]
    run = next(run for run in planned.runs.values() if run.method is not None)
    return planned, run, study.grid.task, WorkerContext(Store(""), study.data, place=place)


class Ours:
    """A stack of our engine: `members` modules with seeds from `first` on; each trains `size` numbers."""

    def __init__(self, words: Sequence[str], members: int, first: int = 0):
        _, self.run, task, context = study_of(words)
        host, self.device = context.host(self.run.host, self.run.precision), context.device
        attached, test = methods.attach(host, self.run.trained_method), context.test(host, self.run)
        self.scorer = Scorer(host, task)
        self.bench = StackContext(attached, self.scorer, context.training(host, self.run), test)
        self.schedule = self.bench.schedule(self.run)
        self.engine = self.stack(range(first, first + members))
        self.size = self.engine.bank.theta.shape[1]

    def stack(self, seeds: Sequence[int]) -> Engine:
        """Fresh members, before their first update."""
        fresh, head = self.bench.attached.init_parameters, self.bench.scorer.fresh_head
        starts = [InitialState(fresh(seed), head(seed), None, None) for seed in seeds]
        return Stack([replace(self.run, seed=seed) for seed in seeds], starts, self.bench, {}).trainer

    def update(self, engine: Engine, step: int) -> None:
        """One update of all members."""
        engine.update(step, self.schedule, self.bench.training)

    def train(self) -> tuple[float, float]:
        """A segment, the first one a warm-up: seconds, and real tokens of all members."""
        done, tokens, began = self.engine.done, self.engine.tokens[0].sum(), now()
        for step in range(done, done + (CAPTURED if self.device.type == "cuda" and not done else SEGMENT)):
            self.update(self.engine, step)
        return now() - began, self.engine.tokens[0].sum() - tokens


def plain_loop(ours: Ours, factor: float = 1.0) -> Callable[[int], Tensor]:
    """The slower, second way to train the member with seed 0: torch's AdamW and gradient clipping around the
    library's own module. Gives a function that makes a step's update and returns the loss before it, in nats.

    Args:
        factor: of the module's learning rate.
    """
    spec, bank, schedule, training = ours.run.train, ours.stack([0]).bank, ours.schedule, ours.bench.training
    scorer = ours.scorer.to(ours.device)  # adapters leaves most modules in ordinary memory
    known, parameters = dict(scorer.named_parameters()), bank.member(bank.theta, 0)
    for name, value in parameters.items():
        known[name].requires_grad_(True).data.copy_(value)
    rates = {True: spec.head_learning_rate, False: ours.run.trained_method.learning_rate * factor}
    groups = [{"params": known[name], "lr": rates[name in HEAD]} for name in parameters]
    optimizer = torch.optim.AdamW(groups, betas=spec.betas, eps=spec.eps, weight_decay=spec.weight_decay)

    def update(step: int) -> Tensor:
        picks, bucket = schedule.examples(step, 0), schedule.buckets[schedule.bucket(step)[0]]
        rows = ours.bench.scorer.rows(training, picks, len(picks), bucket)
        *batch, target = (part.to(ours.device) for part in rows)
        loss = nn.functional.cross_entropy(scorer("label_logits", *batch), target)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([known[name] for name in parameters], spec.clip)
        optimizer.step()
        return loss.detach()

    return update


class Labelled(nn.Module):
    """A scorer as transformers' Trainer calls a model."""

    def __init__(self, scorer: Scorer):
        super().__init__()
        self.scorer = scorer

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits (B, V) or (B, 2)."""
        return self.scorer("label_logits", input_ids, attention_mask)


class Library:
    """transformers' Trainer with one module by peft (LoRA) or adapters; it trains `size` numbers.

    As it comes: dropout, T5's own loss on label and end token, batches in random order. `tuned`: no dropout,
    the label alone, batches of like length, rows in memory, and bf16 if the study asks for it.
    """

    def __init__(self, words: Sequence[str], tuned: bool):
        _, run, task, context = study_of(words)
        family, cuda = run.host.shape.family, context.device.type == "cuda"
        settings = vars(AutoConfig.from_pretrained(folder_of(run.host)))
        dropout = {name: 0.0 for name in settings if tuned and "dropout" in name}
        model = from_folder(run.host.name, family, folder_of(run.host), **dropout)
        if tuned and run.precision == "bf16":  # as ours: autocast would cast the frozen weights in every pass
            narrow(model)
        host = Host(run.host, model, load_tokenizer(run.host))
        network, scorer = attach(host, run), Scorer(host, task)
        whole = family == "t5" and not tuned  # the answer with its end
        if scorer.has_head:
            scorer.head.requires_grad_(True)
        rows, end = [], host.tokenizer.eos_token_id
        encoded = Classification(task).training(host, context.data, run.data.name)
        for ids, label in zip(map(encoded.row, range(len(encoded))), encoded.labels, strict=True):
            answer = [scorer.label_ids[label], end] if whole else scorer.label_ids[label]
            rows.append({"input_ids": ids.tolist(), "attention_mask": [1] * len(ids), "labels": answer})
        # whole windows, on a GPU several, so that the start of the loading processes weighs little
        updates = min(WINDOW, len(rows) // (4 * run.train.batch_size)) * (4 if cuda else 1)
        self.tokens = updates * run.train.batch_size * encoded.lengths.mean()
        faster = {"group_by_length": True, "bf16": run.precision == "bf16", "logging_strategy": "no",
                  "logging_nan_inf_filter": False, "dataloader_num_workers": 2 if cuda else 0}
        arguments = TrainingArguments(
            str(folder_of(run.host).parent), report_to="none", save_strategy="no", disable_tqdm=True,
            use_cpu=not cuda, max_steps=updates, learning_rate=run.trained_method.learning_rate,
            per_device_train_batch_size=run.train.batch_size, remove_unused_columns=False,
            **(faster if tuned else {}))
        own = (network, DataCollatorForSeq2Seq(host.tokenizer), None)
        network, collator, loss = own if whole else (Labelled(scorer), None, label_loss)
        self.trainer = Trainer(network, arguments, collator, rows if tuned else Dataset.from_list(rows),
                               processing_class=host.tokenizer, compute_loss_func=loss)
        self.size = sum(p.numel() for p in self.trainer.model.parameters() if p.requires_grad)

    def train(self) -> tuple[float, float]:
        """Whole windows of updates: seconds, and real tokens by the data set's mean."""
        return self.trainer.train().metrics["train_runtime"], self.tokens


def label_loss(logits: Tensor, labels: Tensor, **_: Any) -> Tensor:
    """Mean loss (nats) of logits (B, V) or (B, 2), of which labels (B,) are the classes."""
    return nn.functional.cross_entropy(logits, labels)


def attach(host: Host, run: RunSpec) -> nn.Module:
    """Put a module into the host's model; the network that the library makes of it."""
    if (method := run.trained_method).name == "lora":
        settings = method.settings
        return peft.get_peft_model(host.model, peft.LoraConfig(
            r=settings["r"], lora_alpha=settings["alpha"], target_modules=LORA_TARGETS[host.family]))
    import adapters

    adapters.init(host.model)
    host.model.requires_grad_(False).accepts_loss_kwargs = False  # **kwargs do not take num_items_in_batch
    methods.attach(host, method)
    return host.model


def cells_alone(words: Sequence[str]) -> float:
    """Seconds to train every cell of a grid for itself, its origin too, with the engine in one process whose
    imports are done. Cells of the first seed stand for those of all seeds."""
    planned, _, _, context = study_of(words)
    cells, began = [cell for cell in planned.cells if cell.budget > 0], now()
    first = [cell for cell in cells if cell.seed == cells[0].seed]
    for cell in first:
        run = planned.runs[cell.run_id].with_updates(cell.mark)
        with tempfile.TemporaryDirectory() as folder:
            context.store = Store(folder)
            for one in (planned.runs[run.origin], run) if run.origin else (run,):
                execute([one], {one.run_id: [one.train.updates]}, context)
            if failed := context.store.failures():
                raise UserError(f"a cell of the grid failed: {next(iter(failed.values()))['error']}")
    return (now() - began) * len(cells) / len(first)


# ---- what they are given


def prepare(folder: str, shape: str, method: str, batch_size: int, precision: str, device: str) -> list[str]:
    """Write the host and the data set, and give the words of `portability.run` for a study that trains a
    scratch module on them. The labels follow from nothing, which costs no more and no less."""
    tokenizer = load_tokenizer(compose([]).grid.pairs[0][0])
    for part in (random_host(*SHAPES[shape]), tokenizer):
        part.save_pretrained(f"{folder}/host")
    draw = np.random.default_rng(stream_seed("bench"))
    words = sorted(filter(str.isalpha, tokenizer.get_vocab()))
    texts = [" ".join(draw.choice(words, count)) for count in lengths(draw, BATCHES * batch_size)]
    rows = [json.dumps({"text": text, "label": i % 2}) + "\n" for i, text in enumerate(texts)]
    for split, some in {"train": rows, "validation": rows[:2], "test": rows[:2]}.items():
        Path(folder, f"{split}.jsonl").write_text("".join(some))
    return [f"+host.bench.path={folder}/host", f"+data.bench.path={folder}", "grid.pairs=[[bench,bench]]",
            "grid.data=bench", "grid.study_data=[bench]", "grid.overlap=keep", "grid.inits=[scratch]",
            "grid.seeds=[0]", "grid.budgets=[10000]", f"method={method}", f"precision={precision}",
            f"train.batch_size={batch_size}", "train.warmup=0", f"engine.device={device}"]


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
        sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads,
                 "intermediate_size": 4 * width, "num_key_value_heads": 2 if family == "llama" else heads}
    torch.manual_seed(0)
    common = {"vocab_size": vocabulary, "pad_token_id": 0, "eos_token_id": 1}
    return model_class(family).from_config(AutoConfig.for_model(family, **common, **sizes))
