"""What the hub's hosts and refusals are to the user: a stand-in on this machine, read by the hub's own
libraries."""

import os
import subprocess
import sys

import pytest

from support.hub import Hub, serving

PIN = "0123456789abcdef0123456789abcdef01234567"
HOST = f"""
from portability.core.errors import UserError
from portability.hosts.sources import HostSource, describe
try:
    describe(HostSource("mine", hub="them/it", revision="{PIN}"))
except UserError as error:
    print(error)
"""
DATA = f"""
from portability.core.errors import UserError
from portability.data.sources import DataSource, read_split
try:
    splits = {{"train": "train", "test": "test"}}
    read_split(DataSource("mine", hub="them/it", revision="{PIN}", splits=splits), "train")
except UserError as error:
    print(error)
"""
ANSWERS = {  # of the repository's page and of its files: status, and what the hub names as the reason
    "gated": (None, (403, "GatedRepo")),
    "gated page": ((401, "GatedRepo"), (401, "GatedRepo")),
    "missing": ((401, "RepoNotFound"), (401, "RepoNotFound")),
    "no revision": ((404, "RevisionNotFound"), (404, "RevisionNotFound")),
    "bad token": ((401, None), (401, None)),
}
SAYS = {
    "gated": "it is gated: accept its licence on the page of {}them/it on the hub, and log in with a token "
    "that may read it",
    "missing": "there is no such repository, or it is private: check its name, or log in with a token",
    "no revision": "it has no such revision: copy the 40 digits of a commit",
    "bad token": "the hub does not take your token: log in",
}
SAYS["gated page"] = SAYS["gated"]


@pytest.fixture
def hub(tmp_path):
    """A stand-in whose one repository of each kind lies below tmp_path/hub."""
    for kind, names in (("models", ("config.json", "model.safetensors")), ("datasets", ("train.jsonl",))):
        folder = tmp_path / "hub" / kind / "them/it"
        folder.mkdir(parents=True)
        for name in names:
            (folder / name).write_text("{}")
    with serving(Hub(tmp_path / "hub", {"them/it": PIN})) as found:
        yield found


def said(code, environment):
    """What a process says that asks the hub, without anything in its cache."""
    kept = {key: value for key, value in {**os.environ, **environment}.items() if value is not None}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env=kept)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("code", [HOST, DATA], ids=["host", "data"])
@pytest.mark.parametrize("answer", ANSWERS)
def test_a_refusal_says_what_to_do(answer, code, hub, tmp_path):
    hub.page, hub.files = ANSWERS[answer]
    found = said(code, hub.environment(tmp_path))
    assert SAYS[answer].format("datasets/" if code == DATA else "") in found, found
    assert f"cannot fetch them/it@{PIN[:8]}: " in found and found.count("\n") == 1, "it is one sentence"


@pytest.mark.parametrize("code", [HOST, DATA], ids=["host", "data"])
@pytest.mark.parametrize("offline", [True, False], ids=["switched off", "no answer"])
def test_a_hub_that_is_not_there_is_said(offline, code, hub, tmp_path):
    away = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "1" if offline else None}
    found = said(code, hub.environment(tmp_path) | away)
    why = "it is not in the local cache, and the hub does not answer or HF_HUB_OFFLINE is set"
    assert why in found, found
    assert "host_set=nano" in found and found.count("\n") == 1
