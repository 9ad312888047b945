"""A stand-in for the Hugging Face hub on this machine: it answers what huggingface_hub asks of repositories
and files out of folders, at one pinned revision each."""

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

LFS = (".safetensors", ".bin", ".h5", ".msgpack", ".model", ".parquet")
Refusal = tuple[int, str | None]  # status, and what the hub names as the reason
SAYS = {"GatedRepo": "Access to this resource is restricted", "RepoNotFound": "Repository not found",
        "RevisionNotFound": "Invalid rev id", "EntryNotFound": "Entry not found"}


@dataclass
class Hub:
    """What the stand-in holds, how it refuses, and what it was asked.

    Attributes:
        root: holds models/OWNER/NAME and datasets/OWNER/NAME, each the files of a repository.
        pins: repository ("OWNER/NAME") -> its one revision, 40 hex digits.
        page, files: refusal of every repository's page, and of every file; None: it answers.
        gated: repositories whose pages are there and whose files need the token "licensed".
        cut: name of a file -> bytes after which the next answer with it breaks off, once.
        asked: method, path and range of every request so far.
    """

    root: Path
    pins: Mapping[str, str]
    page: Refusal | None = None
    files: Refusal | None = None
    gated: frozenset[str] = frozenset()
    cut: dict[str, int] = field(default_factory=dict)
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)
    endpoint: str = ""

    def got(self, ending: str) -> list[str | None]:
        """The ranges in which files with this ending were fetched, None for a whole one."""
        return [part for method, path, part in self.asked if method == "GET" and path.endswith(ending)]

    def environment(self, home: Path) -> dict[str, str | None]:
        """What points a process at the stand-in, with caches of its own; None: not to be set."""
        return {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(home / "hf"), "HF_HUB_OFFLINE": None,
                "HF_TOKEN": None, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
                "PORTABILITY_CACHE": str(home / "cache"), "WANDB_MODE": "disabled"}


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """The stand-in at work, at `hub.endpoint`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Answering", (Answers,), {"hub": hub}))
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def metadata(path: Path, name: str) -> dict:
    """What the hub says of a file: in `oid` git's own digest, in `lfs` the SHA-256 of a large one."""
    data = path.read_bytes()
    said = {"path": name, "type": "file", "size": len(data),
            "oid": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()}
    if path.suffix in LFS:
        said["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
    return said


class Answers(BaseHTTPRequestHandler):
    """One request."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append((self.command, path, self.headers.get("Range")))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if path == "/":
            return self.answer(b"")
        is_page = path.startswith("/api/")
        refusal = self.hub.page if is_page else self.hub.files
        if refusal:
            return self.refuse(*refusal)
        (self.of_page if is_page else self.of_file)(path, body)

    do_HEAD = do_POST = do_GET

    def folder(self, kind: str, name: str, revision: str) -> Path | None:
        """The files of a repository; None where it, or its revision, is not there, which is answered."""
        if name not in self.hub.pins or not (folder := self.hub.root / kind / name).is_dir():
            return self.refuse(401, "RepoNotFound")
        if revision not in (self.hub.pins[name], "main"):
            return self.refuse(404, "RevisionNotFound")
        return folder

    def of_page(self, path: str, body: bytes) -> None:
        """/api/KIND/OWNER/NAME, then nothing, revision/REV, tree/REV[/FOLDER] or paths-info/REV."""
        _, _, kind, owner, repository, *rest = path.split("/")
        name = f"{owner}/{repository}"
        what, revision = (rest + ["revision", "main"])[:2] if len(rest) < 2 else rest[:2]
        if (folder := self.folder(kind, name, revision)) is None:
            return
        found = [metadata(one, str(one.relative_to(folder)))
                 for one in sorted(folder.rglob("*")) if one.is_file()]
        if what == "revision":
            found = {"id": name, "sha": self.hub.pins[name], "private": False, "disabled": False, "tags": [],
                     "downloads": 0, "likes": 0, "gated": "manual" if name in self.hub.gated else False,
                     "siblings": [self.sibling(one) for one in found]}
        elif what == "tree":
            found = [one for one in found if one["path"].startswith("/".join(rest[2:]))]
        elif what == "paths-info":
            asked = json.loads(body)["paths"]
            found = [one for one in found if one["path"] in asked]
        else:
            return self.refuse(404, "EntryNotFound")
        self.answer(json.dumps(found).encode(), {"Content-Type": "application/json"})

    def sibling(self, said: dict) -> dict:
        """A file on a repository's page; digests and sizes only where they are asked for."""
        found = {"rfilename": said["path"]}
        if "blobs=true" in self.path.lower():
            found |= {"size": said["size"], "blobId": said["oid"]}
            if "lfs" in said:
                lfs = said["lfs"]
                found["lfs"] = {"sha256": lfs["oid"], "size": lfs["size"], "pointerSize": lfs["pointerSize"]}
        return found

    def of_file(self, path: str, _: bytes) -> None:
        """[/datasets]/OWNER/NAME/resolve/REV/FILE."""
        kind, path = ("datasets", path[9:]) if path.startswith("/datasets/") else ("models", path)
        _, owner, repository, _, revision, *parts = path.split("/")
        name = f"{owner}/{repository}"
        if (folder := self.folder(kind, name, revision)) is None:
            return
        if name in self.hub.gated and self.headers.get("Authorization") != "Bearer licensed":
            return self.refuse(403, "GatedRepo")
        file = folder.joinpath(*parts)
        if not file.is_file():
            return self.refuse(404, "EntryNotFound")
        said, data = metadata(file, file.name), file.read_bytes()
        headers = {"ETag": f'"{said["lfs"]["oid"] if "lfs" in said else said["oid"]}"',
                   "X-Repo-Commit": self.hub.pins[name], "Accept-Ranges": "bytes"}
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        least = self.hub.cut.pop(file.name, None) if self.command == "GET" else None
        self.answer(data[start:], headers, 206 if start else 200, least)

    def refuse(self, status: int, reason: str | None) -> None:
        said = SAYS.get(reason or "", "Invalid credentials in Authorization header")
        headers = {"X-Error-Message": said} | ({"X-Error-Code": reason} if reason else {})
        self.answer(json.dumps({"error": said}).encode(), headers, status)

    def answer(self, body: bytes, headers: Mapping[str, str] = {}, status: int = 200,
               cut: int | None = None) -> None:
        """Send a body, or so many bytes of it and then nothing more."""
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:cut])
        if cut is not None:
            self.wfile.flush()
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass
