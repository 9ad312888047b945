"""Factors, shared tokens and controls: each against numpy or a formula written again."""

import numpy as np
import pytest
import torch

from portability.core.architectures import Slot
from portability.core.errors import UserError
from portability.core.seeds import stream
from portability.inits.extraction import ExtractionOptions, extract
from portability.inits.extraction.factors import low_rank
from portability.inits.extraction.options import Place
from portability.inits.extraction.sensitivity import Offload
from portability.inits.kinds import noise, shuffle_layers, singular_pairs
from portability.methods.module import equal
from support.extraction_slow import changed_host, head_of, plain_model, seeds_of, truncated
from support.tiny import FAMILIES, WORDS


def product(tensors, slot):
    """B A of a slot's pair, as a matrix."""
    pair = [tensors[slot._replace(role=role)] for role in "AB"]
    return pair[1].flatten(0, -2).double() @ pair[0].flatten(1).double()


@pytest.mark.parametrize("size", [(12, 20), (20, 12), (9, 9), (560, 600), (600, 560)])
def test_pairs_are_numpys_truncated_decomposition(size):
    matrix = torch.randn(size, generator=torch.Generator().manual_seed(1))
    values = np.linalg.svd(matrix.double().numpy(), compute_uv=False)
    for split in ("reference", "balanced"):
        pair_a, pair_b, share = low_rank(matrix, 4, split)
        assert pair_a.shape == (4, size[1]) and pair_b.shape == (size[0], 4)
        assert np.allclose(pair_b.double() @ pair_a.double(), truncated(matrix.double().numpy(), 4),
                           atol=2e-5)
        assert share == pytest.approx((values[:4] ** 2).sum() / (values**2).sum(), rel=1e-6)
        norms = {"reference": (np.ones(4), values[:4]), "balanced": (values[:4] ** 0.5,) * 2}[split]
        assert np.allclose(pair_a.norm(dim=1), norms[0], rtol=1e-5) and np.allclose(pair_b.norm(dim=0),
                                                                                    norms[1], rtol=1e-5)
        assert bool((pair_a.gather(1, pair_a.abs().argmax(1, keepdim=True)) > 0).all())


@pytest.mark.parametrize("size", [(6, 8), (600, 610)])
def test_a_matrix_of_lower_rank_gives_no_numbers_that_are_not_finite(size):
    draw = torch.Generator().manual_seed(2)
    matrix = torch.randn(size[0], 2, generator=draw) @ torch.randn(2, size[1], generator=draw)
    pair_a, pair_b, share = low_rank(matrix, 4, "reference")
    assert torch.isfinite(pair_a).all() and torch.allclose(pair_b @ pair_a, matrix, atol=1e-4)
    assert share == pytest.approx(1.0)


def test_a_matrix_of_zeros_gives_pairs_of_zero_product():
    pair_a, pair_b, share = low_rank(torch.zeros(5, 6), 2, "balanced")
    assert not (pair_b @ pair_a).any() and share == 1.0


# ---- vocabularies


OTHER = [word for word in reversed(WORDS) if word not in ("film", "grim", "warm")] + ["brandnew", "words"]


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5", "bert"])
def test_tokens_are_matched_by_text_and_others_are_zero(family, make_host, tmp_path):
    teacher = make_host(family, 32, 2, 4)
    student = changed_host(tmp_path, family, words=OTHER, vocab_size=len(OTHER) + 3)
    options = ExtractionOptions(rank=4, sites=("embedding", "head"), scores="ones")
    module, report = extract(teacher, student, (), options, 0)
    model = plain_model(teacher)
    weights = {"embedding": model.get_input_embeddings().weight}
    if family != "bert":
        weights["head"] = model.get_output_embeddings().weight
    assert {slot.site for slot in module.tensors} == weights.keys()
    for site, weight in weights.items():
        expected = np.zeros((len(OTHER) + 3, 32))
        for row, word in enumerate(OTHER):
            if word in WORDS:
                expected[row] = weight[WORDS.index(word)].detach().numpy()
        change = product(module.tensors, Slot("shared", 0, site, "A"))
        change = change.T if site == "embedding" else change
        assert np.allclose(change, truncated(expected, 4), atol=1e-5)
    assert report.shared_tokens == len(set(OTHER) & set(WORDS)) == len(WORDS) - 3
    labels = {slot[2:]: axes for slot, axes in module.axes.items()}
    assert labels["embedding", "A"] == ("rank", "vocab") and labels["embedding", "B"] == ("hidden", "rank")
    if family != "bert":
        assert labels["head", "A"] == ("rank", "hidden") and labels["head", "B"] == ("vocab", "rank")


def test_equal_vocabularies_keep_rows_beyond_the_tokenizer(tmp_path):
    hosts = [changed_host(tmp_path / name, "llama", vocab_size=len(WORDS) + 5) for name in ("one", "two")]
    options = ExtractionOptions(rank=4, sites=("embedding",), scores="ones")
    module, report = extract(*hosts, (), options, 0)
    assert report.shared_tokens == len(WORDS) + 5
    assert bool(module.tensors[Slot("shared", 0, "embedding", "A")][:, -5:].any())


def test_no_common_token_is_refused(make_host, tmp_path):
    student = changed_host(tmp_path, "llama", words=[f"other{i}" for i in range(29)] + ["x", "y"])
    options = {"rank": 2, "scores": "ones"}
    with pytest.raises(UserError, match="only 0 tokens in common"):
        extract(make_host("llama"), student, (), ExtractionOptions(**options), 0)
    extract(make_host("llama"), student, (), ExtractionOptions(**options, sites=("ffn",)), 0)


@pytest.mark.parametrize("count", [1, 3])
def test_fewer_common_tokens_than_the_rank_are_refused_before_any_work(count, make_host, tmp_path,
                                                                       monkeypatch):
    words = [*WORDS[7 : 7 + count], *(f"other{i}" for i in range(31 - count))]
    student = changed_host(tmp_path, "llama", words=words)
    monkeypatch.setattr(Offload, "put", lambda *given: pytest.fail("work began"))
    with pytest.raises(UserError, match=f"only {count} tokens in common, too few for pairs of rank 4; leave "
                       "out embedding "
                                        r"and head \(the sites of the method\)") as raised:
        extract(make_host("llama"), student, seeds_of("llama"), ExtractionOptions(rank=4), 0)
    assert "\n" not in str(raised.value)
    monkeypatch.undo()
    extract(make_host("llama"), student, seeds_of("llama"), ExtractionOptions(rank=4,
                                                                              sites=("attention", "ffn")), 0)


@pytest.mark.parametrize("structure", ["block", "aligned"])
@pytest.mark.parametrize(("family", "size"), [("llama", 32), ("bert", 32), ("t5", 32)])
def test_an_embeddings_offset_is_that_of_its_out_by_in_matrix(family, size, structure, make_host):
    """The matrix takes tokens to vectors: rows are entries of the residual stream, columns tokens."""
    options = ExtractionOptions(rank=4, structure=structure, blocks=True)
    hosts = make_host(family, 64, 2, 8), make_host(family, size, 2, 4)
    _, report = extract(*hosts, seeds_of(family), options, 0, head_of(family, 64))
    whole = plain_model(hosts[0]).get_input_embeddings().weight.detach().T
    row, column = report.offsets[Place("shared", 0, "embedding")]
    assert torch.equal(whole[row : row + size, column:], report.blocks.tensors[Slot("shared", 0, "embedding",
                                                                                    "D")])


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_a_tied_teacher_gives_one_cut_to_embedding_and_head(family, make_host):
    for structure in ("block", "neurons", "random_block", "random_entries", "aligned"):
        options = ExtractionOptions(rank=4, structure=structure, sites=("embedding", "head"))
        module, report = extract(make_host(family, 64, 2, 8), make_host(family, 32, 2, 4), seeds_of(family),
                                 options, 0)
        both = [product(module.tensors, Slot("shared", 0, site, "A")) for site in ("embedding", "head")]
        assert torch.allclose(both[0].T, both[1], atol=1e-5), structure
        assert len({*report.captured.values()}) == 1
    options = ExtractionOptions(rank=4, structure="aligned", sites=("head",))
    alone = extract(make_host(family, 64, 2, 8), make_host(family, 32, 2, 4), seeds_of(family), options, 0)[0]
    assert torch.equal(product(alone.tensors, Slot("shared", 0, "head", "A")), both[1])


# ---- controls


@pytest.fixture(scope="module", params=FAMILIES)
def extracted(request, make_host):
    family = request.param
    teacher, student = make_host(family, 64, 4, 8), make_host(family, 32, 2, 4)
    module, _ = extract(teacher, student, seeds_of(family), ExtractionOptions(rank=4), 0, head_of(family, 64))
    return module, student


def shuffled(module, student, seed):
    return shuffle_layers(module, student, lambda stack: stream(seed, "extraction", "shuffle", stack))


CONTROLS = {
    "noise": lambda module, student, seed: noise(module, seed),
    "shuffled": shuffled,
    "pissa": lambda module, student, seed: module.map(singular_pairs(student,
                                                                              ExtractionOptions(rank=4))),
}


@pytest.mark.parametrize("name", CONTROLS)
def test_every_control_stands_on_the_same_slots_and_changes_them(name, extracted):
    module, again, other = (CONTROLS[name](*extracted, seed) for seed in (1, 1, 2))
    sizes = [{s: t.shape for s, t in one.tensors.items()} for one in (module, extracted[0])]
    assert sizes[0] == sizes[1] and all(torch.isfinite(t).all() for t in module.tensors.values())
    assert not equal(module, extracted[0]) and equal(module, again)
    assert equal(module, other) == (name != "noise"), "two layers have one other order"


def test_pissa_is_the_students_own_decomposition(make_host):
    student = make_host("gpt2", 32, 2, 4)
    own = singular_pairs(student, ExtractionOptions(rank=4, split="balanced"))
    values = dict(plain_model(student).named_parameters())
    whole = values["transformer.h.1.attn.c_attn.weight"].detach().double().numpy().T
    for place, site in enumerate(("query", "key", "value")):
        expected = truncated(whole[32 * place : 32 * place + 32], 4)
        assert np.allclose(product(own, Slot("decoder", 1, site, "A")), expected, atol=1e-5)
    words = values["transformer.wte.weight"].detach().double().numpy()
    assert np.allclose(product(own, Slot("shared", 0, "embedding", "A")), truncated(words.T, 4), atol=1e-5)
    slot = Slot("decoder", 1, "query", "A")
    assert own[slot].norm(dim=1).numpy() == pytest.approx(
        np.linalg.svd(whole[:32], compute_uv=False)[:4] ** 0.5, rel=1e-4)


def test_noise_has_the_norms_of_the_extraction(extracted):
    tensors, drawn = extracted[0].tensors, noise(extracted[0], 3).tensors
    for slot in [s for s in tensors if s.role == "A"]:
        want, have = product(tensors, slot), product(drawn, slot)
        assert float(have.norm()) == pytest.approx(float(want.norm()), rel=1e-4)
        assert float(drawn[slot].norm()) == pytest.approx(float(tensors[slot].norm()), rel=1e-4)
        cosine = float((want * have).sum() / want.norm() / have.norm())
        assert abs(cosine) < 0.5


def test_shuffled_layers_are_the_extracted_ones_in_another_order(extracted):
    module = extracted[0]
    for slot, tensor in shuffled(*extracted, 0).tensors.items():
        other = slot if slot.stack == "shared" else slot._replace(layer=1 - slot.layer)
        assert torch.equal(tensor, module.tensors[other])


def test_one_layer_cannot_be_shuffled(make_host):
    one = make_host("llama", 32, 1, 4)
    module = extract(one, one, seeds_of("llama"), ExtractionOptions(rank=4), 0)[0]
    with pytest.raises(UserError, match="no layers to exchange"):
        shuffled(module, one, 0)
