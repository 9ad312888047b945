"""Strategy "warm": another strategy, then a few updates on labelled examples of the receiving host's task."""

import time

from portability.methods.module import ModuleState
from portability.porting.base import Port, PortContext
from portability.porting.trained import ComposedStrategy, drawn, encoded, learner, task_of, updated


class Warm(ComposedStrategy):
    """Trains the ported module on the receiving host as a study's runs are trained. A head stays as it is.

    Options:
        of, of_options: the strategy that gives the start (pad).
        updates: of AdamW (20).
        batch_size: labelled examples of an update (8); they are drawn by the port's seed without replacement,
            and come again where there are too few.
        learning_rate: the method's own unless it is given.

    Source: our choice (D-133): what a port is worth is what it spares of these updates.
    """

    needs = frozenset({"receiving_weights", "labels", "training"})
    own = {"updates": 20, "batch_size": 8, "learning_rate": None}

    def fit(self, module: ModuleState, context: PortContext) -> Port:
        """See Strategy.fit.

        Raises:
            UserError: as `ComposedStrategy.fit_of`, no labelled examples, a task whose answers are no labels,
                or training that goes wrong.
        """
        options, task, rows = self.options(context), task_of(context), context.labelled()
        done, started = self.fit_of(module, context), time.perf_counter()
        with learner(context, 1) as student:
            few = drawn(rows, options["updates"] * options["batch_size"], context.seed)
            losses = updated(done, context, student, encoded(student.host, task, few), options,
                             lambda theta, picks, batch: student.scorer.loss(theta, *batch))
        done.report.notes.append(
            f"{options['updates']} updates on {len(few)} labelled examples in "
            f"{time.perf_counter() - started:.1f} s: loss {losses[0]:.4f} before the first, {losses[-1]:.4f} "
            "before the last")
        return done


WARM = Warm()
