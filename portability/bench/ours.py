"""Our engine as a contender, and the stand on which equality, floor and memory examine it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from portability.bench import libraries
from portability.bench.line import Line
from portability.bench.meter import Meter
from portability.bench.workload import Workload, evaluation_batch, load_set, method_spec, task_spec, train_spec
from portability.data.sampling import Schedule, pad
from portability.data.tokenization import Encoded
from portability.hosts.host import load_host
from portability.methods import attach
from portability.tasks.classification import Scorer
from portability.training import trainer as engine

Batch = tuple[Tensor, Tensor, Tensor]


class Stand:
    """A method on the benchmark's host, with the training set `name` and its schedule."""

    def __init__(self, work: Workload, name: str = "train"):
        self.work = work
        self.host = load_host(libraries.host_spec(work), work.device, work.precision)
        self.method = method_spec(work.method)
        self.attached = attach(self.host, self.method)
        self.scorer = Scorer(self.host, task_spec())
        self.spec = train_spec(work)
        self.use(name)

    def use(self, name: str) -> None:
        """Change the training set."""
        self.encoded: Encoded = load_set(self.work.path, name)
        self.schedule = Schedule(self.encoded, self.spec.batch_size, self.spec.bucket_batches, name)

    def start(self, seed: int) -> dict[str, Tensor]:
        """A fresh module and head by the scorer's names, as execute gives them to the engine."""
        parameters = self.attached.to_parameters(self.attached.init_parameters(seed))
        return {f"model.{name}": value for name, value in parameters.items()} | self.scorer.fresh_head(seed)

    def trainer(self, seeds: Sequence[int], rate: float | None = None) -> engine.Trainer:
        """A stack of fresh members."""
        rate = self.method.learning_rate if rate is None else rate
        return engine.Trainer(self.scorer, [engine.Member(self.start(seed), seed, rate) for seed in seeds], self.spec)

    def update(self, trainer: engine.Trainer, step: int) -> None:
        """One update of all members."""
        trainer.update(step, self.schedule, self.encoded)

    def batch(self, step: int, seed: int) -> Batch:
        """The batch that a member with this seed sees: ids and mask (B, T), target classes (B,)."""
        picks = self.schedule.examples(step, seed)
        ids, mask = pad(self.encoded, picks, self.schedule.length(step))
        target = torch.tensor([self.scorer.label_ids[self.encoded.labels[i]] for i in picks])
        return ids.to(self.work.device), mask.to(self.work.device), target.to(self.work.device)


def play(work: Workload, line: Line) -> None:
    """Train a stack of modules, segment by segment."""
    stand = Stand(work)
    test = load_set(work.path, "test")
    seeds = range(work.first_seed, work.first_seed + work.modules)
    trainer, meter, done = stand.trainer(list(seeds)), Meter(work.device), 0
    line.ready(trainable=trainer.bank.theta.shape[1], threads=torch.get_num_threads(), library="portability",
               precision=work.precision)
    while (command := line.command())[0] != "quit":
        word, number = command
        before = _tokens(trainer)
        meter.start()
        if word == "eval":
            engine.predict(stand.scorer, trainer.bank.views(trainer.averages), test, evaluation_batch())
            line.answer(**meter.stop(), examples=len(test), modules=work.modules)
            continue
        for step in range(done, done + number):
            stand.update(trainer, step)
        spent, after = meter.stop(), _tokens(trainer)
        done += number
        losses = [outcome.losses[-1][1] for outcome in trainer.outcomes if outcome.losses]
        line.answer(**spent, updates=number, modules=work.modules, tokens=after[0] - before[0],
                    padded_tokens=after[1] - before[1], loss=sum(losses) / len(losses) if losses else None)


def _tokens(trainer: engine.Trainer) -> tuple[int, int]:
    """Real and padded tokens that all members have seen."""
    real, padded = trainer.tokens.sum(1).tolist()
    return real, padded
