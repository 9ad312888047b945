"""A step that is to be replayed as a CUDA graph must not wait for the device; the capture itself needs a
GPU."""

import gc
import weakref

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from portability.hosts.attention import Handed
from portability.hosts.host import load_host
from portability.methods import attach
from portability.training.cuda_graphs import CudaGraphRunner
from portability.training.trainer import Member, Trainer
from support.pairs import over, representatives
from support.tiny import FAMILIES, METHODS
from support.training import SPEC, Bench

WAITING = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "equal", "unique_dim", "_unique2",
           "lift_fresh")


class Spy(TorchDispatchMode):
    """Notes operations that would read a value back from the device, or bring one to it, while a graph is
    recorded."""

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


@pytest.mark.parametrize("family", representatives(FAMILIES, "t5", "bert", "llama"))
@pytest.mark.parametrize("method", METHODS)
def test_a_whole_update_never_waits_for_the_device(mount, method, family):
    table = Bench(mount(method, family))
    trainer = Trainer(table.scorer, [Member(table.start(seed), seed, 3e-3) for seed in (0, 1)], SPEC)
    trainer.update(0, table.schedule, table.data)  # the first update prepares AdamW's state
    batch = trainer._batch(1, table.schedule, table.data)
    with Spy() as spy:
        trainer._step(*batch)
    # AdamW's plain form, which only a CPU takes, reads its step counter once a block; its capturable form
    # does not
    assert spy.seen[-len(trainer.blocks) :] == ["_local_scalar_dense"] * len(trainer.blocks)
    waits = set(spy.seen[: -len(trainer.blocks)])
    if method == "compacter":  # multiplies two shapes as tensors in ordinary memory
        waits -= {"lift_fresh", "_local_scalar_dense"}
    # adapters writes q, k and v by a boolean mask: called, never replayed
    if (family, method) == ("gpt2", "lora"):
        assert "nonzero" in waits
        return
    assert not waits


class Homeless(TorchFunctionMode):
    """Notes tensors that are made without a device, that is, in ordinary memory: bringing them to a GPU would
    wait."""

    def __init__(self):
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        made = (torch.ones, torch.zeros, torch.full, torch.arange, torch.tensor, torch.empty, torch.rand,
                torch.randn)
        if func in made and kwargs.get("device") is None:
            self.seen.append(func.__name__)
        return func(*args, **kwargs)


@pytest.mark.parametrize("family", representatives(FAMILIES, "t5", "bert", "llama"))
@pytest.mark.parametrize("method", METHODS)
def test_a_forward_pass_makes_no_tensor_in_ordinary_memory(mount, method, family):
    table = Bench(mount(method, family))
    ids, mask = torch.full((2, 5), 3), torch.ones(2, 5, dtype=torch.int64)
    bare, placed = Homeless(), Homeless()
    with bare:
        plain = table.scorer("label_logits", ids, mask)
    with placed, Handed(torch.device("cpu")):  # as the scorer does on a GPU
        assert torch.equal(table.scorer("label_logits", ids, mask), plain)
    assert ("ones" in bare.seen) == (method == "prefix")
    # Compacter's are shapes, never brought over
    assert set(placed.seen) <= ({"tensor"} if method == "compacter" else set())


def test_the_spy_sees_what_waits():
    with Spy() as spy:
        bool(torch.ones(2).sum() > 1)
        torch.ones(3)[torch.tensor([True, False, True])]
    assert {"_local_scalar_dense", "index"} <= set(spy.seen)


def test_without_a_gpu_a_step_is_simply_called():
    calls = []
    replay = CudaGraphRunner(torch.device("cpu"))
    for size in (3, 3, 3, 5):
        replay(lambda tensor: calls.append(tensor.shape), torch.zeros(size))
    assert len(calls) == 4 and not replay.graphs


def test_a_trainer_goes_as_soon_as_nobody_uses_it(mount):
    table = Bench(mount("lora"))
    trainer = Trainer(table.scorer, [Member(table.start(0), 0, 3e-3)], SPEC)
    trainer.update(0, table.schedule, table.data)
    seen = weakref.ref(trainer)
    gc.collect()
    gc.disable()  # a cycle would keep it, and on a GPU its graphs and their memory
    try:
        del trainer
        assert seen() is None
    finally:
        gc.enable()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_replayed_step_gives_the_bits_of_a_called_one():
    def trained(capture):
        torch.manual_seed(0)
        total, weight = torch.zeros(4, device="cuda"), torch.randn(4, device="cuda")
        replay = CudaGraphRunner(torch.device("cuda"))
        replay.capturing = capture
        for i in range(6):
            replay(lambda x: total.add_((x * weight).tanh()), torch.full((4,), float(i), device="cuda"))
        return total, replay

    captured, replay = trained(True)
    assert replay.graphs and torch.equal(captured, trained(False)[0])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_step_that_waits_is_called_and_the_reason_logged(caplog):
    total = torch.zeros(1, device="cuda")
    replay = CudaGraphRunner(torch.device("cuda"))
    for _ in range(4):
        replay(lambda x: total.add_(float(x.sum())), torch.ones(3, device="cuda"))
    assert total.item() == 12 and not replay.graphs and "not replayed" in caplog.text


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@over(method=METHODS, family=["t5", "bert", "llama"], precision=["fp32", "bf16"])
def test_a_stack_trains_alike_with_graphs_without_and_on_a_cpu(make_host, method, family, precision):
    def losses(device, capture):
        table = Bench(attach(load_host(make_host(family), device, precision), METHODS[method]))
        trainer = Trainer(table.scorer, [Member(table.start(seed), seed, 3e-3) for seed in (0, 1)], SPEC)
        trainer._replayer.capturing = capture
        for step in range(SPEC.updates):
            trainer.update(step, table.schedule, table.data)
        kept = [trainer.snapshot(i) for i in (0, 1)]
        trainer.restore(kept)
        assert (len(trainer._replayer.graphs) > 0) == capture and all(k["theta"].isfinite().all()
                                                                      for k in kept)
        return trainer.losses.cpu()

    captured, called, cpu = losses("cuda:0", True), losses("cuda:0", False), losses("cpu", False)
    near = 1e-3 if precision == "fp32" else 0.1
    assert torch.allclose(captured, called, atol=near) and torch.allclose(called, cpu, atol=near)
