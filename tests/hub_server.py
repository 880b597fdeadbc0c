"""A Hub of one repository on this machine, which answers as told; run it with `hub_server.serve(folder)`."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread

REPOSITORY = "someone/mixtral"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
SHARD = "model.safetensors"
CODES = {"gated": "GatedRepo", "no repository": "RepoNotFound", "no revision": "RevisionNotFound"}
STATUS = {"gated": 403, "no repository": 401, "no revision": 404, "unauthorized": 401, "absent": 404}


def described(name: str, content: bytes) -> dict:
    """A file as the Hub lists it: large ones by their SHA-256, others by their blob in git."""
    if name.endswith(".safetensors"):
        lfs = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
        return {"rfilename": name, "blobId": "0" * 40, "lfs": lfs}
    return {"rfilename": name, "blobId": hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()}


@dataclass
class Hub:
    """What the server does next.

    Args:
        folder: the repository's files.
        fault: "" for none, an HTTP status, or a name below.
        times: how many requests get the fault; None for all.
        where: whether listings ("api") or files ("file") get it.
        faulty: which file.
    """

    folder: Path
    fault: str = ""
    times: int | None = None
    where: str = "api"
    faulty: str = SHARD
    url: str = ""
    asked: Counter = field(default_factory=Counter)
    tokens: set = field(default_factory=set)

    def due(self, where: str) -> bool:
        """Whether this request gets the fault."""
        self.asked[where] += 1
        return bool(self.fault) and where == self.where and (self.times is None or self.asked[where] <= self.times)


class Answer(BaseHTTPRequestHandler):
    """One request."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.hub.tokens.add(self.headers.get("Authorization"))
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/"):
            return self._fault() if self.hub.due("api") else self._listing(path)
        name = path.rpartition(f"/resolve/{COMMIT}/")[2]
        file = self.hub.folder / name
        if not file.is_file():
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
        content = file.read_bytes()
        entry = described(name, content)
        digest = entry["lfs"]["sha256"] if "lfs" in entry else entry["blobId"]
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{digest}"', "Accept-Ranges": "bytes"}
        if name == self.hub.faulty and self.command == "GET" and self.hub.due("file"):
            return self._fault(content, headers)
        return self._send(200, content, headers)

    def _listing(self, path: str) -> None:
        names = sorted(str(file.relative_to(self.hub.folder)) for file in self.hub.folder.rglob("*") if file.is_file())
        if "/tree/" in path:
            sizes = [(name, (self.hub.folder / name).stat().st_size) for name in names]
            content = [{"type": "file", "path": name, "size": size, "oid": "0"} for name, size in sizes]
        else:
            siblings = [described(name, (self.hub.folder / name).read_bytes()) for name in names]
            content = {"id": REPOSITORY, "sha": COMMIT, "siblings": siblings, "private": False}
        self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _fault(self, content: bytes = b"{}", headers: dict[str, str] | None = None) -> None:
        fault, headers = self.hub.fault, headers or {}
        if fault.isdigit():
            self._send(int(fault), b"", {"Retry-After": "0"} if fault == "429" else {})
        elif fault in STATUS:
            self._send(STATUS[fault], b"", {"X-Error-Code": CODES[fault]} if fault in CODES else {})
        elif fault == "bad JSON":
            self._send(200, b'{"id": ', {"Content-Type": "application/json"})
        elif fault == "other JSON":
            self._send(200, b"[3]", {"Content-Type": "application/json"})
        elif fault == "other content":
            self._send(200, b"<html>".ljust(len(content)), headers)
        elif fault == "shorter":
            self._send(200, content[:-1], headers)
        elif fault == "longer":
            self._send(200, content + b"!", headers)
        elif fault == "stalled":
            self._head(200, len(content), headers)
            self.wfile.flush()
            Event().wait(600)  # a test may have taken the sleep from `time`
        elif fault == "truncated":
            self._head(200, len(content), headers)
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
        else:
            raise ValueError(fault)

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self._head(status, len(content), headers)
        if self.command == "GET":
            self.wfile.write(content)

    def _head(self, status: int, size: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(size), **headers}.items():
            self.send_header(name, value)
        self.end_headers()


@contextmanager
def serve(folder: Path) -> Iterator[Hub]:
    """A Hub of the files in `folder`."""
    hub = Hub(folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Own", (Answer,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
