"""Layer maps, and averaging of products."""

import pytest
import torch

from portability.core.errors import UserError
from portability.porting.layer_maps import LAYER_MAPS, average_layers, named_layers


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


def test_compacters_blocks_are_averaged_as_products():
    torch.manual_seed(3)
    one = {"down_left": torch.randn(4, 8, 1), "down_right": torch.randn(4, 1, 2)}
    two = {"down_left": one["down_left"] * 3, "down_right": one["down_right"] / 3}
    got = average_layers([one, two])
    assert torch.allclose(got["down_left"] @ got["down_right"], one["down_left"] @ one["down_right"],
                          atol=1e-5)


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


@pytest.mark.parametrize("pair", [("A", "B"), ("down_weight", "up_weight"), ("down_left", "up_left")])
def test_sums_are_as_many_averages_as_there_are_layers(pair):
    """In products: of a low-rank pair, of a bottleneck, of Compacter's blocks."""
    torch.manual_seed(4)
    if pair == ("A", "B"):
        layers = [{"A": torch.randn(2, 9), "B": torch.randn(7, 2)} for _ in range(3)]
        products = [lambda one: one["B"] @ one["A"]]
    elif "up_weight" in pair:
        layers = [{"down_weight": torch.randn(4, 6), "down_bias": torch.randn(4),
                   "up_weight": torch.randn(6, 4), "up_bias": torch.randn(6)} for _ in range(3)]
        products = [lambda one: one["up_weight"] @ one["down_weight"],
                    lambda one: one["up_weight"] @ one["down_bias"]]
    else:
        layers = [{"down_left": torch.randn(4, 8, 1), "down_right": torch.randn(4, 1, 2),
                   "up_left": torch.randn(4, 2, 1), "up_right": torch.randn(4, 1, 8)} for _ in range(3)]
        products = [lambda one: (one["up_left"] @ one["up_right"]).transpose(1, 2)
                    @ (one["down_left"] @ one["down_right"]).transpose(1, 2)]
    mean, total = average_layers(layers), average_layers(layers, sums=True)
    for product in products:
        assert torch.allclose(product(total), 3 * product(mean), atol=1e-4)
        assert product(mean).abs().max() > 0.05
    one = average_layers(layers[:1], sums=True)
    assert all(torch.equal(one[role], tensor) for role, tensor in layers[0].items())
