"""What every task gives, whichever examples it is made of."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from portability.core.errors import UserError
from portability.data.sampling import Bucket
from portability.hosts.host import load_host
from portability.planning.plan import plan
from portability.tasks.base import check_ids
from portability.tasks.registry import task_of
from support.answers import tasks
from support.studies import small


@pytest.fixture(params=["labels", "head", "written", "chosen"])
def asked(request, sets, data_folders, make_host):
    """A run's task, its data and its host."""
    if request.param in ("labels", "head"):
        hosts = {"labels": "gpt2", "head": "bert"}
        one, two = (make_host(hosts[request.param], 32, 2, 4, seed).source for seed in (0, 1))
        study = small(data_folders, make_host, f"host.nano-raw-base.path={one}",
                      f"host.nano-tuned-base.path={two}")
    else:
        study = tasks(sets, make_host, "gpt2")
    name = {"written": "sums", "chosen": "quiz"}.get(request.param, study.grid.data[0].name)
    run = next(run for run in plan(study.grid).runs.values() if run.method and run.data.name == name)
    return run, study.data, load_host(run.host)


def test_a_task_trains_scores_and_measures(asked):
    run, data, host = asked
    task, given = task_of(run.task), (data, run.data.name)
    scorer, training = task.scorer(host), task.training(host, *given)
    test = task.test(host, *given, run.eval.split, 3)
    head = scorer.fresh_head(0)
    assert bool(head) == scorer.has_head == (host.scoring == "head") and len(test) == 3
    rows = scorer.rows(training, np.arange(4), 3, Bucket(np.arange(4), int(training.lengths.max())))
    with torch.no_grad():
        loss = scorer.loss(head, *rows)
        assert loss.ndim == 0 and bool(loss.isfinite()) and scorer.logits(head, *rows).shape[0] == 4
    assert int(scorer.weight(*rows)) == 3  # the fourth fills up
    told = []
    found = scorer.predict({name: value[None] for name, value in head.items()}, test, 2, told.append).of(0)
    assert found.nll.shape == found.invalid.shape == (3,) and told == sorted(told) and told[-1] == 1.0
    numbers = task.metrics(found, test.labels, ["accuracy"])
    assert {"eval_accuracy", "eval_loss", "eval_invalid_rate"} <= set(numbers)
    assert scorer.scoring_bytes(test, 2) > 0 and task.too_long(training, test) == {}
    assert run.task.passes >= 1 and "{text}" in run.task.reading.template


def test_the_example_shown_and_examples_with_answers_are_the_hosts_own_tokens(asked):
    run, data, host = asked
    task = task_of(run.task)
    text, answers, ids, read = task.example(host, data, run.data.name, run.eval.split, 0)
    assert text and len(answers) == len(ids) and bool(answers) == (host.scoring == "label")
    test = task.test(host, data, run.data.name, run.eval.split, 0)
    assert read and read == getattr(test, "asked", test).row(0).tolist()[: len(read)]
    drawn = task.answered(run.host, data, run.data.name, lambda size: [size - 1, 0])
    assert len(drawn) == 2 and all((one.label is None) == (host.scoring == "label") for one in drawn)
    read_on = [one for one in drawn if one.label is None and one.target is None]
    assert all(0 < one.start < len(one.ids) for one in read_on)


def test_a_host_without_room_for_a_task_is_refused(asked):
    run, _, host = asked
    with pytest.raises(UserError, match="positions"):
        task_of(replace(run.task, max_length=1000)).scorer(host)
    with pytest.raises(UserError, match="its embedding ends at token"):
        check_ids(host, np.array([10**6]))
