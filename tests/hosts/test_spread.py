"""A host on several devices: where its parts go, and that nothing it computes is another number for it.

There is no second device here. Two are played by torch's fake tensors (cpu:0, cpu:1), which know shapes and
devices and no numbers, and refuse what two devices refuse. The numbers are those of a host whose hooks bring
all that is read to the same CPU.
"""

from contextlib import ExitStack

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import Parameter

from portability.core.errors import UserError
from portability.core.specs import MethodSpec
from portability.hosts import spread as module
from portability.hosts.host import load_host
from portability.hosts.spread import devices_of, place_of, spread
from portability.methods import attach
from portability.methods.adapters_backend import prepare
from portability.training.cuda_graphs import CudaGraphRunner
from portability.training.trainer import Member, Trainer
from support.tiny import METHODS
from support.training import SPEC, Bench

LORA_PEFT = MethodSpec("lora_peft", "peft", "LoraConfig",
                       {"r": 4, "lora_alpha": 8, "sites": ["query", "value", "ffn_down"]}, 3e-3)
ALL = {**METHODS, "lora_peft": LORA_PEFT}
PARTS = {  # a host of two layers a stack, in two parts
    "t5": ({"shared": 0, "encoder.embed_tokens": 0, "decoder.embed_tokens": 0, "lm_head": 0,
            "encoder.block.0": 0}, {"encoder.block.1": 1, "encoder.final_layer_norm": 1,
                                    "encoder.dropout": 1, "decoder.block": 1,
                                    "decoder.final_layer_norm": 1, "decoder.dropout": 1}),
    "llama": ({"model.embed_tokens": 0, "model.rotary_emb": 0, "model.layers.0": 0},
              {"model.layers.1": 1, "model.norm": 1, "lm_head": 1}),
    "bert": ({"embeddings": 0, "encoder.layer.0": 0}, {"encoder.layer.1": 1, "pooler": 1})}
INSIDE = {"t5": ("adapter", "lora", "lora_peft"), "llama": ("adapter", "lora_peft"), "bert": ("lora",)}
FIRST, SECOND = torch.device("cpu", 0), torch.device("cpu", 1)


def losses(attached):
    """Three updates of a stack of two: its losses, and what it has learned."""
    table = Bench(attached)
    trainer = Trainer(table.scorer, [Member(table.start(seed), seed, 3e-3) for seed in (0, 1)], SPEC)
    for step in range(3):
        trainer.update(step, table.schedule, table.data)
    return trainer.losses[:3], trainer.bank.theta.detach()


@pytest.mark.parametrize("family", PARTS)
def test_two_placements_of_a_host_give_the_numbers_of_the_host_in_one_piece(make_host, family):
    spec, parts = make_host(family), {name: "cpu" for part in PARTS[family] for name in part}
    for method in INSIDE[family]:
        whole = losses(attach(prepare(load_host(spec)), ALL[method]))
        for device_map in (parts, {"": "cpu"}):
            host = load_host(spec, device_map=device_map)
            hooks = sum(len(part._forward_pre_hooks) for part in host.model.modules())
            assert hooks == len(device_map) + ("decoder.block" in device_map) and host.device.type == "cpu"
            assert all(map(torch.equal, losses(attach(prepare(host), ALL[method])), whole))


def to_fake(part, device=None, **dtype):
    """As `Module.to`, which cannot make a real tensor a fake one."""
    for owner in part.modules() if device else ():
        for held in (owner._parameters, owner._buffers):
            for name, value in held.items():
                if value is None:
                    continue
                fake = torch.empty(value.shape, dtype=value.dtype, device=device)
                held[name] = Parameter(fake, requires_grad=False) if isinstance(value, Parameter) else fake
    return part


@pytest.fixture
def apart(load, monkeypatch):
    """A family's host without numbers, in two parts on two devices that are not there."""
    def make(family):
        host = load(family)
        host.devices = {name: (FIRST, SECOND)[place] for part in PARTS[family]
                        for name, place in part.items()}
        host.main = FIRST
        entered.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        monkeypatch.setattr(torch.nn.Module, "to", to_fake)
        spread(host.model, host.devices)
        return host

    with ExitStack() as entered:
        yield make


def learned(attached):
    """Losses and gradient of a stack of two members whose tensors all lie on the first device."""
    table = Bench(attached)
    start = {f"model.{name}": torch.empty(shape) for name, shape in attached.shapes.items()}
    start |= table.scorer.fresh_head(0)
    trainer = Trainer(table.scorer, [Member(start, seed, 3e-3) for seed in (0, 1)], SPEC)
    picks = table.schedule.examples(0, 0)[None].repeat(2, 0)
    rows = table.scorer.rows(table.data, picks, SPEC.batch_size, table.schedule.buckets[0])
    return trainer._losses([part.to(FIRST) for part in rows])


@pytest.mark.parametrize(("family", "method"), [(family, one) for family in PARTS for one in INSIDE[family]])
def test_between_two_devices_each_tensor_is_brought_to_where_it_is_read(apart, family, method):
    losses, gradient = learned(attach(prepare(apart(family)), ALL[method]))
    assert losses.shape == (2,) and losses.device == gradient.device == FIRST
    assert gradient.shape[0] == 2


@pytest.mark.parametrize("method", ["prefix", "compacter"])
def test_a_method_that_shares_tensors_between_layers_is_refused(apart, method):
    with pytest.raises(UserError, match=f"method '{method}' cannot stand on a host spread.*choose one whose"):
        attach(prepare(apart("t5")), ALL[method])


def test_a_method_in_the_place_of_a_whole_part_is_refused(apart):
    spec = MethodSpec("head", "peft", "LoraConfig", {"r": 4, "target_modules": ["lm_head"]}, 3e-3)
    with pytest.raises(UserError, match="takes the place of 'lm_head', to which engine.device_map brings"):
        attach(prepare(apart("llama")), spec)


def test_what_is_not_brought_to_its_device_is_found(apart):
    """The check itself: a layer without its hook reads what lies on the other device."""
    host = apart("llama")
    attached = attach(prepare(host), LORA_PEFT)
    host.model.model.layers[1]._forward_pre_hooks.clear()
    with pytest.raises(RuntimeError, match="two .*devices,? cpu:[01](,| and) cpu:[01]"):
        learned(attached)


def test_a_host_that_is_whole_elsewhere_than_what_it_reads_is_spread(load):
    host = load("bert")
    assert not host.is_spread
    host.devices, host.main = {"": FIRST}, FIRST
    assert not host.is_spread
    host.devices = {"": SECOND}
    assert host.is_spread


def test_a_spread_hosts_step_is_not_captured():
    assert not CudaGraphRunner(torch.device("cuda"), whole=False).capturing


@pytest.mark.parametrize("family", PARTS)
def test_accelerate_puts_each_tensor_in_one_place(load, monkeypatch, family):
    model = load(family).model
    size = sum(value.numel() * value.element_size() for value in model.parameters())
    monkeypatch.setattr(module, "count_gpus", lambda: 2)
    rooms = iter([{0: int(0.7 * size), 1: size}, {0: int(0.4 * size), 1: 0, "cpu": size}])
    monkeypatch.setattr("accelerate.utils.get_balanced_memory", lambda *_, **__: next(rooms))
    found = devices_of("tiny", model, "auto", "cuda:0")
    places = {str(place_of(name, found)) for name, _ in model.named_parameters()}
    assert places == {"cuda:0", "cuda:1"}
    with pytest.raises(UserError, match="stand on cpu in part .the GPUs are too small for it.*more GPUs"):
        devices_of("tiny", model, "auto", "cuda:0")


@pytest.mark.parametrize("change, said", [
    ({"model.layers.7": 0}, "names 'model.layers.7', which host 'tiny' does not have"),
    ({"lm_head": None}, "names no device for 'lm_head.weight' of host 'tiny'"),
    ({"model.rotary_emb": None}, "names no device for 'model.rotary_emb.inv_freq'"),
    ({"lm_head": 2}, "puts 'lm_head' of host 'tiny' on 2, and here there are cuda:0, cuda:1"),
    ({"lm_head": "cpu"}, "would stand on cpu in part .engine.device_map puts 'lm_head' there"),
    ({"model.layers.1.mlp": 0}, "on cuda:0 and what is around it elsewhere; name the parts of 'model.lay"),
])
def test_a_map_that_does_not_fit_is_refused(load, monkeypatch, change, said):
    monkeypatch.setattr(module, "count_gpus", lambda: 2)
    wanted = {name: gpu for part in PARTS["llama"] for name, gpu in part.items()} | change
    wanted = {name: gpu for name, gpu in wanted.items() if gpu is not None}
    with pytest.raises(UserError, match=said):
        devices_of("tiny", load("llama").model, wanted, "cuda:0")


def test_tied_weights_on_two_devices_are_refused(load, monkeypatch):
    monkeypatch.setattr(module, "count_gpus", lambda: 2)
    wanted = {name: gpu for part in PARTS["t5"] for name, gpu in part.items()} | {"lm_head": 1}
    with pytest.raises(UserError, match="'shared.weight' and 'lm_head.weight' are one tensor, and engine"):
        devices_of("tiny", load("t5").model, wanted, "cuda:0")
