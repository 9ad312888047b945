"""Pickled checkpoints, converted once: the same weights, or nothing at all."""

import hashlib
import json
import os
import pickle
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import T5ForConditionalGeneration

from portability.core.errors import UserError
from portability.core.hashing import cache_folder, fingerprint
from portability.hosts import converted
from portability.hosts.converted import RECORD, digests_of
from portability.hosts.host import load_plain
from portability.hosts.pickles import apart, of_pickles
from portability.hosts.sources import SETTINGS_FILES, HostSource, describe, read_config
from support.t5s import model, write_t5

PIN = "owner/name@0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PORTABILITY_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def repository(tmp_path_factory):
    folder = tmp_path_factory.mktemp("repository") / "t5"
    write_t5(folder, 32, 1, pickled=True)
    return folder


@pytest.fixture
def source(repository, tmp_path):
    return shutil.copytree(repository, tmp_path / "source")


def sha(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def convert(source, names=("pytorch_model.bin",)):
    return of_pickles("mine", PIN, {name: sha(source / name) for name in names}, lambda: source)


def left(tmp_path):
    """What is in the cache besides digests and locks."""
    return [path for path in (tmp_path / "cache").rglob("*") if path.suffix not in (".json", ".lock")
            and path.is_file()]


def names_and_values(folder):
    return {name: value for path in folder.glob("*.safetensors") for name, value in load_file(path).items()}


def test_what_is_kept_is_what_transformers_would_keep(source, tmp_path):
    folder = convert(source)
    stored = torch.load(source / "pytorch_model.bin", weights_only=True)
    kept = names_and_values(folder)
    host = T5ForConditionalGeneration.from_pretrained(source, use_safetensors=False)
    host.save_pretrained(tmp_path / "theirs")
    theirs = names_and_values(tmp_path / "theirs")
    assert kept.keys() == theirs.keys() < stored.keys() and "lm_head.weight" in kept
    assert all(torch.equal(kept[name], stored[name]) for name in kept)
    assert all(torch.equal(kept[name], theirs[name]) for name in kept)
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    loaded = load_plain(describe(HostSource("mine", path=str(folder)))).state_dict()
    assert loaded.keys() == stored.keys() and all(torch.equal(loaded[name], stored[name]) for name in stored)


def test_the_fingerprint_is_made_of_the_pickled_files_own_digest(source):
    texts = ["spiece.model"]
    settings = {name: read_config(source / name) for name in SETTINGS_FILES if (source / name).is_file()}
    wanted = fingerprint({name: sha(source / name) for name in (*texts, "pytorch_model.bin")}, settings)
    assert describe(HostSource("mine", path=str(convert(source)))).fingerprint == wanted


def test_shards_become_shards(source):
    whole = torch.load(source / "pytorch_model.bin", weights_only=True)
    (source / "pytorch_model.bin").unlink()
    names = sorted(whole)
    files = [f"pytorch_model-{number:05}-of-00002.bin" for number in (1, 2)]
    for place, file in enumerate(files):  # tied tensors stay in one shard, as transformers writes them
        torch.save({name: whole[name] for name in names if ("embed_tokens" in name or "shared" in name
                                                            or "decoder" not in name) == (place == 0)},
                   source / file)
    (source / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": {}}))
    folder = convert(source, files)
    assert not (folder / "pytorch_model.bin.index.json").exists()
    loaded = load_plain(describe(HostSource("mine", path=str(folder)))).state_dict()
    assert all(torch.equal(loaded[name], whole[name]) for name in whole)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert sorted(set(index["weight_map"].values())) == [f"model-{n:05}-of-00002.safetensors" for n in (1, 2)]


def test_files_of_before_torch_1_6_and_half_precision_are_read_as_they_are(source):
    half = {name: value.to(torch.bfloat16) for name, value in model().state_dict().items()}
    torch.save(half, source / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    kept = names_and_values(convert(source))
    assert {value.dtype for value in kept.values()} == {torch.bfloat16}
    assert all(torch.equal(value, half[name]) for name, value in kept.items())


def test_tensors_that_share_memory_are_told_apart():
    table = torch.arange(12.0).reshape(3, 4)
    kept = apart({"a": table, "b": table, "part": table[1:], "turned": table.T, "c.lm_head.weight": table,
                  "none": torch.empty(0), "nothing": torch.empty(0)})
    assert list(kept) == ["a", "part", "turned", "c.lm_head.weight", "none", "nothing"]
    assert torch.equal(kept["part"], table[1:]) and torch.equal(kept["turned"], table.T)
    assert all(value.is_contiguous() for value in kept.values())
    places = [value.untyped_storage().data_ptr() for value in kept.values() if value.numel()]
    assert len(set(places)) == len(places)


class Harm:
    def __reduce__(self):
        return os.mkdir, ("harmed",)


@pytest.mark.parametrize("spoil", [
    lambda path: path.write_bytes(pickle.dumps(Harm(), 2)),
    lambda path: torch.save({"shared.weight": Harm()}, path),
    lambda path: torch.save([torch.ones(2)], path),
    lambda path: path.write_bytes(path.read_bytes()[:5000]),
    lambda path: torch.save({"w": torch.ones(2, 2).to_sparse()}, path),
], ids=["code", "code among tensors", "no names", "cut short", "sparse"])
def test_what_the_restricted_loader_refuses_stays_refused(source, tmp_path, monkeypatch, spoil):
    monkeypatch.chdir(tmp_path)
    spoil(source / "pytorch_model.bin")
    with pytest.raises(UserError, match="host 'mine': ") as caught:
        convert(source)
    assert "\n" not in str(caught.value) and not left(tmp_path) and not (tmp_path / "harmed").exists()


def test_nothing_stays_of_an_interrupted_conversion(source, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(converted, "digests_of", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):  # after the weights were written
            convert(source)
    assert not left(tmp_path)
    folder = convert(source)
    shutil.copytree(folder, draft := folder.with_name(f"{folder.name}.draft"))  # as SIGKILL leaves it
    (draft / "model.safetensors").write_bytes(b"half")
    shutil.rmtree(folder)
    assert convert(source) == folder and not draft.exists()
    load_plain(describe(HostSource("mine", path=str(folder))))


def test_it_is_made_once(source):
    folder = convert(source)
    known = {"pytorch_model.bin": sha(source / "pytorch_model.bin")}
    assert of_pickles("mine", PIN, known, lambda: pytest.fail("fetched again")) == folder
    assert of_pickles("mine", PIN, {"pytorch_model.bin": "0" * 64}, lambda: source) != folder
    assert folder.parent == cache_folder() / "hosts/owner--name" / PIN.partition("@")[2]


def test_a_copy_that_changed_is_refused(source):
    folder = convert(source)
    planned = describe(HostSource("mine", path=str(folder)))
    changed = {name: value + 1 for name, value in load_file(folder / "model.safetensors").items()}
    save_file(changed, folder / "model.safetensors")
    with pytest.raises(UserError, match="not those that were made of pytorch_model.bin; delete the folder"):
        digests_of("mine", folder)
    with pytest.raises(UserError, match="changed since the study was planned"):
        load_plain(planned)
    (folder / RECORD).write_text("{}")
    with pytest.raises(UserError, match=f"{RECORD} cannot be read"):
        digests_of("mine", folder)


def test_a_cache_that_cannot_be_written_is_one_sentence(source, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PORTABILITY_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="host 'mine': its weights cannot be kept as safetensors"):
        convert(source)


@pytest.mark.parametrize(("own", "place"), [({"PORTABILITY_CACHE": "/a"}, "/a"),
                                            ({"XDG_CACHE_HOME": "/b"}, "/b/portability"),
                                            ({"HOME": "/c"}, "/c/.cache/portability")])
def test_where_the_cache_is(monkeypatch, own, place):
    for name in ("PORTABILITY_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    assert str(cache_folder()) == place
