"""Maps of heads under rotary positions: what turns alike is mapped, what turns otherwise is refused."""

import functools
import json
import shutil
from pathlib import Path

import pytest
import torch

from portability.core.errors import UserError
from portability.core.specs import MethodSpec, PortSpec
from portability.hosts.host import load_host
from portability.hosts.sources import HostSource, describe
from portability.methods import attach
from portability.porting.base import PortContext
from portability.porting.calibration import calibration
from portability.porting.port import port
from portability.porting.rotary import speeds
from portability.porting.spaces import Space, norm_of
from portability.porting.strategies import STRATEGIES
from support.hidden import READ, strong_host
from support.tiny import noisy

MAPS = ["procrustes", "corr", "embed", "rebasin"]
QUERY = Space("decoder", 0, "query", "out")


@pytest.fixture(scope="module")
def changed(make_host, tmp_path_factory):
    """family, further keys of its config.json -> a host's spec."""
    @functools.cache
    def make(family, *keys):
        folder = tmp_path_factory.mktemp("host") / "changed"
        shutil.copytree(Path(make_host(family, 16, 2, 4).source), folder)
        path = folder / "config.json"
        config = json.loads(path.read_text())
        for name, value in keys:
            if name in config.get("rope_parameters", {}):  # as transformers 5 writes it
                config["rope_parameters"][name] = value
            else:
                config[name] = json.loads(value) if isinstance(value, str) else value
        path.write_text(json.dumps(config))
        return describe(HostSource("changed", path=str(folder)))

    return make


def ported(origin, receiving, strategy, *sites):
    spec = MethodSpec("lora", "peft", "LoraConfig", {"r": 2, "sites": list(sites)}, 1e-3)
    source, target = (attach(load_host(host), spec) for host in (origin, receiving))
    return port(noisy(source, 1), PortContext(
        origin, receiving, target.init_parameters(0), PortSpec("a", strategy, "stretch"),
        functools.cache(load_host), lambda: calibration("sentences", READ, 200)))


@pytest.mark.parametrize(("family", "layer", "base"), [
    ("llama", 0, 1e4), ("mistral", 1, 1e4), ("qwen2", 0, 1e4), ("qwen3", 1, 1e4), ("gemma2", 0, 1e4),
    ("phi3", 0, 1e4), ("modernbert", 0, 160e3), ("modernbert", 1, 1e4), ("gemma3_text", 1, 1e4),
])
def test_the_speeds_of_a_host_are_what_its_configuration_says(load, family, layer, base):
    """base ** (-2 i / head_dim) of pair i; ModernBERT and Gemma 3 have another base in local layers."""
    stack = "encoder" if family == "modernbert" else "decoder"
    found = speeds(load(family, 32, 2, 4), Space(stack, layer, "query", "out"))
    assert found.tolist() == pytest.approx([base ** (-2 * pair / 8) for pair in range(4)], rel=1e-5)


def test_gemma_3s_sixth_layer_sees_all_and_turns_at_another_speed(load):
    host = load("gemma3_text", 32, 6, 4)
    found = [speeds(host, QUERY._replace(layer=layer))[1] for layer in range(6)]
    assert found == pytest.approx([0.1] * 5 + [1e6 ** -0.25], rel=1e-5)


UNLIKE = {
    "theta": ("llama", [("rope_theta", 500000.0)], "turn with the position at unequal speeds"),
    "scaling": ("llama", [("rope_scaling", '{"rope_type": "linear", "factor": 4.0}')], "at unequal speeds"),
    "part": ("phi3", [("partial_rotary_factor", 0.5)], "only parts of queries and keys turn with the posi"),
}


@pytest.mark.parametrize("strategy", MAPS)
@pytest.mark.parametrize("case", UNLIKE)
def test_queries_and_keys_that_turn_otherwise_are_refused_and_values_are_mapped(make_host, changed, case,
                                                                                strategy):
    family, keys, said = UNLIKE[case]
    origin, receiving = make_host(family, 16, 2, 4), changed(family, *keys)
    sites = ("attention",) if family == "phi3" else ("query",)  # phi3 has one matrix for all three
    with pytest.raises(UserError, match=f"{said}.*: no map of them is defined; leave query and key out of "
                       "the method's sites, or use pad$") as error:
        ported(origin, receiving, strategy, *sites)
    assert "\n" not in str(error.value)
    assert ported(origin, receiving, "pad", *sites).report.carried_fraction == 1
    if family == "llama":
        assert ported(origin, receiving, strategy, "value", "ffn").report.carried_fraction == 1


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text"])
def test_maps_of_queries_commute_with_gains_of_heads_and_with_positions(family, tmp_path):
    """Between hosts that have nothing to do with each other, so that no map is the identity by itself."""
    origin, receiving = (strong_host(tmp_path / name, family, 16) for name in ("one", "other"))
    loaded = {"one": load_host(origin), "other": load_host(receiving)}
    with torch.no_grad():
        for parameter in loaded["other"].model.parameters():
            if parameter.ndim == 2:
                parameter.copy_(parameter[torch.randperm(len(parameter), generator=torch.Generator()
                                                         .manual_seed(1))])
    context = PortContext(origin, receiving, None, PortSpec("embed", "embed", "stretch"),
                          lambda host: loaded[host.name], needs=STRATEGIES["embed"].needs)
    found = STRATEGIES["embed"].maps(context, [(QUERY, QUERY)])[QUERY, QUERY]
    assert torch.allclose(found @ found.T, torch.eye(16).double(), atol=1e-6)
    x = torch.randn(7, 16, generator=torch.Generator().manual_seed(2)).double()
    angle = torch.arange(7)[:, None] * speeds(loaded["one"], QUERY)  # (position, pair)
    cos, sin = (torch.cat([one, one], 1).repeat(1, 4) for one in (angle.cos(), angle.sin()))

    def placed(rows):
        parts = rows.reshape(7, 4, 2, 2)
        half = torch.cat([-parts[:, :, 1], parts[:, :, 0]], -1).reshape(7, 16)
        return rows * cos + half * sin

    assert torch.allclose(placed(x) @ found, placed(x @ found), atol=1e-6)
    gain = norm_of(loaded["one"], QUERY, "query_norm")
    if gain is not None:
        wide = gain.double().repeat(4)
        assert wide.std() > 0.1 and torch.allclose((x * wide) @ found, (x @ found) * wide, atol=1e-6)
