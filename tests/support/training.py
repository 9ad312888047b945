"""A method, a host and a training set to train stacks on, and the same training as a plain loop."""

import numpy as np
import torch
from torch.nn import functional as F

from portability.core.specs import TrainSpec
from portability.data.sampling import BatchSampler, pad
from portability.data.tokenization import Encoded
from portability.tasks.classification import Scorer
from portability.training import trainer as engine
from portability.training.trainer import Member, Trainer
from support.tiny import TASK, sentences

SPEC = TrainSpec(updates=12, batch_size=8, warmup=4, weight_decay=0.01, betas=(0.9, 0.999), eps=1e-8,
                 clip=1.0, tail=0.25, bucket_batches=3, head_learning_rate=1e-3)


def encoded(tokenizer, rows, template="{text} answer :"):
    texts = [tokenizer(template.format(text=row["text"]))["input_ids"] for row in rows]
    offsets = np.cumsum([0, *map(len, texts)])
    return Encoded(np.concatenate(texts).astype(np.int32), offsets, np.array([row["label"] for row in rows]),
                   0)


class Bench:
    """A method on a host, and a training set."""

    def __init__(self, attached):
        self.attached = attached
        self.host = attached.host
        self.scorer = Scorer(self.host, TASK)
        self.data = encoded(self.host.tokenizer, sentences(160, 3))
        self.schedule = BatchSampler(self.data, SPEC.batch_size, SPEC.bucket_batches, "data")

    def start(self, seed):
        state = self.attached.init_parameters(seed)
        head = self.scorer.fresh_head(seed)
        return {f"model.{name}": value for name, value in self.attached.to_parameters(state).items()} | head

    def train(self, seeds, spec=SPEC, rates=None, starts=None):
        starts = starts or [self.start(seed) for seed in seeds]
        rates = rates or [self.attached.spec.learning_rate] * len(seeds)
        trainer = Trainer(self.scorer, [Member(*m) for m in zip(starts, seeds, rates, strict=True)], spec)
        engine.train(trainer, self.schedule, self.data, (12,), lambda *_: None)
        return trainer

    def rows(self, trainer):
        return torch.cat([trainer.bank.theta.detach(), trainer.averages], 1)


def plain_loop(table, seed, spec):
    model, scorer = table.host.model, table.scorer
    values = dict(scorer.named_parameters())
    start = table.start(seed)
    with torch.no_grad():
        for name, value in start.items():
            values = dict(scorer.named_parameters())
            values[name].copy_(value)
    module = [values[name] for name in start if not name.startswith("head.")]
    head = [values[name] for name in start if name.startswith("head.")]
    for parameter in module + head:
        parameter.requires_grad_(True)
    rate = table.attached.spec.learning_rate
    groups = [{"params": part, "lr": lr} for part, lr in ((module, rate), (head, spec.head_learning_rate))
              if part]
    optimizer = torch.optim.AdamW(groups, betas=spec.betas, eps=spec.eps, weight_decay=spec.weight_decay)
    warm = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / spec.warmup))
    assert not model.training
    for step in range(spec.updates):
        picks = table.schedule.examples(step, seed)
        ids, mask = pad(table.data, picks, int(table.data.lengths[picks].max()))
        target = torch.tensor([scorer.label_ids[table.data.labels[i]] for i in picks])
        loss = F.cross_entropy(scorer("label_logits", ids, mask), target)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module + head, spec.clip)
        optimizer.step()
        warm.step()
    for parameter in head:
        parameter.requires_grad_(False)
    return {name: values[name].detach().clone() for name in start}


def batch(table, size):
    picks = np.arange(size)
    ids, mask = pad(table.data, picks, int(table.data.lengths.max()))
    return ids, mask, torch.tensor(table.scorer.label_ids)[torch.from_numpy(table.data.labels[picks])]
