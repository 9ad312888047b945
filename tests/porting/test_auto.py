"""What embeddings tell of two hosts' coordinates, and what `auto` makes of it."""

import pytest

from portability.porting.basis import basis
from portability.porting.strategies.auto import choice
from support.hidden import Basis, hide


@pytest.mark.parametrize(("hidden", "inherited"), [
    (Basis("none", units=False), True), (Basis("permuted"), False), (Basis("turned", folded=True), False)])
def test_auto_copies_in_the_same_coordinates_alone(hidden, inherited, make_host, tmp_path):
    origin = make_host("llama", 32, 2, 4)
    receiving, _ = hide(origin, hidden, tmp_path / "hidden")
    found = basis(origin, receiving)
    assert found.inherited == inherited and found.shared == 1
    assert (found.identity == 1) == inherited and (found.rotation < 0.1) == inherited
    by_texts, by_weights = (choice(origin, receiving, found, texts).strategy for texts in (True, False))
    assert (by_texts, by_weights) == (("pad", "pad") if inherited else ("procrustes", "embed"))


def test_auto_never_cuts_or_pads_between_widths(make_host):
    origin, receiving = make_host("llama", 32, 2, 4), make_host("llama", 48, 2, 6)
    found = basis(origin, receiving)
    assert found.identity is None and not found.inherited
    for given in (found, None):
        assert choice(origin, receiving, given, True).strategy == "procrustes"
        assert choice(origin, receiving, given, False).strategy == "embed"


def test_auto_says_where_the_coordinates_could_not_be_looked_up(make_host):
    host = make_host("llama", 32, 2, 4)
    found = choice(host, host, None, False)
    assert found.strategy == "pad" and "could not be looked up" in found.why
