"""Layer maps, and averaging of products."""

import pytest
import torch

from portability.core.errors import UserError
from portability.core.specs import MethodSpec, PortSpec
from portability.methods import attach
from portability.porting.base import PortContext
from portability.porting.layer_maps import LAYER_MAPS, average_layers, check_mixed, named_layers
from portability.porting.port import port
from support import adapters_methods
from support.hidden import put
from support.peft_methods import KINDS
from support.tiny import noisy


@pytest.mark.parametrize("name", LAYER_MAPS)
@pytest.mark.parametrize("depth", [1, 2, 3, 6])
def test_every_map_is_the_identity_between_equal_depths(name, depth):
    assert LAYER_MAPS[name](depth, depth) == [[i] for i in range(depth)]


@pytest.mark.parametrize("name", LAYER_MAPS)
@pytest.mark.parametrize(("origin", "receiving"), [(12, 24), (24, 12), (3, 2), (2, 3), (6, 3), (5, 1),
                                                   (1, 4)])
def test_maps_keep_the_order_and_stay_in_range(name, origin, receiving):
    if name == "skip" and receiving > origin:
        with pytest.raises(UserError, match="only drops layers"):
            LAYER_MAPS[name](origin, receiving)
        return
    layers = LAYER_MAPS[name](origin, receiving)
    flat = [one for many in layers for one in many]
    assert len(layers) == receiving and all(layers) and flat == sorted(flat) and set(flat) <= set(
        range(origin))


def test_average_uses_every_layer_of_a_deeper_origin():
    assert sorted(one for many in LAYER_MAPS["average"](7, 3) for one in many) == list(range(7))


def test_low_rank_pairs_are_averaged_as_products():
    torch.manual_seed(0)
    u, v = torch.randn(12, 4), torch.randn(4, 10)  # two layers in one subspace but with other factors
    turn = torch.linalg.qr(torch.randn(4, 4))[0]
    layers = [{"A": v, "B": u}, {"A": turn @ v * 2, "B": u @ turn.T * 0.5}]
    got = average_layers(layers)
    assert torch.allclose(got["B"] @ got["A"], (layers[0]["B"] @ layers[0]["A"] + layers[1]["B"]
                                                @ layers[1]["A"]) / 2,
                          atol=1e-5)
    factors = (layers[0]["B"] + layers[1]["B"]) @ (layers[0]["A"] + layers[1]["A"]) / 4
    assert not torch.allclose(factors, u @ v,
                              atol=1e-2), "averaging factors would have done, so this shows nothing"


def test_pairs_beside_one_matrix_of_several_sites_are_averaged_as_products():
    torch.manual_seed(2)
    u, v, turn = torch.randn(12, 4), torch.randn(4, 10), torch.linalg.qr(torch.randn(4, 4))[0]
    layers = [{"A": a, "B_key": b[:4].reshape(2, 2, 4), "B_query": b[4:].reshape(4, 2, 4)}
              for a, b in ((v, u), (turn @ v * 2, u @ turn.T * 0.5))]
    got = average_layers(layers)
    assert torch.allclose(got["B_key"].reshape(4, 4) @ got["A"], u[:4] @ v, atol=1e-5)
    assert torch.allclose(got["B_query"].reshape(8, 4) @ got["A"], u[4:] @ v, atol=1e-5)


def test_an_adaloras_singular_values_are_part_of_the_product():
    torch.manual_seed(3)
    u, v, e = torch.randn(6, 2), torch.randn(2, 5), torch.tensor([[3.0], [0.5]])
    layers = [{"A": v, "B": u, "E": e}, {"A": v.flip(0), "B": u.flip(1), "E": e.flip(0)}]
    got = average_layers(layers)
    assert torch.allclose(got["B"] @ (got["A"] * got["E"]), u @ (v * e), atol=1e-5)


def test_the_truncated_product_is_numpys_best_rank_r():
    import numpy as np
    torch.manual_seed(1)
    layers = [{"A": torch.randn(2, 9), "B": torch.randn(3, 5, 2)} for _ in range(3)]
    got = average_layers(layers)
    mean = np.mean([x["B"].reshape(15, 2).numpy() @ x["A"].numpy() for x in layers], axis=0)
    left, scale, right = np.linalg.svd(mean)
    best = left[:, :2] * scale[:2] @ right[:2]
    assert np.allclose(got["B"].reshape(15, 2).numpy() @ got["A"].numpy(), best, atol=1e-5)
    norms = np.mean([float(x["A"].norm()) for x in layers])
    assert float(got["A"].norm()) == pytest.approx(norms, rel=1e-5)


def test_a_bottlenecks_linear_part_is_averaged_with_its_bias():
    torch.manual_seed(2)
    one = {"down_weight": torch.randn(4, 6), "down_bias": torch.randn(4), "up_weight": torch.randn(6, 4),
           "up_bias": torch.randn(6)}
    got = average_layers([one, {role: t.clone() for role, t in one.items()}])
    x = torch.randn(6)
    assert torch.allclose(got["up_weight"] @ (got["down_weight"] @ x + got["down_bias"]) + got["up_bias"],
                          one["up_weight"] @ (one["down_weight"] @ x + one["down_bias"]) + one["up_bias"],
                          atol=1e-4)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_layers_that_are_alike_average_to_one_of_them_and_sum_to_as_many(number):
    torch.manual_seed(4)
    a, b = torch.randn(3, 8), torch.randn(2, 5, 3)
    layers = [{"A": a, "B": b}, {"A": 2 * a.flip(0), "B": b.flip(2) / 2}, {"A": -a, "B": -b}][:number]
    product = b.reshape(10, 3) @ a
    for sums, times in ((False, 1), (True, number)):
        got = average_layers(layers, sums)
        found = got["B"].reshape(10, 3) @ got["A"]
        assert (found - times * product).norm() <= 1e-5 * product.norm()
        assert torch.linalg.matrix_rank(found) <= 3


# ---- by words


@pytest.mark.parametrize(("words", "depths", "layers"), [
    ("0,2,4+5", (6, 3), [[0], [2], [4, 5]]), ("1", (3, 1), [[1]]), ("2,1,0,0", (3, 4), [[2], [1], [0], [0]]),
    ("stretch", (6, 3), [[0], [2], [5]]), ("sum", (6, 3), [[0, 1], [2, 3], [4, 5]]),
])
def test_layer_maps_by_words(words, depths, layers):
    assert named_layers(words, *depths) == layers


@pytest.mark.parametrize(("words", "said"), [
    ("0,2", "layer map 0,2: the receiving stack has 3 layers, the origin's layers are 0 to 5"),
    ("0,2,6", "layer map 0,2,6: the receiving stack has 3 layers, the origin's layers are 0 to 5"),
    ("0,,2", "unknown layer map"), ("0+,1,2", "unknown layer map"), ("-1,0,1", "unknown layer map"),
    ("0, 1, 2", "unknown layer map"), ("", "unknown layer map"), ("strech", "did you mean 'stretch'"),
])
def test_bad_layer_maps_are_one_sentence(words, said):
    with pytest.raises(UserError, match=said) as error:
        named_layers(words, 6, 3)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("pair", [("A", "B"), ("down_weight", "up_weight")])
def test_sums_are_as_many_averages_as_there_are_layers(pair):
    """In products: of a low-rank pair, of a bottleneck."""
    torch.manual_seed(4)
    if pair == ("A", "B"):
        layers = [{"A": torch.randn(2, 9), "B": torch.randn(7, 2)} for _ in range(3)]
        products = [lambda one: one["B"] @ one["A"]]
    else:
        layers = [{"down_weight": torch.randn(4, 6), "down_bias": torch.randn(4),
                   "up_weight": torch.randn(6, 4), "up_bias": torch.randn(6)} for _ in range(3)]
        products = [lambda one: one["up_weight"] @ one["down_weight"],
                    lambda one: one["up_weight"] @ one["down_bias"], lambda one: one["up_bias"]]
    mean, total = average_layers(layers), average_layers(layers, sums=True)
    for product in products:
        assert torch.allclose(product(total), 3 * product(mean), atol=1e-4)
        assert product(mean).abs().max() > 0.05
    one = average_layers(layers[:1], sums=True)
    assert all(torch.equal(one[role], tensor) for role, tensor in layers[0].items())


def test_a_summed_bottleneck_adds_what_its_layers_add_one_by_one():
    """Without the nonlinearity, of layers whose units read and write the same subspaces."""
    draw = torch.Generator().manual_seed(6)
    first = {"down_weight": torch.randn(4, 6, generator=draw), "down_bias": torch.randn(4, generator=draw),
             "up_weight": torch.randn(6, 4, generator=draw), "up_bias": torch.randn(6, generator=draw)}
    turn = torch.linalg.qr(torch.randn(4, 4, generator=draw))[0]
    second = {"down_weight": turn @ first["down_weight"], "down_bias": turn @ first["down_bias"],
              "up_weight": 0.5 * first["up_weight"] @ turn.T, "up_bias": torch.randn(6, generator=draw)}
    x = torch.randn(6, generator=draw)

    def adds(one):
        return one["up_weight"] @ (one["down_weight"] @ x + one["down_bias"]) + one["up_bias"]

    wanted = adds(first) + adds(second)
    assert torch.allclose(adds(average_layers([first, second], sums=True)), wanted, atol=1e-4)
    assert torch.allclose(adds(average_layers([first, second])), wanted / 2, atol=1e-4)


# ---- methods of which layers cannot be mixed


def thinned(load, name, words, kinds=KINDS, library="peft", strategy="pad"):
    """A module of a Llama of two layers, and its port to one of one layer, each with the host that has it."""
    method = MethodSpec(name, library, *kinds[name], 1e-3)
    hosts = load("llama", 32, 2, 4), load("llama", 32, 1, 4)
    one, other = (attach(host, method) for host in hosts)
    done = port(noisy(one, 1), PortContext(hosts[0].spec, hosts[1].spec, other.init_parameters(0),
                                           PortSpec("mine", strategy, words)))
    put(hosts[0], one.to_parameters(noisy(one, 1)))
    put(hosts[1], other.to_parameters(done.module))
    return hosts


def changes(host, path):
    """What peft adds to a site's weight in each layer."""
    return [layer.get_submodule(path).get_delta_weight("module").double()
            for layer in host.model.model.layers]


@pytest.mark.parametrize("name", ["fourierft", "c3a"])
@pytest.mark.parametrize(("words", "times"), [("average", 0.5), ("sum", 1), ("0+1", 0.5)])
def test_what_adds_up_by_itself_is_mixed_to_the_mean_or_the_sum_of_its_changes(load, name, words, times):
    one, other = thinned(load, name, words)
    for path in ("self_attn.q_proj", "mlp.down_proj"):
        wanted = times * sum(changes(one, path))
        assert torch.allclose(changes(other, path)[0], wanted, atol=1e-6) and wanted.abs().max() > 1e-3


def test_two_splits_of_one_product_would_average_to_nothing(load):
    """LoHa's change is (w1_a w1_b) * (w2_a w2_b): two signs change nothing of it, and the mean of the factors
    is 0."""
    one = {role: torch.randn(size) for role, size in (("w1_a", (6, 2)), ("w1_b", (2, 5)), ("w2_a", (6, 2)),
                                                      ("w2_b", (2, 5)))}
    other = {role: -tensor for role, tensor in one.items()}

    def change(parts):
        return (parts["w1_a"] @ parts["w1_b"]) * (parts["w2_a"] @ parts["w2_b"])

    assert torch.equal(change(one), change(other))
    assert not change({role: (one[role] + other[role]) / 2 for role in one}).any()
    with pytest.raises(UserError, match="no mean of several layers' w1_a is defined"):
        check_mixed(one, sums=False)


@pytest.mark.parametrize("words", ["average", "sum", "0+1"])
@pytest.mark.parametrize("name", ["loha", "lokr", "hra", "oft", "vera", "randlora", "vblora"])
def test_methods_that_act_by_several_factors_are_mixed_by_no_layer_map(load, name, words):
    config, typed = KINDS[name][0], words.replace("+", ".")
    with pytest.raises(UserError, match=rf"port from '.*' to '.*' by layer map '{typed}': of {config} at "
                       r"decoder.0.query no mean of several layers' \w+ is defined: .*; use a layer map of "
                       r"single layers: stretch, skip or cka \(--layer-map stretch; in a study "
                       r"port\.mine\.layer_map=stretch\)$") as said:
        thinned(load, name, words)
    assert "\n" not in str(said.value)
    thinned(load, name, "stretch")


@pytest.mark.parametrize("strategy", ["pad", "random"])
@pytest.mark.parametrize("name", ["compacter", "prefix", "unipelt", "loreft", "scaled_parallel"])
def test_methods_of_adapters_without_a_mean_are_refused(load, name, strategy):
    with pytest.raises(UserError, match=r"'average': of \w+Config at decoder\.\d\.\w+ no mean of several"):
        thinned(load, name, "average", adapters_methods.KINDS, "adapters", strategy)


@pytest.mark.parametrize(("name", "role"), [("ia3", "ia3_l"), ("ln", "weight"), ("dora", "magnitude")])
def test_what_multiplies_has_a_mean_and_no_sum(load, name, role):
    one, other = thinned(load, name, "average")
    ours, theirs = (dict(host.model.named_parameters()) for host in (other, one))
    found = [key for key in ours if any(part in key for part in ("ia3_l", "ln_tuning", "magnitude"))]
    for key in found:
        both = [theirs[key.replace("layers.0.", f"layers.{layer}.")] for layer in (0, 1)]
        assert torch.allclose(ours[key], sum(both) / 2), key
    assert found
    with pytest.raises(UserError, match=f"no sum of several layers' {role}"):
        thinned(load, name, "sum")
