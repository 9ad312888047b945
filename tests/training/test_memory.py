"""What a member of a stack needs is measured, and how many fit follows from it."""

import pytest
import torch

from portability.training import memory
from portability.training.memory import STATE, kept_bytes, member_bytes, stack_size
from support.tiny import METHODS
from support.training import Bench, batch


@pytest.mark.parametrize("method", METHODS)
def test_what_a_stack_keeps_grows_linearly_with_its_members(mount, method):
    table = Bench(mount(method))
    one = table.start(0)
    parts = batch(table, 8)

    def kept(members):
        stacked = {name: torch.stack([value] * members) for name, value in one.items()}
        return sum(kept_bytes(table.scorer, stacked, [torch.stack([part] * members) for part in parts]))

    sizes = {members: kept(members) for members in (1, 2, 4, 8)}
    assert sizes[1] > 0 and all(sizes[2 * k] - sizes[k] == pytest.approx(k * (sizes[2] - sizes[1]), rel=0.02)
                                for k in (2, 4))
    assert sizes[8] <= 8 * sizes[1]  # so a stack of K never needs more than K times what one needs


def test_activations_count_by_the_batch_and_the_hosts_weights_do_not_count(mount):
    narrow, deep = Bench(mount("lora", "t5", 32, 2, 4)), Bench(mount("lora", "t5", 32, 4, 4))
    sizes = {}
    for name, table in (("narrow", narrow), ("deep", deep)):
        start = table.start(0)
        state = STATE * 4 * sum(value.numel() for value in start.values())
        sizes[name] = [member_bytes(table.scorer, start, batch(table, size)) - state for size in (8, 16)]
    assert sizes["narrow"][1] == pytest.approx(2 * sizes["narrow"][0], rel=0.1)
    assert sizes["deep"][0] == pytest.approx(2 * sizes["narrow"][0], rel=0.2)


@pytest.mark.parametrize(("method", "family"), [*((method, "t5") for method in METHODS),
                                                *(("lora", family) for family in ("bert", "gpt2", "llama"))])
def test_by_one_example_and_what_a_second_adds_a_batch_takes_what_it_does(mount, method, family):
    table = Bench(mount(method, family))
    one, two, taken = (member_bytes(table.scorer, table.start(0), batch(table, size)) for size in (1, 2, 16))
    assert one + 15 * (two - one) == pytest.approx(taken, rel=0.15)


@pytest.mark.parametrize("gives_back", [True, False])
def test_a_fifth_of_what_is_free_stays_free_and_gaps_are_left_where_there_is_room_for_them(
        monkeypatch, gives_back):
    asked = []
    monkeypatch.setattr(memory, "free_bytes", lambda device, share: int(1000 * share))
    monkeypatch.setattr(memory, "without_gaps", lambda: asked.append(1) or gives_back)
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert [stack_size(100, wanted, cpu, 1.0) for wanted in (1, 2)] == [1, 2] and not asked
    assert stack_size(100, 99, gpu, 1.0) == 8 and not asked  # torch's own allocator
    assert [stack_size(100, wanted, cpu, 1.0) for wanted in (3, 99)] == ([3, 8] if gives_back else [2, 2])
    assert stack_size(100, 99, cpu, 0.5) == (4 if gives_back else 1) and len(asked) == 3
    assert stack_size(10**6, 1, cpu, 1.0) == 0


def test_the_machine_tells_what_is_free():
    whole, half = (memory.free_bytes(torch.device("cpu"), share) for share in (1.0, 0.5))
    assert 2**28 < half < whole < 2**44
