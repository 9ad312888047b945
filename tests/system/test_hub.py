"""What the hub's refusals are to the user: answers of a server on this machine, read by the hub's own
libraries."""

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

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
    "gated": ((200, None), (403, "GatedRepo")),
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


class Hub(BaseHTTPRequestHandler):
    """Answers every question about a repository in the same way."""

    page, files = ANSWERS["gated"]

    def do_GET(self):
        status, reason = self.page if self.path.startswith("/api/") else self.files
        names = [{"rfilename": name} for name in ("config.json", "model.safetensors", "train.jsonl")]
        body = json.dumps({"id": "them/it", "sha": PIN, "siblings": names, "gated": "manual",
                           "private": False, "disabled": False, "tags": [], "downloads": 0}).encode()
        if self.path == "/":
            status, reason = 200, None
        self.send_response(status)
        for key, value in (("X-Error-Code", reason), ("X-Error-Message", "Invalid credentials in "
                                                      "Authorization header"
                                                      if (status, reason) == (401, None) else None)):
            if value:
                self.send_header(key, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_POST = do_GET

    def log_message(self, *_):
        pass


def said(code, endpoint, tmp_path, monkeypatch, offline=False):
    """What a process says that asks the hub at this address, without anything in its cache."""
    monkeypatch.delenv("HF_HUB_OFFLINE")
    if offline:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("code", [HOST, DATA], ids=["host", "data"])
@pytest.mark.parametrize("answer", ANSWERS)
def test_a_refusal_says_what_to_do(answer, code, tmp_path, monkeypatch):
    handler = type("Answering", (Hub,), dict(zip(("page", "files"), ANSWERS[answer], strict=True)))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        found = said(code, f"http://127.0.0.1:{server.server_port}", tmp_path, monkeypatch)
    finally:
        server.shutdown()
    assert SAYS[answer].format("datasets/" if code == DATA else "") in found, found
    assert f"cannot fetch them/it@{PIN[:8]}: " in found and found.count("\n") == 1, "it is one sentence"


@pytest.mark.parametrize("code", [HOST, DATA], ids=["host", "data"])
@pytest.mark.parametrize("offline", [True, False], ids=["switched off", "no answer"])
def test_a_hub_that_is_not_there_is_said(offline, code, tmp_path, monkeypatch):
    found = said(code, "http://127.0.0.1:9", tmp_path, monkeypatch, offline)
    why = "it is not in the local cache, and the hub does not answer or HF_HUB_OFFLINE is set"
    assert why in found, found
    assert "host_set=nano" in found and found.count("\n") == 1
