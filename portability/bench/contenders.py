"""Who trains: stacks of our engine, transformers' Trainer, a plain loop, the cells of a grid one by one."""

import logging
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import peft
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import AutoConfig, DataCollatorForSeq2Seq, Trainer, TrainingArguments

from portability import methods
from portability.core.errors import UserError
from portability.core.specs import RunSpec, TaskSpec
from portability.execution.execute import WorkerContext, execute
from portability.hosts.devices import places
from portability.hosts.host import Host, from_folder, load_tokenizer, narrow
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


class Paired(Ours):
    """Stacks of ours and a plain loop in turn, in one process and on one loaded host, from the same start and
    on the same batches.

    Args:
        members: of each stack.
    """

    def __init__(self, words: Sequence[str], members: Sequence[int], first: int = 0):
        super().__init__(words, 1, first)
        self.stacks = {f"ours K={size}": self.stack(range(first, first + size)) for size in members}
        self.loop, self.looped = plain_loop(self), 0

    def turn(self, name: str) -> tuple[float, float]:
        """A segment of one of them: seconds, and real tokens of all members."""
        if name in self.stacks:
            self.engine = self.stacks[name]
            return self.train()
        steps, lengths, began = range(self.looped, self.looped + SEGMENT), self.bench.training.lengths, now()
        for step in steps:
            self.loop(step)
        self.looped = steps.stop
        return now() - began, sum(lengths[self.schedule.examples(step, 0)].sum() for step in steps)


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
