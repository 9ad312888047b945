"""A step that is to be replayed as a CUDA graph must not wait for the device; the capture itself needs a GPU."""

import pytest
import torch
from test_engine import SPEC, Bench
from tiny import FAMILIES, METHODS
from torch.utils._python_dispatch import TorchDispatchMode

from portability.engine import Member, Trainer
from portability.graphs import Replayer

WAITING = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "equal", "unique_dim", "_unique2", "lift_fresh")


class Spy(TorchDispatchMode):
    """Notes operations that would read a value back from the device, or bring one to it, while a graph is recorded."""

    def __init__(self):
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        boolean_index = name in ("index", "index_put_") and any(
            i is not None and i.dtype == torch.bool for i in args[1] if isinstance(i, torch.Tensor))
        if name in WAITING or boolean_index:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_a_whole_update_never_waits_for_the_device(mount, method, family):
    table = Bench(mount(method, family))
    trainer = Trainer(table.scorer, [Member(table.start(seed), seed, 3e-3) for seed in (0, 1)], SPEC)
    trainer.update(0, table.schedule, table.data)  # the first update prepares AdamW's state
    batch = trainer._batch(1, table.schedule, table.data)
    with Spy() as spy:
        trainer._step(*batch)
    # AdamW's plain form, which only a CPU takes, reads its step counter once a block; its capturable form does not
    assert spy.seen[-len(trainer.blocks) :] == ["_local_scalar_dense"] * len(trainer.blocks)
    waits = set(spy.seen[: -len(trainer.blocks)])
    if method == "compacter":  # multiplies two shapes as tensors in ordinary memory
        waits -= {"lift_fresh", "_local_scalar_dense"}
    if (family, method) == ("gpt2", "lora"):  # adapters writes q, k and v by a boolean mask: called, never replayed
        assert "nonzero" in waits
        return
    assert not waits


def test_the_spy_sees_what_waits():
    with Spy() as spy:
        bool(torch.ones(2).sum() > 1)
        torch.ones(3)[torch.tensor([True, False, True])]
    assert {"_local_scalar_dense", "index"} <= set(spy.seen)


def test_without_a_gpu_a_step_is_simply_called():
    calls = []
    replay = Replayer(lambda *inputs: calls.append([tensor.shape for tensor in inputs]), torch.device("cpu"))
    for size in (3, 3, 3, 5):
        replay(torch.zeros(size))
    assert len(calls) == 4 and not replay.graphs


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_replayed_step_gives_the_bits_of_a_called_one():
    def trained(capture):
        torch.manual_seed(0)
        total, weight = torch.zeros(4, device="cuda"), torch.randn(4, device="cuda")
        replay = Replayer(lambda x: total.add_((x * weight).tanh()), torch.device("cuda"))
        replay.capturing = capture
        for i in range(6):
            replay(torch.full((4,), float(i), device="cuda"))
        return total, replay

    captured, replay = trained(True)
    assert replay.graphs and torch.equal(captured, trained(False)[0])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_step_that_waits_is_called_and_the_reason_logged(caplog):
    total = torch.zeros(1, device="cuda")
    replay = Replayer(lambda x: total.add_(float(x.sum())), torch.device("cuda"))
    for _ in range(4):
        replay(torch.ones(3, device="cuda"))
    assert total.item() == 12 and not replay.graphs and "not replayed" in caplog.text
