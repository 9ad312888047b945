"""The rivals: transformers' own Trainer, as it comes and as well set as we can, in its own loop with its own data order."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    DataCollatorForSeq2Seq,
    DataCollatorWithPadding,
    PreTrainedTokenizerBase,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from portability.bench import libraries
from portability.bench.line import Line
from portability.bench.meter import Meter
from portability.bench.workload import Workload, evaluation_batch, load_set, method_spec
from portability.data.tokenization import Encoded
from portability.hosts.host import narrow

ANSWER_TOKENS = 2  # of `generate`: the label and </s>, what a trained module would stop after


class Quit(Exception):
    """The driver has seen enough."""


@dataclass
class Rival:
    """A network as Trainer takes it, its examples, and how they become batches."""

    network: nn.Module
    tokenizer: PreTrainedTokenizerBase
    training: Any
    test: Any
    collator: Any
    generates: bool


class Watch:
    """Counts tokens and keeps the last loss at the network's own door, without waiting for the device."""

    def __init__(self, network: nn.Module):
        self.clear()
        network.register_forward_pre_hook(self._before, with_kwargs=True)
        network.register_forward_hook(self._after)

    def clear(self) -> None:
        """Forget the batches seen so far."""
        self.real: list[Tensor] = []
        self.padded = 0
        self.loss: Tensor | None = None

    def _before(self, network: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        mask = kwargs["attention_mask"]
        self.real.append(mask.sum())
        self.padded += mask.numel()

    def _after(self, network: nn.Module, args: Any, output: Any) -> None:
        if (loss := output.get("loss")) is not None:
            self.loss = loss.detach()

    def facts(self) -> dict[str, Any]:
        """Tokens of all batches since `clear`, and the last one's loss."""
        real = int(torch.stack(self.real).sum()) if self.real else 0
        return {"tokens": real, "padded_tokens": self.padded, "loss": None if self.loss is None else float(self.loss)}


class Pauses(TrainerCallback):
    """Stops the real loop between updates until the driver asks for more."""

    def __init__(self, line: Line, work: Workload, watch: Watch, facts: dict[str, Any]):
        self.line, self.work, self.watch, self.facts = line, work, watch, facts
        self.meter = Meter(work.device)
        self.trainer: Trainer | None = None
        self.asked = self.left = 0

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Set-up is done."""
        self.line.ready(**self.facts)
        self._next()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """After each optimiser update."""
        self.left -= 1
        if self.left == 0:
            spent = self.meter.stop()
            self.line.answer(**spent, updates=self.asked, modules=self.work.modules, **self.watch.facts())
            self._next()

    def _next(self) -> None:
        while True:
            word, number = self.line.command()
            if word == "quit":
                raise Quit
            if word == "train":
                self.asked = self.left = number
                self.watch.clear()
                self.meter.start()
                return
            self._evaluate()

    def _evaluate(self) -> None:
        assert self.trainer is not None
        self.meter.start()
        found = self.trainer.predict(self.trainer.eval_dataset)
        spent = self.meter.stop()
        assert len(found.predictions) == len(self.trainer.eval_dataset), "an evaluation left examples out"
        self.line.answer(**spent, examples=len(found.predictions), modules=1)


def play(work: Workload, line: Line, tuned: bool) -> None:
    """Train one module (or a BatchSplit of several) by Trainer, segment by segment."""
    rival = _tuned(work) if tuned else _plain(work)
    watch = Watch(rival.network)
    facts = {"trainable": libraries.trainable(rival.network, work.modules), "threads": torch.get_num_threads(),
             "precision": work.precision if tuned else "fp32",
             "library": "peft" if work.method == "lora" and work.kind != "batchsplit" else "adapters"}
    pauses = Pauses(line, work, watch, facts)
    kind = Seq2SeqTrainer if rival.generates else Trainer
    trainer = kind(
        model=rival.network, args=_arguments(work, tuned, rival.generates), train_dataset=rival.training,
        eval_dataset=rival.test, data_collator=rival.collator, processing_class=rival.tokenizer, callbacks=[pauses],
        preprocess_logits_for_metrics=None if rival.generates else _best,
    )
    pauses.trainer = trainer
    try:
        trainer.train()
    except Quit:
        return


def _best(logits: Any, labels: Tensor) -> Tensor:
    """The answer of each example, (B,) or (B, T), so that no (N, V) table of logits is kept."""
    return (logits[0] if isinstance(logits, tuple) else logits).argmax(-1)


def _arguments(work: Workload, tuned: bool, generates: bool) -> TrainingArguments:
    """Defaults apart from learning rate and batch size, or every setting that makes Trainer faster."""
    common: dict[str, Any] = {
        "output_dir": str(work.path / "trainer"), "report_to": "none", "save_strategy": "no", "max_steps": work.updates,
        "use_cpu": work.device == "cpu", "learning_rate": method_spec(work.method).learning_rate,
        "per_device_train_batch_size": work.batch_size * work.modules, "per_device_eval_batch_size": evaluation_batch(),
    }
    if generates:
        return Seq2SeqTrainingArguments(**common, predict_with_generate=True, generation_max_length=1 + ANSWER_TOKENS)
    if not tuned:
        return TrainingArguments(**common)
    cuda = work.device == "cuda"
    return TrainingArguments(
        **common, group_by_length=True, bf16=work.precision == "bf16", disable_tqdm=True, logging_strategy="no",
        logging_nan_inf_filter=False, dataloader_drop_last=work.kind == "batchsplit", dataloader_pin_memory=cuda,
        dataloader_num_workers=2 if cuda else 0, dataloader_persistent_workers=cuda, remove_unused_columns=False,
    )


# ---- networks and examples


def _plain(work: Workload) -> Rival:
    """What the library's examples show: the model's own loss, whole answers, padding to the longest of a random batch."""
    import datasets

    model = libraries.load(work, dropout=True)
    network: nn.Module = model
    if work.method == "lora":
        network = libraries.with_peft(model, work)
    else:
        libraries.with_adapters(model, work)
    scorer = libraries.scorer_over(model, work)
    tokenizer = _tokenizer(work)
    family = model.config.model_type
    if family == "bert":
        network = libraries.Labelled(scorer)
    answers = {"t5": lambda label: [scorer.label_ids[label], tokenizer.eos_token_id], "bert": lambda label: label,
               "llama": lambda label: [scorer.label_ids[label]]}
    rows = {name: _rows(load_set(work.path, name), answers[family], family == "llama") for name in ("train", "test")}
    collator = DataCollatorWithPadding(tokenizer) if family == "bert" else DataCollatorForSeq2Seq(tokenizer)
    sets = {name: datasets.Dataset.from_list(value) for name, value in rows.items()}
    return Rival(network, tokenizer, sets["train"], sets["test"], collator, generates=family == "t5")


def _tuned(work: Workload) -> Rival:
    """No dropout, answers of one step, examples in memory."""
    model = libraries.load(work, dropout=False)
    if work.precision == "bf16":  # as ours: Trainer's autocast would cast frozen weights anew in every pass
        narrow(model)
    if work.kind == "batchsplit":
        libraries.with_adapters(model, work, [work.batch_size] * work.modules)
    elif work.method == "lora":
        libraries.with_peft(model, work)
    else:
        libraries.with_adapters(model, work)
    scorer = libraries.scorer_over(model, work)
    training, test = (_rows(load_set(work.path, name), lambda label: scorer.label_ids[label]) for name in ("train", "test"))
    tokenizer = _tokenizer(work)
    return Rival(libraries.Labelled(scorer, work.modules), tokenizer, training, test, DataCollatorWithPadding(tokenizer), False)


def _tokenizer(work: Workload) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(work.path / "host")


def _rows(encoded: Encoded, answer: Any, continues: bool = False) -> list[dict[str, Any]]:
    """One dictionary an example; where the answer `continues` the prompt, it is part of the text and alone has a loss."""
    rows = []
    for index in range(len(encoded)):
        ids, label = encoded.row(index).tolist(), answer(int(encoded.labels[index]))
        labels: int | Sequence[int] = label
        if continues:
            ids, labels = ids + label, [-100] * len(ids) + label
        rows.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels})
    return rows
