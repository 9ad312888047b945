"""Maps that one worker made and others read: the same bits, and no text is read again."""

import functools
import itertools
import json
import threading
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open

from portability.core.specs import PortSpec
from portability.hosts.host import load_host
from portability.methods.module import equal
from portability.porting import activations, alignment, kept_maps, maps
from portability.porting.base import PortContext
from portability.porting.calibration import calibration
from portability.porting.kept_maps import Fitted, keep, kept
from portability.porting.port import port
from portability.porting.spaces import Space
from portability.run import command
from portability.store import Store
from support.studies import small
from support.tiny import noisy, sentences

TEXTS = [row["text"] for row in sentences(60, 3)]
LASTING = [("procrustes", {}), ("procrustes", {"ridge": 0.1}), ("corr", {}), ("embed", {}), ("rebasin", {}),
           ("embed", {"least_squares": True})]
PAIR = Space("decoder", 0, "query", "in"), Space("decoder", 0, "query", "in")


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    """Where maps are kept: nothing there yet."""
    monkeypatch.setenv("PORTABILITY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(maps, "_known", {})
    return tmp_path / "cache/maps"


@pytest.fixture(scope="module")
def pair(mount):
    """A LoRA on a Llama, and a fresh one on another."""
    origin, receiving = mount("lora", "llama", 16, 2, 4), mount("lora", "llama", 16, 2, 4, 5)
    return noisy(origin, 1), origin.host.spec, receiving.host.spec, receiving.init_parameters(2)


def ported(pair, strategy, options, texts=TEXTS, tokens=400, seed=0, layer_map="stretch"):
    module, origin, receiving, fresh = pair
    how = PortSpec("p", strategy, layer_map, options=options)
    return port(module, PortContext(origin, receiving, fresh, how, functools.cache(load_host),
                                    lambda: calibration("t", texts, tokens, seed)))


@pytest.fixture
def another_worker(monkeypatch):
    """From then on nothing is in memory, and no host reads a text or is looked at for a map."""
    def begin():
        monkeypatch.setattr(maps, "_known", {})
        for owner, name in ((activations.Reader, "read"), (alignment, "_encoded"),
                            (torch.linalg, "svd"), (torch.linalg, "lstsq")):
            monkeypatch.setattr(owner, name, lambda *_, **__: pytest.fail("made again"))

    return begin


@pytest.mark.parametrize(("strategy", "options"), LASTING)
def test_another_worker_reads_no_text_and_has_the_same_bits(pair, strategy, options, folder, another_worker):
    first = ported(pair, strategy, options)
    made = dict(next(iter(maps._known.values())).maps)
    assert len(list(folder.iterdir())) == 1
    another_worker()
    second = ported(pair, strategy, options)
    assert equal(first.module, second.module)
    assert second.report.calibration_tokens == first.report.calibration_tokens
    for one, matrix in next(iter(maps._known.values())).maps.items():
        assert torch.equal(matrix, made[one]) and matrix.stride() == made[one].stride()


@pytest.mark.parametrize("change", [{"tokens": 200}, {"texts": TEXTS[:50]}, {"options": {"centred": True}},
                                    {"strategy": "corr"}, {"seed": 1}, {"layer_map": "skip"}], ids=str)
def test_what_maps_follow_from_names_them(pair, change, folder):
    ported(pair, "procrustes", {})
    ported(pair, **{"strategy": "procrustes", "options": {}, **change})
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize("change", ["fingerprint", "precision"])
@pytest.mark.parametrize("side", ["origin", "receiving"])
def test_what_hosts_are_and_compute_in_names_maps(pair, side, change, folder, monkeypatch):
    ported(pair, "procrustes", {})
    module, *specs, fresh = pair
    place = ("origin", "receiving").index(side)
    real = load_host(specs[place])
    if change == "fingerprint":
        specs[place] = replace(specs[place], fingerprint="other")
    else:
        real.precision = "bf16"
    monkeypatch.setattr(PortContext, f"{side}_host", lambda self: real)
    ported((module, *specs, fresh), "procrustes", {})
    assert len(list(folder.iterdir())) == 2


def test_other_hosts_code_and_threads_have_maps_of_their_own(pair, folder, monkeypatch):
    key = ["procrustes"]
    path = kept_maps.place_of_maps(key)
    for owner, name, other in ((torch, "get_num_threads", 99), (kept_maps, "own_code", "other")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, lambda other=other: other)
            assert kept_maps.place_of_maps(key) != path
    assert kept_maps.place_of_maps(key) == path != kept_maps.place_of_maps(["corr"])
    monkeypatch.setattr(PortContext, "receiving_host", lambda self: load_host(pair[2]))
    ported((pair[0], pair[1], replace(pair[2], fingerprint=""), pair[3]), "procrustes", {})
    assert not folder.exists()


@pytest.mark.parametrize("strategy", ["svd_subspace", "pad", "random"])
def test_other_strategies_keep_nothing(pair, strategy, folder):
    ported(pair, strategy, {})
    assert not folder.exists()


@pytest.mark.parametrize("harm", ["cut", "bit", "empty", "other", "words"])
def test_a_damaged_file_is_made_again(pair, harm, folder, monkeypatch, caplog):
    first = ported(pair, "procrustes", {})
    (path,) = folder.iterdir()
    whole = path.read_bytes()
    bit = bytearray(whole)
    bit[-3] ^= 1
    path.write_bytes({"cut": whole[:-100], "bit": bytes(bit), "empty": b"", "other": whole[8:],
                      "words": whole.replace(b'"tokens":"4', b'"tokens":"5')}[harm])
    assert harm != "words" or path.read_bytes() != whole
    monkeypatch.setattr(maps, "_known", {})
    second = ported(pair, "procrustes", {})
    assert equal(first.module, second.module) and "is damaged" in caplog.text
    assert first.report.calibration_tokens == second.report.calibration_tokens
    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["places"])
    assert kept(path, list(next(iter(maps._known)))[-1]) is not None


def test_many_at_once_leave_one_whole_file(folder):
    path = folder / "one.safetensors"
    many = [Fitted({PAIR: torch.full((50, 50), 7.0).double()}, 7) for _ in range(8)]  # one key: the same bits
    seen = []

    def work(fitted):
        for _ in range(5):
            keep(path, [PAIR], fitted)
            seen.append(kept(path, [PAIR]))

    threads = [threading.Thread(target=work, args=[fitted]) for fitted in many]
    for step in ("start", "join"):
        for thread in threads:
            getattr(thread, step)()
    assert len(seen) == 40 and all((one.maps[PAIR] == one.tokens).all() for one in seen)
    assert [one.name for one in folder.iterdir()] == [path.name]


def test_a_write_that_breaks_off_leaves_what_was_there(folder, monkeypatch, caplog):
    first, second = (Fitted({PAIR: torch.full((5, 5), value).double()}, 7) for value in (1.0, 2.0))
    keep(folder / "x", [PAIR], first)

    def half(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kept_maps, "save_file", half)
    keep(folder / "x", [PAIR], second)
    assert torch.equal(kept(folder / "x", [PAIR]).maps[PAIR], first.maps[PAIR])
    assert "No space left on device" in caplog.text and len(list(folder.iterdir())) == 1


def test_a_matrix_with_one_number_in_several_places_is_not_kept(folder):
    keep(folder / "x", [PAIR], Fitted({PAIR: torch.ones(3, 1).double().expand(3, 4)}, 1))
    assert not folder.exists()


def test_what_was_not_used_for_longest_makes_room(folder, monkeypatch):
    fitted = Fitted({PAIR: torch.zeros(10, 10).double()}, 0)  # 800 bytes, and a head
    monkeypatch.setattr(kept_maps, "ROOM", 2500)
    times = itertools.count(1_000_000_000)
    monkeypatch.setattr(kept_maps.os, "utime", functools.partial(_utime, kept_maps.os.utime, times))
    for name in "abc":
        if name == "c":
            assert kept(folder / "a", [PAIR]) is not None  # used
        keep(folder / name, [PAIR], fitted)
        kept_maps.os.utime(folder / name)
    assert sorted(path.name for path in folder.iterdir()) == ["a", "c"]
    monkeypatch.setattr(kept_maps, "MOST", 799)
    keep(folder / "d", [PAIR], fitted)
    assert not (folder / "d").exists()


def _utime(real, times, path):
    now = next(times)
    real(path, (now, now))


def test_pairs_that_share_a_map_share_it_again(folder):
    matrix, other = torch.rand(4, 4).double(), PAIR[0]._replace(layer=1)
    keep(folder / "x", [PAIR, (other, other)], Fitted({PAIR: matrix, (other, other): matrix}, 7))
    found = kept(folder / "x", [PAIR, (other, other)])
    assert found.maps[PAIR] is not matrix and found.maps[PAIR] is found.maps[other, other]
    assert torch.equal(found.maps[PAIR], matrix) and found.tokens == 7
    assert kept(folder / "none", [PAIR]) is None


def test_a_cache_that_cannot_be_written_costs_no_port(pair, folder, caplog):
    folder.parent.mkdir()
    folder.write_text("in the way")
    assert ported(pair, "procrustes", {}).report.carried_fraction == 1
    assert "cannot keep maps" in caplog.text


def test_a_study_that_goes_on_reads_no_text_again(data_folders, make_host, tmp_path, another_worker):
    words = ("grid.study_data=[nano_films]", "grid.budgets=[2]", "engine=inprocess", "yes=true",
             "tracking.wandb=disabled", f"results={tmp_path}/results", "study=s", "method=[lora]",
             "grid.inits=[ported]", "grid.ports=[procrustes]",
             "port.procrustes.calibration.tokens=400")
    assert command(small(data_folders, make_host, *words, "grid.seeds=[0]")) == 0
    another_worker()
    assert command(small(data_folders, make_host, *words, "grid.seeds=[0,1]")) == 0
    store = Store(tmp_path / "results/s")
    infos = [record["port_info"] for record in store.records() if record["port_info"]]
    assert len(infos) >= 2 and not store.failures()
    assert len({info["calibration_tokens"] for info in infos}) == 1
