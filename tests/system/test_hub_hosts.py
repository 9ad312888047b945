"""Hosts of a stand-in hub: planned without their weights, fetched whole or not at all, and the study of the
paper's T5s from nothing to its tables."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from portability.core.paths import PACKAGE
from portability.hosts.sources import HostSource, describe
from support.hub import Hub, serving
from support.t5s import PINS, model, study_hub, write_t5
from support.tiny import model as tiny
from support.tiny import tokenizer

PIN = "0123456789abcdef0123456789abcdef01234567"
NAMES = ("them/pickled", "them/plain")
LLAMA = "meta-llama/Llama-2-7b-hf"
PLAN = f"""
import json
from portability.hosts.sources import HostSource, describe
print(json.dumps([describe(HostSource("mine", hub=name, revision="{PIN}")).fingerprint for name in {NAMES}]))
"""
LOAD = f"""
import json, sys
from portability.core.errors import UserError
from portability.hosts.host import load_host
from portability.hosts.sources import HostSource, describe
for name in sys.argv[1:]:
    try:
        spec = describe(HostSource("mine", hub=name, revision="{PIN}"))
        weights = load_host(spec).model.state_dict()
        print(json.dumps([spec.fingerprint, sum(float(one.double().sum()) for one in weights.values())]))
    except UserError as error:
        print(json.dumps(str(error)))
"""


@pytest.fixture
def hub(tmp_path):
    for name in NAMES:
        write_t5(tmp_path / "hub/models" / name, 32, 1, pickled=name == "them/pickled")
    with serving(Hub(tmp_path / "hub", dict.fromkeys(NAMES, PIN))) as found:
        yield found


def ran(*words, home, hub, **more):
    """A process of Python that is pointed at the stand-in, with caches below `home`."""
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent), **hub.environment(home), **more}
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=900, cwd=home,
                          env={key: value for key, value in environment.items() if value is not None})


def answers(*words, home, hub, **more):
    """What it prints, line by line, as JSON."""
    done = ran("-c", *words, home=home, hub=hub, **more)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_host_is_planned_by_its_digests_and_then_loaded(hub, tmp_path):
    (pickled, plain), = answers(PLAN, home=tmp_path, hub=hub)
    assert not hub.got(".bin") + hub.got(".safetensors") + hub.got(".h5") + hub.got(".msgpack")
    local = describe(HostSource("mine", path=str(hub.root / "models/them/plain")))
    assert plain == local.fingerprint != pickled, "the same files have one name wherever they are"
    total = sum(float(one.double().sum()) for one in model().state_dict().values())
    wanted = [[pickled, pytest.approx(total)], [plain, pytest.approx(total)]]
    assert answers(LOAD, *NAMES, home=tmp_path, hub=hub) == wanted
    assert hub.got(".bin") == hub.got(".safetensors") == [None], "once, and no pickle beside safetensors"
    assert not hub.got(".h5") + hub.got(".msgpack")
    hub.asked.clear()
    away = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "1"}
    assert answers(LOAD, *NAMES, home=tmp_path, hub=hub, **away) == wanted and not hub.asked


def test_no_other_file_is_taken_for_weights(tmp_path):
    folder = tmp_path / "hub/models/them/sharded"
    model().save_pretrained(folder, max_shard_size="20KB")
    tokenizer().save_pretrained(folder)
    shards = sorted(folder.glob("model-*.safetensors"))
    for other in ("consolidated.safetensors", "adapter_model.safetensors"):
        (folder / other).write_bytes(shards[0].read_bytes())
    with serving(Hub(tmp_path / "hub", {"them/sharded": PIN})) as hub:
        (mark, total), = answers(LOAD, "them/sharded", home=tmp_path, hub=hub)
        assert len(hub.got(".safetensors")) == len(shards) > 1
        assert not hub.got("consolidated.safetensors") + hub.got("adapter_model.safetensors")
    assert total == pytest.approx(sum(float(one.double().sum()) for one in model().state_dict().values()))
    assert mark == describe(HostSource("mine", path=str(folder))).fingerprint


def test_a_download_that_breaks_off_goes_on_where_it_ended(tmp_path):
    write_t5(tmp_path / "hub/models/them/large", 32, 1, pickled=True, vocabulary=120_000)  # of 30 MB
    large = {"them/large": PIN}
    with serving(Hub(tmp_path / "hub", large, cut={"pytorch_model.bin": 15_000_000})) as hub:
        broken, = answers(LOAD, "them/large", home=tmp_path, hub=hub)
        assert "cannot fetch them/large" in broken and "run the command again" in broken
        assert not list((tmp_path / "cache/hosts").rglob("*.safetensors"))
        assert answers(LOAD, "them/large", home=tmp_path, hub=hub)[0][1]
        first, second = hub.got(".bin")
    assert first is None and 10_000_000 <= int(second.removeprefix("bytes=").rstrip("-")) < 15_000_000


def test_a_file_that_is_not_what_the_hub_says_is_refused(hub, tmp_path):
    answers(PLAN, home=tmp_path, hub=hub)
    files = "pytorch_model.bin", "model.safetensors"
    for name, file in zip(NAMES, files, strict=True):  # another one of the same size, under the same name
        path = hub.root / "models" / name / file
        data = bytearray(path.read_bytes())
        data[-1000] ^= 1
        path.write_bytes(data)
    for said, file in zip(answers(LOAD, *NAMES, home=tmp_path, hub=hub), files, strict=True):
        assert f"the bytes of {file} are not those that them/" in said and "delete" in said


def test_a_gated_host_says_so_and_is_planned_with_a_token(tmp_path):
    folder = tmp_path / "hub/models" / LLAMA
    tiny("llama", 32, 1, 4).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    words = ("-m", "portability.run", "origin=llama-2-7b", "receiving=llama-2-7b", "method=lora_peft",
             "mode=plan")
    pins = {LLAMA: "01c7f73d771dfac7d292323805ebc428287df4f9"}
    with serving(Hub(tmp_path / "hub", pins, gated=frozenset(pins))) as hub:
        done = ran(*words, home=tmp_path, hub=hub)
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
        assert "host 'llama-2-7b': cannot fetch" in done.stderr and (
            f"it is gated: accept its licence on the page of {LLAMA} on the hub, and log in") in done.stderr
        done = ran(*words, home=tmp_path, hub=hub, HF_TOKEN="licensed")
        assert done.returncode == 0 and "example of nano_films on llama-2-7b" in done.stdout, done.stderr
        assert not hub.got(".safetensors")


SMALL = ("+sweep=full", "host_set=t5", "method=[lora]", "grid.seeds=[0,1]", "host_set.budgets=[2,4,6]",
         "train.batch_size=8", "engine.workers=1", "engine.device=cpu")


@pytest.fixture(scope="module")
def t5s(tmp_path_factory):
    """The study of the paper's T5s, in miniature: planned, carried out and analysed, each by its command."""
    root = tmp_path_factory.mktemp("t5s")
    with serving(study_hub(root / "hub")) as hub:
        planned = ran("-m", "portability.run", *SMALL, "mode=plan", home=root, hub=hub)
        weights = hub.got(".bin") + hub.got(".safetensors")
        done = ran("-m", "portability.run", *SMALL, home=root, hub=hub)
        fetched = list(hub.asked)
    read = ran("-m", "portability.analyze", "results/full_t5", home=root, hub=replace(hub, endpoint=""))
    return root, planned, weights, done, fetched, read


def test_the_t5s_are_planned_without_weights(t5s):
    root, planned, weights, *_ = t5s
    assert planned.returncode == 0, planned.stderr
    assert "study full_t5: 144 cells" in planned.stdout and weights == []
    assert "on flan-t5-base, t5-v1_1-base, t5-v1_1-large" in planned.stdout, "they read the example alike"


def test_the_t5s_are_studied_from_nothing_to_the_tables(t5s):
    root, _, _, done, fetched, read = t5s
    assert done.returncode == 0 and "144 done, 0 failed" in done.stdout, done.stderr
    whole = {path for method, path, _ in fetched
             if method == "GET" and path.endswith((".bin", ".safetensors"))}
    assert whole == {f"/google/{name}/resolve/{PINS[f'google/{name}']}/{file}" for name, file in (
        ("t5-v1_1-base", "pytorch_model.bin"), ("t5-v1_1-large", "pytorch_model.bin"),
        ("flan-t5-base", "model.safetensors"))}, "the tuned large host plays no part in this sweep"
    assert read.returncode == 0 and "144 cells of the grid (144 done)" in read.stdout, read.stderr
    assert {path.name for path in (root / "results/full_t5").iterdir()} >= {"tables", "plots", "report.md"}
    assert any((root / "results/full_t5/tables").iterdir()) and "Traceback" not in done.stderr


def test_weights_that_do_not_fit_are_refused_before_work(tmp_path):
    hub = study_hub(tmp_path / "hub")
    file = tmp_path / "hub/models/google/t5-v1_1-base/pytorch_model.bin"
    lacking = torch.load(file, weights_only=True)
    del lacking["encoder.final_layer_norm.weight"]
    torch.save(lacking, file)
    with serving(hub):
        done = ran("-m", "portability.run", *SMALL, home=tmp_path, hub=hub)
    assert done.returncode == 2 and "lacks encoder.final_layer_norm.weight" in done.stderr, done.stderr
    assert not (tmp_path / "results").exists()
