"""Every cut equals a slower search for it, and hosts that do not fit are refused with their sizes."""

from itertools import product

import numpy as np
import pytest
import torch

from portability.core.architectures import LORA_AXES
from portability.core.errors import UserError
from portability.core.seeds import stream
from portability.core.specs import HostShape
from portability.inits.extraction import ExtractionOptions, check_extraction, extract
from portability.inits.extraction.cuts import CUTS, LAYER_CHOICES, pending_cuts, residual_offset, window_sums
from support.extraction_slow import best_block, changed_host, head_of, seeds_of
from support.tiny import FAMILIES


def scores_of(m, n, seed=0):
    return torch.rand(m, n, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("have", "want"), [((7, 9), (3, 4)), ((7, 9), (7, 4)), ((7, 9), (3, 9)),
                                            ((7, 9), (7, 9)), ((6, 5), (1, 1)), ((1, 8), (1, 3))])
def test_the_block_is_the_best_of_all(have, want):
    for seed in range(5):
        scores = scores_of(*have, seed)
        cut = CUTS["block"](scores, want, stream(0))
        assert cut.offset == best_block(scores.double().numpy(), *want)
        row, column = cut.offset
        part = scores[row : row + want[0], column : column + want[1]]
        assert torch.equal(cut.of(scores), part)
        assert cut.share(scores) == pytest.approx(float(part.sum() / scores.sum()), rel=1e-5)


def test_a_small_difference_under_a_large_sum_is_not_lost():
    """A summed-area table in fp32 would lose it: the sums here pass 2^24."""
    scores = torch.full((600, 600), 100.0)
    scores[511, 499] += 0.01
    assert float(scores.sum() + 0.01) == float(scores.sum())
    row, column = CUTS["block"](scores, (100, 100), stream(0)).offset
    assert row <= 511 < row + 100 and column <= 499 < column + 100


def test_equal_blocks_give_the_first():
    assert CUTS["block"](torch.ones(5, 6), (2, 3), stream(0)).offset == (0, 0)


def test_window_sums_are_the_sums_of_windows():
    values = scores_of(5, 6)
    for axis, size in product((0, 1), (1, 2, 5)):
        moved = np.moveaxis(values.numpy(), axis, 0).astype(np.float64)
        expected = np.stack([moved[i : i + size].sum(0) for i in range(len(moved) - size + 1)])
        assert np.allclose(np.moveaxis(window_sums(values, size, axis).numpy(), axis, 0), expected,
                           rtol=1e-12)


def test_rows_columns_and_neurons_are_the_largest_in_order():
    scores, (m, n) = scores_of(6, 7), (3, 4)
    table = scores.double().numpy()
    rows = sorted(sorted(range(6), key=lambda i: -table[i].mean())[:m])
    columns = sorted(sorted(range(7), key=lambda j: -table[:, j].mean())[:n])
    assert torch.equal(CUTS["rows_columns"](scores, (m, n), stream(0)).of(scores), scores[rows][:, columns])
    own = [sorted(sorted(range(7), key=lambda j, i=i: -table[i, j])[:n]) for i in rows]
    expected = torch.stack([scores[i, js] for i, js in zip(rows, own, strict=True)])
    assert torch.equal(CUTS["neurons"](scores, (m, n), stream(0)).of(scores), expected)


def test_random_cuts_are_of_their_kind_and_follow_the_seed():
    matrix = torch.arange(42.0).view(6, 7)
    entries = CUTS["random_entries"](matrix, (3, 4), stream(1)).of(matrix).flatten()
    assert len(entries.unique()) == 12 and torch.equal(entries, entries.sort().values)
    places = {CUTS["random_block"](matrix, (3, 4), stream(seed)).offset for seed in range(200)}
    assert places == set(product(range(4), range(4)))
    for kind in ("random_entries", "random_block"):
        one, same, other = (CUTS[kind](matrix, (3, 4), stream(seed)).of(matrix) for seed in (1, 1, 2))
        assert torch.equal(one, same) and not torch.equal(one, other)


def test_a_matrix_without_scores_has_a_share_of_zero():
    assert CUTS["block"](torch.zeros(3, 3), (2, 2), stream(0)).share(torch.zeros(3, 3)) == 0.0


def test_layers_are_chosen_by_name():
    totals = [3.0, 1.0, 5.0, 2.0, 3.0]
    chosen = {name: choice(totals, 3, stream(0)) for name, choice in LAYER_CHOICES.items()}
    assert chosen["sensitivity"] == [0, 2, 4] and chosen["first"] == [0, 1, 2] and chosen["last"] == [2, 3, 4]
    drawn = {tuple(LAYER_CHOICES["random"](totals, 3, stream(seed))) for seed in range(200)}
    assert len(drawn) == 10 and all(list(layers) == sorted(set(layers)) for layers in drawn)


# ---- aligned


TEACHER = HostShape("llama", {"decoder": 2}, hidden=10, ffn=9, heads=8, kv_heads=4, head_dim=4)
STUDENT = HostShape("llama", {"decoder": 2}, hidden=7, ffn=5, heads=2, kv_heads=2, head_dim=3)
CELLS = {"hidden": "d", "ffn": "f", "kv_heads": "k", "group": "g"}


def layer_scores(seed):
    """Site -> scores (out, in) of a layer of TEACHER."""
    def size(axes):
        return int(np.prod([TEACHER.size(axis) for axis in axes]))

    sides = {site: sides for site, sides in LORA_AXES.items() if "vocab" not in sides[0] + sides[1]}
    return {site: scores_of(size(out), size(into), seed + place)
            for place, (site, (into, out)) in enumerate(sides.items())}


def slow_aligned(layers):
    """Layer -> site -> set of kept (out, in) entries, by dictionaries of entries: axis by axis, then the
    residual stream."""
    windows, kept = {}, []
    entries = [[(site, axis_names(site), dict(np.ndenumerate(spread(site, part))))
                for site, part in layer.items()]
               for layer in layers]
    for layer in entries:
        sums: dict = {}
        for _, names, cells in layer:
            for place, score in cells.items():
                for name, index in zip(names, place, strict=True):
                    sums.setdefault(name, {}).setdefault(index, []).append(score)
        best = {}
        for name, by_index in sums.items():
            if name == "d":
                continue
            width = getattr(STUDENT, next((a for a, cell in CELLS.items() if cell == name), "head_dim"))
            line = [sum(by_index[i]) for i in range(len(by_index))]
            best[name] = max(range(len(line) - width + 1), key=lambda i: sum(line[i : i + width])), width
        windows[len(kept)] = best
        kept.append(best)
    inside = [[(site, names, {p: s for p, s in cells.items() if all(
        name == "d" or kept[at][name][0] <= i < sum(kept[at][name])
        for name, i in zip(names, p, strict=True))})
        for site, names, cells in layer] for at, layer in enumerate(entries)]
    line = [sum(s for layer in inside for _, names, cells in layer for p, s in cells.items()
                if p[names.index("d")] == i)
            for i in range(TEACHER.hidden)]
    first = max(range(len(line) - STUDENT.hidden + 1), key=lambda i: sum(line[i : i + STUDENT.hidden]))
    return first, [{site: {p: s for p, s in cells.items() if first <= p[names.index("d")] < first
                           + STUDENT.hidden}
                    for site, names, cells in layer} for layer in inside]


def axis_names(site):
    into, out = LORA_AXES[site]
    meet = "qk" if site in ("query", "key") else "vo"
    return [CELLS.get(axis, meet) for axis in (*out, *into)]


def spread(site, part):
    into, out = LORA_AXES[site]
    return part.double().numpy().reshape([TEACHER.size(axis) for axis in (*out, *into)])


@pytest.mark.parametrize("seed", range(4))
def test_aligned_cuts_share_every_axis(seed):
    layers = [layer_scores(100 * seed), layer_scores(100 * seed + 50)]
    pending = [pending_cuts(layer, TEACHER, STUDENT) for layer in layers]
    offset = residual_offset([matrix for layer in pending for matrix in layer.values()], STUDENT.hidden)
    first, kept = slow_aligned(layers)
    assert offset == first
    for layer, matrices, expected in zip(layers, pending, kept, strict=True):
        for site, matrix in matrices.items():
            cut, captured = matrix.cut(offset, STUDENT.hidden)
            wanted = torch.tensor(list(expected[site].values()))
            assert torch.equal(cut.of(layer[site]).flatten().double(), wanted), site
            assert captured == pytest.approx(float(wanted.sum()) / float(layer[site].double().sum()))


def test_whole_heads_are_kept_with_their_key_and_value():
    """Heads of one size, two query heads a key-value head: the one group with scores is found, whole."""
    teacher = HostShape("llama", {"decoder": 1}, hidden=4, ffn=4, heads=8, kv_heads=4, head_dim=3)
    student = HostShape("llama", {"decoder": 1}, hidden=4, ffn=4, heads=2, kv_heads=1, head_dim=3)
    scores = {site: torch.zeros(*size) for site, size in (
        ("query", (24, 4)), ("key", (12, 4)), ("value", (12, 4)), ("attention_out", (4, 24)))}
    scores["value"][6:9] = 1.0  # third key-value head
    scores["key"][0:3] = 0.5
    cuts = {site: matrix.cut(0, 4)[0] for site, matrix in pending_cuts(scores, teacher, student).items()}
    assert cuts["query"].offset == (12, 0) and cuts["query"].rows.flatten().tolist() == list(range(12, 18))
    assert cuts["key"].offset == cuts["value"].offset == (6, 0) and cuts["attention_out"].offset == (0, 12)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_aligned_extraction_has_one_residual_cut(family, make_host):
    options = ExtractionOptions(rank=2, structure="aligned")
    _, report = extract(make_host(family, 64, 3, 8), make_host(family, 32, 2, 4), seeds_of(family), options,
                        0, head_of(family, 64))
    stream_side = {place: 0 if place.site.endswith(("attention_out", "ffn_down", "embedding")) else 1
                   for place in report.offsets}
    found = {report.offsets[place][side] for place, side in stream_side.items() if report.offsets[place]}
    assert len(found) == 1
    heads = {place: offset[1 - stream_side[place]] for place, offset in report.offsets.items()
             if offset and place.stack != "shared" and not place.site.startswith("ffn")}
    assert heads and all(offset % 8 == 0 for offset in heads.values())


# ---- hosts that do not fit


@pytest.mark.parametrize(("teacher", "student", "options", "message"), [
    (("llama", 32, 2, 4), ("llama", 32, 3, 4), {}, "student .* has 3 decoder layers and teacher .* only 2"),
    (("llama", 32, 2, 4), ("llama", 64, 2, 4), {}, "decoder.0.ffn_down is 64 x 128 in student .* and only 32 "
     "x 64 in teacher"),
    (("llama", 32, 2, 4), ("llama", 64, 2, 4), {"sites": ("embedding",)}, "shared.0.embedding is 64 x 31 .* "
     "only 32 x 31"),
    (("llama", 64, 2, 8), ("llama", 64, 2, 4), {"structure": "aligned"}, "16 head_dim and teacher .* only 8"),
    (("llama", 32, 2, 4), ("gpt2", 32, 2, 4), {}, "a llama host and student .* a gpt2 one"),
    (("gpt2", 32, 2, 4), ("gpt2", 32, 2, 4), {"sites": ("ffn_gate",)}, "none of the sites ffn_gate"),
    (("bert", 32, 2, 4), ("bert", 32, 2, 4), {"sites": ("head",)}, "none of the sites head"),
    (("llama", 32, 2, 4), ("llama", 32, 2, 4), {"rank": 33}, "rank 33 is larger than the smaller side"),
])
def test_what_cannot_be_extracted_is_refused_with_its_sizes(teacher, student, options, message, make_host):
    with pytest.raises(UserError, match=message) as raised:
        extract(make_host(*teacher), make_host(*student), (),
                ExtractionOptions(**{"rank": 2, "scores": "ones", **options}), 0)
    assert "\n" not in str(raised.value)


def test_parts_that_only_one_host_has_are_refused(make_host, tmp_path):
    plain = changed_host(tmp_path, "t5", feed_forward_proj="relu")
    for pair in ((make_host("t5"), plain), (plain, make_host("t5"))):
        with pytest.raises(UserError, match="only one of .* has decoder ffn_gate"):
            check_extraction(*pair, (), ExtractionOptions(scores="ones"))
    options = ExtractionOptions(rank=2, scores="ones", sites=("attention",))
    assert extract(make_host("t5"), plain, (), options, 0)[0].entries > 0


@pytest.mark.parametrize("options", [
    {"layers": "middle"}, {"structure": "blok"}, {"split": "all"}, {"scores": "gradient"}])
def test_unknown_options_are_refused(options):
    with pytest.raises(UserError, match="extraction") as raised:
        ExtractionOptions(**options)
    assert str(next(iter(options.values()), "")).strip("()',") in str(raised.value)
