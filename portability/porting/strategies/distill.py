"""Strategy "distill": another strategy, then updates on texts without labels that the origin has answered."""

import time

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from portability.core.errors import UserError
from portability.methods.module import ModuleState
from portability.porting.base import Port, PortContext
from portability.porting.trained import (
    ComposedStrategy,
    Learner,
    Rows,
    encoded,
    learner,
    log_shares,
    task_of,
    updated,
)
from portability.tasks.base import Parameters


class Distill(ComposedStrategy):
    """Trains the ported module so that the receiving host answers as the origin with its module does: mean
    KL(origin || receiving) over the label words, or the classes of a head, which stays as it is.

    Texts are taken in the calibration's order, until they have its tokens, counted as the receiving host is
    asked.

    Options:
        of, of_options: the strategy that gives the start (pad).
        updates: of AdamW (50).
        batch_size: texts of an update (8).
        learning_rate: the method's own unless it is given.

    Source: Trans-LoRA (arXiv 2405.17258), section 3, for training the receiving module on what the origin
        answers; it takes generated texts and their answers as labels. Given texts and whole distributions are
        our choice (D-133).
    """

    needs = frozenset({"origin_weights", "receiving_weights", "text", "forward_passes", "training"})
    own = {"updates": 50, "batch_size": 8, "learning_rate": None}

    def fit(self, module: ModuleState, context: PortContext) -> Port:
        """See Strategy.fit.

        Raises:
            UserError: as `ComposedStrategy.fit_of`, no texts, a task whose answers are no labels, or training
                that goes wrong.
        """
        options, task, texts = self.options(context), task_of(context), context.calibration()
        done, started = self.fit_of(module, context), time.perf_counter()
        asked = [(text, 0) for text in texts.texts[: texts.tokens]]  # the label is not looked at
        count = 1 + int(np.searchsorted(
            encoded(context.receiving_host(), task, asked).lengths.cumsum(), texts.tokens))
        examples = encoded(context.receiving_host(), task, asked[:count])
        with learner(context, 0) as teacher:
            margin = teacher.margin(module, encoded(teacher.host, task, asked[:count]))
        if not margin.isfinite().all():
            raise UserError(f"port strategy '{context.spec.strategy}' {context.pair}: the origin with its "
                            "module gives answers that are not finite")
        wanted = log_shares(margin)
        with learner(context, 1) as student:
            before = student.margin(done.module, examples)
            updated(done, context, student, examples, options, lambda theta, picks, batch: _divergence(
                student, theta, batch, wanted[torch.from_numpy(picks)]))
            after = student.margin(done.module, examples)
        found = [float(F.kl_div(log_shares(one), wanted, reduction="batchmean", log_target=True))
                 for one in (before, after)]
        done.report.notes.append(
            f"{options['updates']} updates on {len(examples)} texts answered by the origin in "
            f"{time.perf_counter() - started:.1f} s: KL from the origin {found[0]:.4g} nats before, "
            f"{found[1]:.4g} after")
        return done


def _divergence(student: Learner, theta: Parameters, batch: Rows, wanted: Tensor) -> Tensor:
    """Mean KL divergence of the receiving host's answers from the wanted ones (B, C), log-probabilities."""
    logits = student.scorer.logits(theta, *batch)[:, list(student.scorer.label_ids)]
    return F.kl_div(logits.log_softmax(-1), wanted.to(logits), reduction="batchmean", log_target=True)


DISTILL = Distill()
