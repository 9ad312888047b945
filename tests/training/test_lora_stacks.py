"""Starts that are subtracted, in stacks: bits, checkpoints, memory, ports, and whole runs with the method's
own file."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from portability.core.errors import UserError
from portability.core.specs import PortSpec
from portability.execution import execute
from portability.execution.execute import WorkerContext
from portability.methods import attach
from portability.planning.plan import plan
from portability.porting.base import PortContext
from portability.porting.port import port
from portability.store import Store
from portability.tasks.classification import Scorer
from portability.training import stack as stacks
from portability.training import trainer as engine
from portability.training.memory import member_bytes
from portability.training.run_output import InitialState
from portability.training.stack import Stack
from portability.training.trainer import Member, Trainer
from support.lora import method, named
from support.studies import small
from support.tiny import FAMILIES, noisy
from support.training import SPEC, Bench, batch, plain_loop

pytestmark = pytest.mark.system  # takes long

SHORT = replace(SPEC, updates=6)


class Own(Bench):
    """An engine test bench whose members may have starts."""

    def frozen(self, seed):
        return {} if seed is None else named(self.attached.to_frozen(noisy(self.attached, seed)))

    def zeros(self):
        return named(self.attached.to_frozen(None))

    def run(self, seeds, frozen, spec=SHORT):
        members = [Member(self.start(seed), seed, 3e-3, held)
                   for seed, held in zip(seeds, frozen, strict=True)]
        trainer = Trainer(self.scorer, members, spec)
        seen = {}
        engine.train(trainer, self.schedule, self.data, (0, spec.updates),
                     lambda n, p, _: seen.update({n: self.scorer.predict(p, self.data, 32)}))
        return trainer, seen


@pytest.fixture(scope="module")
def own(load):
    made = {}

    def get(family, **settings):
        key = family, repr(settings)
        if key not in made:
            made[key] = Own(attach(load(family), method(**settings)))
        return made[key]

    return get


@pytest.mark.parametrize(("family", "started"), [(family, True) for family in FAMILIES] + [("gpt2", False)])
def test_stacks_of_1_2_4_and_a_permuted_one_are_bit_equal(own, family, started):
    table = own(family)
    held = [table.frozen(10 + seed) if started else {} for seed in range(4)]
    four, seen = table.run(range(4), held)
    rows = table.rows(four)
    assert rows.isfinite().all() and not torch.equal(rows[0], rows[1])
    for seeds in ([0], [3], [2, 3], [3, 0, 2, 1]):
        some, predicted = table.run(seeds, [held[seed] for seed in seeds])
        assert torch.equal(table.rows(some), rows[seeds]), seeds
        assert all(np.array_equal(predicted[at].margin, seen[at].margin[seeds]) for at in seen)


@pytest.mark.parametrize("family", FAMILIES)
def test_training_from_a_start_equals_a_plain_one_at_a_time_loop(load, family):
    """An ordinary loop over the mounted layers, with each run's start put into them by hand."""
    table = Own(attach(load(family), method()))
    trainer, _ = table.run([0, 1], [table.frozen(10), table.frozen(11)])
    without, _ = table.run([0], [{}])
    for place, seed in enumerate((0, 1)):
        for name, value in table.attached.to_frozen(noisy(table.attached, 10 + seed)).items():
            layer, _, attribute = name.rpartition(".")
            setattr(table.host.model.get_submodule(layer), attribute, value)
        ours = trainer.bank.member(trainer.bank.theta, place)
        for name, value in plain_loop(table, seed, SHORT).items():
            assert torch.allclose(ours[name], value, atol=1e-4, rtol=0), (name,
                                                                          (ours[name] - value).abs().max())
    assert (table.rows(without)[0] - table.rows(trainer)[0]).abs().max() > 1e-3


@pytest.mark.parametrize(("family", "subtract"), [(family, "product") for family in FAMILIES]
                         + [("llama", "block")])
def test_zeros_in_place_of_a_start_change_no_bit(own, family, subtract):
    table = own(family, subtract=subtract)
    (plain, without), (zero, beside) = (table.run([0, 1], [held] * 2) for held in ({}, table.zeros()))
    assert torch.equal(table.rows(plain), table.rows(zero))
    assert all(np.array_equal(without[at].margin, beside[at].margin) for at in without)


def test_what_is_frozen_is_neither_trained_nor_kept(own):
    table = own("llama")
    held = [table.frozen(10), table.frozen(11)]
    trainer, _ = table.run([0, 1], held)
    assert all(torch.equal(trainer.frozen[name][i], held[i][name]) for i in (0, 1) for name in held[0])
    assert trainer.bank.theta.shape[1] == sum(value.numel() for value in table.start(0).values())
    half = Trainer(table.scorer, [Member(table.start(s), s, 3e-3, held[s]) for s in (0, 1)], SHORT)
    for step in range(3):
        half.update(step, table.schedule, table.data)
    kept = half.snapshot(1)
    assert set(kept) == {"theta", "losses", "tokens", "exp_avg", "exp_avg_sq"}
    assert kept["theta"].numel() == half.bank.theta.shape[1]
    again = Trainer(table.scorer, [Member(table.start(9), 1, 3e-3, held[1])], SHORT)
    again.restore([kept])
    engine.train(again, table.schedule, table.data, (SHORT.updates,), lambda *_: None)
    assert torch.equal(table.rows(again)[0], table.rows(trainer)[1])


def test_memory_counts_what_is_frozen_once(own):
    table = own("llama", subtract="block")
    start, zeros = table.start(0), table.zeros()
    plain, beside = (member_bytes(table.scorer, start, batch(table, 8), frozen) for frozen in ({}, zeros))
    size = 4 * sum(value.numel() for value in zeros.values())
    assert size <= beside - plain <= 1.3 * size


# ---- ports


def with_vocabulary(module, size):
    cut = {slot: value.narrow(module.axes[slot].index("vocab"), 0, size) if "vocab" in module.axes[slot]
           else value
           for slot, value in module.tensors.items()}
    return module.map(cut)


def test_a_port_carries_embedding_and_head_between_equal_vocabularies_alone(load):
    spec = PortSpec("pad", "pad", "stretch")
    small_, large = (attach(load("llama", width, 2, 4), method()) for width in (32, 48))
    module, fresh = noisy(small_, 0), large.init_parameters(0)
    done = port(module, PortContext(small_.host.spec, large.host.spec, fresh, spec))
    assert done.report.carried_fraction == 1.0
    for slot in [slot for slot in module.tensors if slot.stack == "shared"]:
        value, wanted = done.module.tensors[slot], module.tensors[slot]
        assert torch.equal(value[tuple(map(slice, wanted.shape))],
                           wanted) and value.shape == fresh.tensors[slot].shape
    with pytest.raises(UserError, match="the vocabularies differ, and rows of different tokens are not "
                       "exchanged: leave"):
        port(with_vocabulary(module, 20), PortContext(small_.host.spec, large.host.spec, fresh, spec))


# ---- whole runs


@pytest.fixture(scope="module")
def study(data_folders, make_host):
    """Two scratch runs of conf/method/lora_all.yaml on one host, and what they share."""
    made = small(data_folders, make_host, "method=lora_all", "grid.inits=[scratch]")
    planned = plan(made.grid)
    runs = [run for run in planned.runs.values() if run.method
            and run.host.name == made.grid.pairs[0][1].name]
    return made, runs, {run_id: sorted(marks) for run_id, marks in planned.marks.items()}


@pytest.fixture(scope="module")
def table(study, tmp_path_factory):
    made, runs, _ = study
    context, run = WorkerContext(Store(tmp_path_factory.mktemp("own")), made.data), runs[0]
    host = context.host(run.host)
    mounted = attach(host, run.method)
    yield context, stacks.StackContext(mounted, Scorer(host, run.task), context.training(host, run),
                                context.test(host, run))
    mounted.detach()


def start_of(mounted, seed, subtracted):
    module = noisy(mounted, seed) if subtracted else mounted.init_parameters(seed)
    return InitialState(module, {}, None, None, module if subtracted else None)


def test_runs_with_and_without_a_start_train_in_one_stack(study, table):
    _, runs, marks = study
    context, shared = table
    starts = [start_of(shared.attached, 0, False), start_of(shared.attached, 1, True)]
    both = Stack(runs, starts, shared, marks)
    both.train(context)
    assert not both.trainer.frozen[next(iter(both.trainer.frozen))][0].any()
    for place in (0, 1):
        alone = Stack(runs[place : place + 1], starts[place : place + 1], shared, marks)
        assert bool(alone.trainer.frozen) == bool(place)
        alone.train(context)
        assert torch.equal(alone.trainer.averages[0], both.trainer.averages[place])
        for mark, found in both.predictions[""].items():
            assert np.array_equal(found.margin[place], alone.predictions[""][mark].margin[0])
    bare = shared.scorer.predict({}, shared.test, 64)  # the host itself, where each of them starts
    for found in (both.predictions[""][0].margin[place] for place in (0, 1)):
        assert np.allclose(found, bare.margin[0], atol=1e-6)
    assert not np.allclose(both.predictions[""][4].margin[1], bare.margin[0], atol=1e-4)


def test_equal_modules_with_other_starts_are_scored_apart(study, table):
    _, runs, marks = study
    _, shared = table
    module = noisy(shared.attached, 1)
    starts = [InitialState(module, {}, None, None, start) for start in (module, noisy(shared.attached, 2))]
    some = Stack(runs, starts, shared, marks)
    found = some._score(0, some.trainer.bank.views(some.trainer.averages) | some.trainer.frozen).margin
    assert np.abs(found[0] - found[1]).max() > 0.01


def test_a_killed_run_with_a_start_goes_on_to_the_same_bits(study, table, tmp_path):
    _, runs, marks = study
    context, shared = table
    starts, store = [start_of(shared.attached, seed, True) for seed in (0, 1)], Store(tmp_path)
    whole = Stack(runs, starts, shared, marks)
    whole.train(context)
    part = Stack(runs, starts, shared, marks)
    with pytest.raises(KeyboardInterrupt):
        part.train(WorkerContext(store, context.data, lambda stage: part.trainer.done < 3 or interrupt(),
                                 checkpoint_seconds=0))
    again = Stack(runs, starts, shared, marks)
    again.resume(store)
    assert again.stage().updates == 2
    again.train(context)
    assert torch.equal(again.trainer.averages, whole.trainer.averages)
    assert not any("A0" in name or "B0" in name for name in store.checkpoint(runs[0].run_id))


def interrupt():
    raise KeyboardInterrupt


def test_a_whole_study_of_this_method_has_no_failure(data_folders, make_host, tmp_path):
    made = small(data_folders, make_host, "method=lora_all", "grid.inits=[ported,scratch,sampled_norm]",
                 "grid.seeds=[0]")
    planned, store = plan(made.grid), Store(tmp_path)
    context = WorkerContext(store, made.data)
    for run_id, run in planned.runs.items():
        execute.execute([run], {run_id: sorted(planned.marks[run_id])}, context)
    assert not store.failures() and all(store.has(run_id) for run_id in planned.runs)
    scratch = next(cell for cell in planned.cells if cell.init == "scratch" and cell.budget == 0)
    margins = [store.predictions(run_id)["margin"][0] for run_id in (scratch.run_id, scratch.bare_id)]
    assert np.allclose(*margins, atol=1e-6)  # a fresh pair is no change
