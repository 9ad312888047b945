"""What embeddings tell of two hosts' coordinates, what `auto` makes of it, and what a user is told."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from portability.core.errors import UserError
from portability.core.specs import PortSpec
from portability.hosts.host import load_host
from portability.hosts.sources import HostSource, describe
from portability.methods import attach
from portability.porting.base import PortContext
from portability.porting.basis import Basis as Found
from portability.porting.basis import basis
from portability.porting.calibration import calibration
from portability.porting.port import port
from portability.porting.strategies.auto import choice
from portability.porting.verdict import STUDIES, kind_of_pair, outlook
from support.hidden import READ, Basis, hide
from support.methods_table import methods
from support.peft_methods import STARTING, method
from support.tiny import noisy

PAGE = Path(__file__).parents[2] / "docs/methods.md"
MAPS = dict(re.findall(r"^\| `(\w+)` .* \| (all|units to units|none) \| [^|]* \|$", PAGE.read_text(), re.M))


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


@pytest.mark.parametrize("spec", [pytest.param(
    one, id=one.name, marks=pytest.mark.system if one.name in STARTING else pytest.mark.contract)
    for one in methods()])
def test_auto_names_what_carries_the_method(spec, make_host):
    """As docs/methods.md has it, where each was tried out."""
    one, other = make_host("llama", 32, 2, 4), make_host("llama", 48, 2, 6)
    attached = attach(load_host(one), spec)
    module = attached.init_parameters(0)

    def chosen(texts):
        return choice(one, other, None, texts, lambda: module).strategy

    between = r"auto from '\S+' to '\S+': the hosts' widths differ, and "
    if MAPS[spec.name] == "all":
        assert (chosen(True), chosen(False)) == ("procrustes", "embed")
    elif MAPS[spec.name] == "units to units":
        assert chosen(True) == "corr"
        with pytest.raises(UserError, match=between + r"the numbers of \S+ belong to one unit each, which "
                           r"corr alone carries there: name texts .*--via lora\)$"):
            chosen(False)
    else:
        for texts in (True, False):
            with pytest.raises(UserError, match=between + r"\S+ cannot be mapped: .*(use copy or pad|train "
                               "the prefix flat)"):
                chosen(texts)
    assert choice(one, one, None, False, lambda: module).strategy == "pad"


def test_auto_carries_a_dora_by_texts_and_says_so(make_host, tmp_path):
    origin = make_host("llama", 32, 2, 4)
    receiving, _ = hide(origin, Basis("permuted"), tmp_path / "hidden")
    attached = attach(load_host(origin), method("dora", origin.shape))
    fresh = attach(load_host(receiving), method("dora", receiving.shape)).init_parameters(0)
    texts = calibration("sentences", READ, 600)
    how = PortSpec("auto", "auto", "stretch")
    given = PortContext(origin, receiving, fresh, how, load_host, lambda: texts)
    done = port(noisy(attached, 1), given)
    assert done.report.carried_fraction == 1 and set(done.report.tensors.values()) == {"transported"}
    assert any(note.startswith("auto chose corr: the hosts write in other") for note in done.report.notes)
    with pytest.raises(UserError, match="magnitude belong to one unit each, which corr alone carries there"):
        port(noisy(attached, 1), replace(given, texts=None))


# ---- what is said


def test_it_is_said_where_the_coordinates_could_not_be_looked_up(make_host, tmp_path):
    host = make_host("llama", 32, 2, 4)
    bare = copy_of(host, tmp_path / "bare")
    for file in Path(bare.source).glob("tokenizer*"):
        file.unlink()
    assert basis(host, bare) is None
    lines = []
    strategy = outlook(host, bare, "auto", False, lines.append)
    assert lines[0] == "coordinates: not compared (an embedding or tokenizer is not there)"
    assert strategy == "pad" and lines[1:] == [
        "strategy: pad, because the hosts have the same widths; their coordinates could not be compared and "
        "are taken to be the same, and where they are not, copying does harm"]


def copy_of(host, folder):
    shutil.copytree(host.source, folder)
    return describe(HostSource(folder.name, path=str(folder)))


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize("strategy", ["auto", "pad", "procrustes"])
@pytest.mark.parametrize("width", [32, 48])
def test_embeddings_that_are_not_finite_are_one_sentence(make_host, tmp_path, number, strategy, width):
    host = make_host("llama", 32, 2, 4)
    damaged = copy_of(make_host("llama", width, 2, 4), tmp_path / "damaged")
    file = Path(damaged.source) / "model.safetensors"
    tensors = load_file(file)
    tensors["model.embed_tokens.weight"][7, 3] = number
    save_file(tensors, file, {"format": "pt"})
    for two in ((host, damaged), (damaged, host)):
        with pytest.raises(UserError, match=r"^host 'damaged' has embeddings that are not finite \(the first "
                           r"of token 7\): its weights are damaged; copy or download it again, or name"):
            outlook(*two, strategy, True, str)


SAME, OTHER = Found(1.0, 100, 0.9, 0.1), Found(1.0, 100, 0.1, 0.9)


@pytest.mark.parametrize(("receiving", "found", "kind"), [
    (("llama", 32, 2, 4), SAME, "the same coordinates and depth"),
    (("llama", 32, 3, 4), SAME, "the same coordinates, another depth"),
    (("llama", 32, 2, 4), OTHER, "other coordinates of one width"),
    (("llama", 32, 3, 4), OTHER, "other coordinates of one width"),
    (("llama", 48, 2, 6), Found(1.0, 100, None, None), "another width"),
    (("llama", 32, 2, 2), SAME, None),  # heads of another size
    (("llama", 32, 2, 4), Found(0.0, 1, None, None), None),  # one token in common
])
def test_studies_are_those_of_the_kind_of_pair(make_host, receiving, found, kind, monkeypatch):
    two = make_host("llama", 32, 2, 4), make_host(*receiving)
    assert kind_of_pair(found, *two) == kind
    monkeypatch.setattr("portability.porting.verdict.basis", lambda *_: found)
    lines = []
    assert outlook(*two, "pad", False, lines.append) == "pad"
    said = [line for line in lines if line.startswith("studies")]
    assert said == ([f"studies of such pairs: {STUDIES[kind]}"] if kind else [])
