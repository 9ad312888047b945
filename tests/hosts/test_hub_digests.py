"""What names a host of the hub before its weights are here, and what is held against it afterwards."""

import hashlib
import json
import shutil

import pytest

from portability.core.errors import UserError
from portability.core.hashing import remember
from portability.core.specs import HostSpec, digest
from portability.hosts import hub
from portability.hosts.sources import HostSource, describe, folder_of
from portability.inits.extraction.options import ExtractionOptions
from portability.inits.extraction.weights import Weights, before_work
from support.t5s import write_t5
from support.tiny import FAMILIES

PIN = "0123456789abcdef0123456789abcdef01234567"
CONFIG, INDEX = "config.json", "model.safetensors.index.json"
SHARDS = [f"model-{number:05}-of-00002.safetensors" for number in (1, 2)]
OTHERS = ["consolidated.safetensors", "adapter_model.safetensors"]  # which transformers does not load


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A call that gives the hub these files: their folder, the digests that it says, one for each but
    config.json, and how often it was asked for them."""
    monkeypatch.setenv("PORTABILITY_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE")
    folder = tmp_path / "snapshot"
    folder.mkdir()

    def holding(*names):
        asked = []
        for name in (CONFIG, *names):
            parts = [one for one in names if one.startswith(name.split(".")[0] + "-")]
            index = json.dumps({"weight_map": {str(place): one for place, one in enumerate(parts)}})
            (folder / name).write_text(index if name.endswith(".index.json") else name)
        names = [name for name in names if not name.endswith(".json")]
        marks = {name: hashlib.sha256(name.encode()).hexdigest() for name in names} | {CONFIG: None}
        monkeypatch.setattr(hub, "_fetched", lambda name, place, revision, patterns: folder)
        monkeypatch.setattr(hub, "_said", lambda *_: asked.append(1) or marks)
        return folder, marks, asked

    yield holding
    for function in (hub.texts, hub.digests, hub.whole):
        function.cache_clear()


@pytest.mark.parametrize(("names", "wanted"), [
    (["model.safetensors", "pytorch_model.bin", "tf_model.h5"], ["model.safetensors"]),
    ([*SHARDS, INDEX], SHARDS), ([*SHARDS, INDEX, *OTHERS, "pytorch_model.bin"], SHARDS),
    (["model.safetensors", *OTHERS], ["model.safetensors"]), (["pytorch_model.bin", *OTHERS],
                                                              ["pytorch_model.bin"]),
    (["pytorch_model.bin", "tf_model.h5", "training_args.bin", "optimizer.pt"], ["pytorch_model.bin"]),
    (["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin", "pytorch_model.bin.index.json"],
     ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]),
], ids=["both", "shards", "shards and others", "whole and others", "pickled and others", "pickled",
        "pickled shards"])
def test_weights_are_safetensors_or_else_the_pickled_checkpoint(repository, monkeypatch, names, wanted):
    _, marks, asked = repository(*names)
    assert hub.digests("mine", "them/it", PIN) == {name: marks[name] for name in wanted}
    hub.digests.cache_clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # what the hub said once is known
    assert list(hub.digests("mine", "them/it", PIN)) == wanted and asked == [1]


def test_without_the_hub_the_files_themselves_are_read_if_all_are_there(repository, monkeypatch):
    folder, marks, asked = repository(*SHARDS, INDEX, *OTHERS)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert hub.digests("mine", "them/it", PIN) == {name: marks[name] for name in SHARDS}
    assert not asked
    hub.digests.cache_clear()
    (folder / SHARDS[0]).unlink()
    with pytest.raises(UserError, match=f"cannot fetch {SHARDS[0]} of them/it@01234567: not in the local"):
        hub.digests("mine", "them/it", PIN)


@pytest.mark.parametrize(("names", "held"), [
    (["tf_model.h5"], "tf_model.h5"), (OTHERS, "adapter_model.safetensors, consolidated.safetensors"),
    (SHARDS, ", ".join(SHARDS)), ([], "none"),
], ids=["tensorflow", "others", "no index", "nothing"])
def test_a_repository_without_weights_is_refused(repository, names, held):
    repository(*names)
    with pytest.raises(UserError, match=f"them/it@01234567 holds neither .*, but {held}; take a host"):
        hub.digests("mine", "them/it", PIN)


def test_an_index_that_names_what_is_not_there_is_refused(repository):
    _, marks, _ = repository(*SHARDS, INDEX)
    marks.pop(SHARDS[1])
    with pytest.raises(UserError, match=f"nor all parts that an index of these names, but {SHARDS[0]}; "):
        hub.digests("mine", "them/it", PIN)


def test_what_was_once_taken_for_weights_is_asked_again(repository):
    _, marks, asked = repository("model.safetensors", *OTHERS)
    remember("hub", digest(["them/it", PIN]), {name: mark for name, mark in marks.items() if mark})
    assert list(hub.digests("mine", "them/it", PIN)) == ["model.safetensors"] and asked == [1]


def test_a_folders_fingerprint_is_of_its_weights_alone(tmp_path):
    folder = tmp_path / "whole"
    write_t5(folder, 32, 1, pickled=False)
    alone = describe(HostSource("mine", path=str(folder))).fingerprint
    for name in OTHERS:
        shutil.copy(folder / "model.safetensors", folder / name)
    assert describe(HostSource("mine", path=str(folder))).fingerprint == alone


def test_a_small_file_that_the_hub_names_no_sha_256_of_is_fetched(repository):
    folder, marks, _ = repository("model.safetensors")
    wanted, marks["model.safetensors"] = marks["model.safetensors"], None
    assert hub.digests("mine", "them/it", PIN) == {"model.safetensors": wanted}


def test_fetched_weights_must_be_those_that_were_planned(repository):
    folder, marks, _ = repository("model.safetensors")
    marks["model.safetensors"] = "0" * 64
    with pytest.raises(UserError, match="the bytes of model.safetensors are not those that them/it@01234567"):
        hub.whole("mine", "them/it", PIN)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="cannot fetch model.safetensors of them/it@01234567"):
        hub.whole("mine", "them/it", PIN)


def test_the_same_files_have_one_name_here_and_on_the_hub(repository, tmp_path, monkeypatch):
    repository()
    write_t5(tmp_path / "whole", 32, 1, pickled=False)
    local = describe(HostSource("mine", path=str(tmp_path / "whole")))
    digest = hashlib.sha256((tmp_path / "whole/model.safetensors").read_bytes()).hexdigest()
    monkeypatch.setattr(hub, "_said", lambda *_: {"model.safetensors": digest, "tokenizer.json": None})
    monkeypatch.setattr(hub, "_fetched", lambda *_: tmp_path / "texts")
    (tmp_path / "whole").rename(tmp_path / "texts")
    weights = (tmp_path / "texts/model.safetensors").rename(tmp_path / "model.safetensors")
    found = describe(HostSource("mine", hub="them/it", revision=PIN))
    assert (found.fingerprint, found.shape, found.revision) == (local.fingerprint, local.shape, PIN)
    weights.rename(tmp_path / "texts/model.safetensors")
    assert folder_of(found) == tmp_path / "texts"


@pytest.mark.parametrize("family", FAMILIES)
def test_shapes_are_known_before_the_weights_are_here(make_host, monkeypatch, family):
    spec, options = make_host(family), ExtractionOptions()
    there = Weights(spec)
    monkeypatch.setattr(hub, "texts", lambda *_: folder_of(spec))
    monkeypatch.setattr(hub, "whole", lambda *_: pytest.fail("weights were fetched"))
    before = before_work(HostSpec(spec.name, "them/it", PIN, spec.fingerprint, spec.shape))
    assert before.places(options) == there.places(options)
    assert before.layers.keys() == there.layers.keys()
    assert before.shapes.items() >= there.shapes.items()
