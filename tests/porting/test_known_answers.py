"""Ports whose answer is known: to a host that computes the same in a hidden basis, a module must do what it
does on the origin. Each answer is shown to be missed under other maps."""

from itertools import permutations, product

import pytest
import scipy.linalg
import torch

from portability.core.architectures import FAMILIES
from portability.core.errors import UserError
from portability.core.specs import HostShape, MethodSpec
from portability.porting import maps as porting_maps
from portability.porting.activations import Moments, Reader
from portability.porting.alignment import align
from portability.porting.heads import Cross, attention_maps, flipped, polar, signed_permutations, turned
from portability.porting.measured import by_moments
from portability.porting.strategies import STRATEGIES
from portability.porting.strategies.corr import CORR
from portability.porting.strategies.procrustes import PROCRUSTES
from support.hidden import READ, Basis, Mapped, Scene, answers, identity, noise, rotation, scenes, shuffled
from support.pairs import representatives
from support.peft_methods import KINDS

LORA = MethodSpec("lora", "peft", *KINDS["lora"], 1e-3)
WHOLE = {"values": True, "meetings": True, "heads": True}
BASES = {  # family, what is hidden
    "llama, turned, folded": ("llama", Basis("turned", folded=True, flipped=True, **WHOLE)),
    "llama, permuted": ("llama", Basis("permuted")),
    "llama, permuted, signed": ("llama", Basis("permuted", flipped=True, heads=True, signed=True)),
    "llama, stretched": ("llama", Basis("turned", folded=True, stretched=True)),
    "llama, the same": ("llama", Basis("none", units=False)),
    "gemma2, heads turned": ("gemma2", Basis("permuted", flipped=True, **WHOLE)),
    "bert, permuted": ("bert", Basis("permuted")),
    "bert, heads turned": ("bert", Basis("permuted", **WHOLE)),
    "opt, heads turned": ("opt", Basis("permuted", **WHOLE)),
    "gpt2, heads turned": ("gpt2", Basis("permuted", **WHOLE)),
    "t5, permuted": ("t5", Basis("permuted", flipped=True, heads=True)),
    "t5, turned, folded": ("t5", Basis("turned", folded=True, flipped=True, **WHOLE)),
}
TURNED = [name for name in BASES if "turned" in name]
NARROW = {f"{name}, narrow": (*row, 16) for name, row in BASES.items()}  # fewer coordinates than tokens
FAR = {"llama, gains far apart": (*BASES["llama, turned, folded"], 32, 2, 4, (.02, 10.0))}
FITTED = [  # a strategy on each hidden basis that it finds, but for that which is none
    *(("procrustes", name) for name in ["llama, permuted", "bert, permuted", *TURNED]),
    *(("embed", name) for name in NARROW if "turned" in name or "stretched" in name),
    *(("rebasin", name) for name in ("llama, permuted", "bert, permuted"))]
EIGHT = tuple(" ".join(READ[first:first + 3]) for first in range(0, 24, 3))


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return scenes(tmp_path_factory, BASES | NARROW | FAR)


def spoilt(strategy, spoil):
    """A strategy whose maps are changed."""
    return Mapped(strategy.maps, spoil, strategy.needs, strategy.by_unit)


@pytest.mark.parametrize("name", BASES)
def test_the_true_maps_carry_a_lora_exactly_and_others_do_not(scene, name):
    here = scene(name)
    bare, hidden = answers(here.load(here.origin)), answers(here.load(here.receiving))
    assert (here.here(hidden) - bare).norm() <= 1e-5 * bare.norm(), "a hidden host computes the same"
    assert here.error(LORA, here.true()) <= 1e-5
    assert here.error(LORA, here.true(noise)) > .3
    if name == "llama, the same":
        assert here.error(LORA, "copy") == 0
        return
    assert here.error(LORA, "copy") > .3 and here.error(LORA, here.true(identity)) > .3
    with pytest.raises(UserError, match="carries nothing"):
        here.port(LORA, here.true(torch.zeros_like))


def test_a_host_that_is_the_same_is_found(scene):
    here = scene("llama, the same")
    assert here.error(LORA, "procrustes") <= 1e-5 and here.error(LORA, "rebasin") == 0


@pytest.mark.parametrize("name", ["llama, the same", "llama, permuted", "llama, permuted, signed",
                                  "bert, permuted", "t5, permuted"])
def test_corr_finds_every_signed_permutation_and_nothing_else(scene, name):
    """By 8 texts, longer than the reference's: fewer tokens than twice the widest space's 64 coordinates are
    refused, and 8 sentences have 55."""
    here = scene(name)
    assert here.error(LORA, "corr", texts=EIGHT, tokens=128) <= (0 if name == "llama, the same" else 1e-5)
    assert here.error(LORA, spoilt(CORR, shuffled)) > .3
    if name == "llama, permuted, signed":
        assert here.error(LORA, "corr", signed=True) > .1


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_embedding_and_head_are_carried_too(tmp_path, family):
    """With more tokens than coordinates: outside of what they span a map of the embedding is free. The T5's
    head is its embedding, with states scaled by the root of the width below it, the hidden one's is not."""
    here = Scene(tmp_path / "scene", family, Basis("turned", folded=True, flipped=True), hidden=16)
    ties = [here.load(spec).model.config.tie_word_embeddings for spec in (here.origin, here.receiving)]
    assert family != "t5" or ties == [True, False]
    ends = MethodSpec("ends", "portability", "LoRA", {
        "r": 4, "alpha": 8, "sites": ["embedding", "head", "attention"], "subtract": "product"}, 1e-3)
    assert here.error(ends, "procrustes") <= 1e-4
    assert here.error(ends, spoilt(PROCRUSTES, identity)) > .3


@pytest.mark.parametrize("family", representatives(
    [name for name in FAMILIES if name != "deberta-v2"], "distilbert", "qwen3", "bart", "phi3"))
def test_every_familys_spaces_are_found(family, tmp_path):
    """Of DeBERTa no host in a hidden basis is made."""
    here = Scene(tmp_path / "scene", family, Basis("permuted", heads=True), layers=1)
    assert here.error(LORA, "procrustes") <= 1e-5 and here.error(LORA, "corr") <= 1e-5
    assert here.error(LORA, "copy") > .3


@pytest.mark.parametrize("name", TURNED)
def test_corr_finds_no_rotation(scene, name):
    assert scene(name).error(LORA, "corr") > .3


@pytest.mark.parametrize(("strategy", "name"), FITTED)
def test_a_strategy_finds_a_hidden_basis_and_misses_the_answer_with_other_maps(scene, strategy, name):
    here = scene(name)
    assert here.error(LORA, strategy) <= 1e-5
    for spoil in (identity, noise):
        assert here.error(LORA, spoilt(STRATEGIES[strategy], spoil)) > .9
    with pytest.raises(UserError, match="carries nothing"):
        here.port(LORA, spoilt(STRATEGIES[strategy], torch.zeros_like))


def test_corrs_maps_as_zeros_carry_nothing(scene):
    with pytest.raises(UserError, match="carries nothing"):
        scene("llama, permuted").port(LORA, spoilt(CORR, torch.zeros_like))


@pytest.mark.parametrize(("name", "least"), [("llama, gains far apart", .8), ("llama, turned, folded", .3),
                                             ("t5, turned, folded", .6)])
def test_gains_that_are_not_folded_miss_the_answer(scene, monkeypatch, name, least):
    """The reference's 1.30 is SmolLM2's. Measured here: .31 where gains lie between .5 and 1.5 (T5 .63), .85
    from .02 to 10; of a host of two layers, whose answers saturate, it does not become more."""
    here = scene(name)
    assert here.error(LORA, here.true()) <= 1e-5
    monkeypatch.setattr(porting_maps, "fold", lambda host, space: None)
    assert here.error(LORA, here.true()) > least


def test_procrustes_fails_where_units_are_stretched(scene):
    """Known to fail: what a unit's two matrices share of its size shows in no rotation."""
    assert .02 < scene("llama, stretched").error(LORA, "procrustes") < .5


@pytest.mark.parametrize("name", TURNED)
def test_a_map_from_before_the_activation_misses_the_answer(scene, name):
    """Before it the coordinates of the feed-forward network do not fill their space."""
    def maps(context, pairs):
        return by_moments(context, pairs, lambda found: found.cross, polar, turned, alike=False)

    assert scene(name).error(LORA, Mapped(maps, needs=PROCRUSTES.needs)) > .3


def test_too_few_tokens_are_refused_and_would_miss_the_answer(scene):
    """Of a width of 64."""
    def forced(context, pairs):
        hosts = context.origin_host(), context.receiving_host()
        read = align(*(host.tokenizer for host in hosts), context.calibration().texts, 64)
        assert read.tokens < 32

        def moments(origin, receiving, pairs, texts, grams):
            x = Reader(origin, [one for one, _ in pairs]).read(*read.origin)
            y = Reader(receiving, [other for _, other in pairs]).read(*read.receiving)
            found = {}
            for one, other in pairs:
                found[one, other] = Moments.of(x[one].shape[1], y[other].shape[1])
                found[one, other].add(x[one], y[other])
            return found

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("portability.porting.measured.moments", moments)
            return PROCRUSTES.maps(context, pairs)

    here = scene("bert, heads turned")
    with pytest.raises(UserError, match="tokens are too few to compare spaces of 64 coordinates: at least"):
        here.port(LORA, "procrustes", tokens=60, texts=READ)
    with pytest.raises(UserError, match="texts 'sentences' give .* tokens .* at least 128 are needed"):
        here.port(LORA, "procrustes", texts=READ[:4])
    few = Mapped(forced, needs=PROCRUSTES.needs)
    assert here.error(LORA, few, texts=READ[:4]) > .3


@pytest.mark.parametrize(("strategy", "name"), [("procrustes", "llama, turned, folded"),
                                                ("corr", "t5, permuted")])
def test_ranks_do_not_grow(scene, strategy, name):
    done, _ = scene(name).port(LORA, strategy)
    for slot, tensor in done.module.tensors.items():
        if slot.role == "B":
            product = tensor.flatten(0, -2) @ done.module.tensors[slot._replace(role="A")].flatten(1)
            assert torch.linalg.matrix_rank(product) <= 4


def test_a_classification_head_reads_the_same(scene):
    here = scene("bert, heads turned")
    head = {"head.weight": torch.randn(2, 32), "head.bias": torch.randn(2)}
    found = here.head(head, "procrustes")
    scores = [answers(here.load(spec)).float() @ one["head.weight"].T + one["head.bias"]
              for spec, one in ((here.origin, head), (here.receiving, found))]
    plain = answers(here.load(here.receiving)).float() @ head["head.weight"].T + head["head.bias"]
    assert torch.allclose(*scores, atol=1e-4) and not torch.allclose(plain, scores[0], atol=.5)


# ---- the maps against slow formulas


def crossed(*sizes):
    return torch.randn(sizes, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_polar_is_scipys_orthogonal_procrustes():
    x, turn = crossed(40, 6), rotation(6, torch.Generator().manual_seed(1))
    y = x @ turn + .1 * crossed(40, 6).flip(0)
    found, score = polar((x.T @ y)[None])
    wanted, scale = scipy.linalg.orthogonal_procrustes(x.numpy(), y.numpy())
    assert torch.allclose(found[0], torch.from_numpy(wanted)) and float(score[0]) == pytest.approx(scale)
    for sizes in ((5, 7), (7, 5)):  # of unequal widths: orthonormal rows or columns
        one = polar(crossed(1, *sizes))[0][0]
        small = one @ one.T if sizes[0] < sizes[1] else one.T @ one
        assert torch.allclose(small, torch.eye(5, dtype=torch.float64), atol=1e-9)


def test_turned_is_the_best_angle_of_each_pair():
    moments = crossed(1, 6, 6)
    found, score = turned(moments)
    for pair in range(3):
        part = moments[0][[pair, pair + 3]][:, [pair, pair + 3]]
        angles = torch.linspace(-torch.pi, torch.pi, 20001, dtype=torch.float64)
        gained = angles.cos() * part.trace() + angles.sin() * (part[0, 1] - part[1, 0])
        best = angles[gained.argmax()]
        wanted = torch.stack([torch.stack([best.cos(), best.sin()]), torch.stack([-best.sin(), best.cos()])])
        assert torch.allclose(found[0][[pair, pair + 3]][:, [pair, pair + 3]], wanted, atol=1e-3)
    assert float(score[0]) == pytest.approx(float((found[0] * moments[0]).sum()))
    half = flipped(moments)[0][0]
    every = [torch.tensor(signs * 2, dtype=torch.float64).diag() for signs in product((1, -1), repeat=3)]
    assert torch.equal(half, max(every, key=lambda one: float((one * moments[0]).sum())))


@pytest.mark.parametrize("sizes", [(5, 5), (4, 6), (6, 4)])
def test_signed_permutations_are_the_best_of_all(sizes):
    moments = crossed(1, *sizes)
    found, score = signed_permutations(moments)
    few, wide = min(sizes), moments[0] if sizes[0] <= sizes[1] else moments[0].T
    best = max(permutations(range(max(sizes)), few),
               key=lambda order: sum(float(wide[i, j].abs()) for i, j in enumerate(order)))
    wanted = torch.zeros_like(wide)
    for i, j in enumerate(best):
        wanted[i, j] = wide[i, j].sign()
    assert torch.equal(found[0], wanted if sizes[0] <= sizes[1] else wanted.T)
    assert float(score[0]) == pytest.approx(sum(float(wide[i, j].abs()) for i, j in enumerate(best)))


@pytest.mark.parametrize("heads", [3, 2])
@pytest.mark.parametrize("rotary", [False, True])
def test_heads_are_matched_as_the_best_of_all(heads, rotary):
    """3 key-value heads of 2 query heads each, of size 4, to as many or one fewer."""
    origin, receiving = (HostShape("llama", {"decoder": 1}, 8, 8, 2 * kv, kv, 4) for kv in (3, heads))
    cross = Cross(crossed(24, 8 * heads), crossed(12, 4 * heads) * 3, crossed(12, 4 * heads).flip(0) * 5)
    meet = turned if rotary else polar
    found = attention_maps(cross, origin, receiving, polar, turned if rotary else None)

    def gained(part, solve=polar):
        return float((solve(part[None])[0][0] * part).sum())

    def block(matrix, a, b):
        return matrix[4 * a:4 * a + 4, 4 * b:4 * b + 4]

    def asking(a, b):
        return max(sum(gained(block(cross.query, 2 * a + i, 2 * b + j), meet) for i, j in enumerate(order))
                   for order in ((0, 1), (1, 0)))

    places = list(product(range(3), range(heads)))
    scores = [{(a, b): asking(a, b) for a, b in places},
              {(a, b): gained(block(cross.key, a, b), meet) for a, b in places},
              {(a, b): gained(block(cross.value, a, b)) for a, b in places}]
    best = max(permutations(range(3), heads), key=lambda order: sum(
        one[a, b] / sum(one.values()) for one in scores for b, a in enumerate(order)))
    kept = torch.zeros(3, heads)
    for b, a in enumerate(best):
        kept[a, b] = 1
        assert torch.allclose(block(found.value, a, b),
                              torch.from_numpy(scipy.linalg.polar(block(cross.value, a, b).numpy())[0]))
        order = max(((0, 1), (1, 0)), key=lambda order: sum(
            gained(block(cross.query, 2 * a + i, 2 * b + j), meet) for i, j in enumerate(order)))
        asked = sum(block(cross.query, 2 * a + i, 2 * b + j) for i, j in enumerate(order))
        both = block(cross.key, a, b) / block(cross.key, a, b).norm() + asked / asked.norm()
        assert torch.allclose(block(found.key, a, b), meet(both[None])[0][0])
        for i, j in product((0, 1), repeat=2):
            here = (2 * a + i, 2 * b + j)
            assert torch.equal(block(found.query, *here), block(found.key, a, b) * (order[i] == j))
            assert torch.equal(block(found.mixed, *here), block(found.value, a, b) * (order[i] == j))
    for matrix in (found.key, found.value):  # nothing goes from one head to another
        assert torch.equal(matrix * (1 - kept.repeat_interleave(4, 0).repeat_interleave(4, 1)),
                           torch.zeros_like(matrix))


def test_values_of_heads_of_other_sizes_are_mapped():
    origin, receiving = (HostShape("llama", {"decoder": 1}, 8, 8, 2, 2, size) for size in (4, 6))
    cross = Cross(crossed(8, 12), crossed(8, 12), crossed(8, 12))
    value = attention_maps(cross, origin, receiving, polar).value
    assert torch.allclose(value @ value.T, torch.eye(8, dtype=torch.float64), atol=1e-9)
