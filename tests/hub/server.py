"""A Hub on the loopback: it takes pushes of models and gives models and data sets; real HTTP for the real clients."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import yaml
from huggingface_hub import ModelCard

from tests.hub_server import described

TOKEN = "hf_" + "planted" * 5


@dataclass
class Repository:
    """What the Hub holds of one repository.

    Args:
        private: whether only members see it.
        gated: whether its files wait for a permission that nobody here has.
        commits: the files of each.
        proposals: pull requests.
        sent: name -> what is sent in the place of that file.
    """

    private: bool = False
    gated: bool = False
    commits: list[dict[str, bytes]] = field(default_factory=lambda: [{".gitattributes": b""}])
    proposals: list[dict[str, bytes]] = field(default_factory=list)
    sent: dict[str, bytes] = field(default_factory=dict)

    @property
    def files(self) -> dict[str, bytes]:
        return self.files_at(len(self.commits))

    @property
    def sha(self) -> str:
        return self.shas[-1]

    @property
    def shas(self) -> list[str]:
        return [hashlib.sha1(str(number).encode()).hexdigest() for number in range(1, len(self.commits) + 1)]

    def files_at(self, number: int) -> dict[str, bytes]:
        """The files after so many commits."""
        return {name: content for commit in self.commits[:number] for name, content in commit.items()}

    def number(self, revision: str) -> int:
        """How many commits led to a revision; 0 if there is none of that name."""
        return (
            len(self.commits) if revision == "main" else self.shas.index(revision) + 1 if revision in self.shas else 0
        )


@dataclass
class Failure:
    """Answers to requests whose path contains `part`: `times` of them (None: all) get `status` and `body`.

    Without a body, they get what they ask for. With `cut`, the connection ends before the last `cut` bytes. With
    `parts`, they get what that yields, until they have had enough.
    """

    part: str
    status: int = 200
    body: str | None = '{"error": "as planned"}'
    times: int | None = None
    delay: float = 0
    cut: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    parts: Callable[[], Iterable[bytes]] | None = None


class Hub(ThreadingHTTPServer):
    """Repositories by name, planned failures, and the requests so far as (method, path).

    Names are those of addresses: `org/name` is a model, `datasets/org/name` a data set. With `lfs`, weights are not
    part of commits: they are sent before, as large files.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Repository] = {}
        self.failures: list[Failure] = []
        self.requests: list[tuple[str, str]] = []
        self.role = "write"
        self.lfs = False
        self.large: dict[str, bytes] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Hub
    cut = 0  # bytes that the answer lacks

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

    def log_message(self, *args: object) -> None:
        pass

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = urlsplit(self.path).path
        self.server.requests.append((self.command, self.path))
        for failure in self.server.failures:
            if failure.part in path and failure.times != 0:
                failure.times = None if failure.times is None else failure.times - 1
                threading.Event().wait(failure.delay)
                self.cut = failure.cut
                if failure.parts:
                    return self._stream(failure)
                if failure.body is not None:
                    return self._send(failure.status, failure.body.encode(), failure.headers)
        if "/resolve/" in path:
            return self._resolve(path)
        if path.startswith("/lfs/"):
            self.server.large[path.removeprefix("/lfs/")] = body
            return self._send(200, b"")
        if path.endswith(".git/info/lfs/objects/batch"):
            return self._json({"transfer": "basic", "objects": list(map(self._upload, json.loads(body)["objects"]))})
        if path == "/api/validate-yaml":
            return self._validate(json.loads(body)["content"])
        if not self._is_member():
            return self._send(401, b'{"error": "Invalid username or password."}')
        if path == "/api/whoami-v2":
            return self._json({"name": "me", "type": "user", "auth": {"accessToken": {"role": self.server.role}}})
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        address = path.removeprefix("/api/").removeprefix("models/")
        name = next((name for name in self.server.repositories if f"{address}/".startswith(f"{name}/")), None)
        if name is None:
            return self._send(404, b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"})
        repository, (_, *action) = self.server.repositories[name], address.removeprefix(name).split("/")
        if action[:1] == ["preupload"]:
            return self._json({"files": [self._mode(entry["path"]) for entry in json.loads(body)["files"]]})
        if action[:1] == ["commit"]:
            return self._commit(name, repository, body)
        if action[:1] == ["refs"]:
            return self._refs(repository)
        return self._list(name, repository, *action)

    def _is_member(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _mode(self, name: str) -> dict:
        large = self.server.lfs and name.endswith(".safetensors")
        return {"path": name, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}

    def _upload(self, entry: dict) -> dict:
        return entry | {"actions": {"upload": {"href": f"{self.server.url}/lfs/{entry['oid']}"}}}

    def _refs(self, repository: Repository) -> None:
        proposals = [f"refs/pr/{number}" for number in range(1, len(repository.proposals) + 1)]
        listed = [{"name": ref, "ref": ref, "targetCommit": "0"} for ref in proposals]
        self._json({"branches": [], "converts": [], "tags": [], "pullRequests": listed})

    def _list(
        self, name: str, repository: Repository, kind: str = "revision", revision: str = "main", *folder: str
    ) -> None:
        number, sha = repository.number(revision), revision
        if proposal := re.fullmatch("refs%2Fpr%2F([0-9]+)", revision):
            files = repository.files | repository.proposals[int(proposal.group(1)) - 1]
        elif number:
            files, sha = repository.files_at(number), repository.shas[number - 1]
        else:
            return self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        if kind == "tree":
            return self._tree(files, "".join(f"{part}/" for part in folder))
        return self._json(
            {
                "id": name,
                "sha": sha,
                "private": repository.private,
                "siblings": [described(file, content) for file, content in files.items()],
            }
        )

    def _tree(self, files: dict[str, bytes], folder: str) -> None:
        """The files below `folder`, or, unless all are asked for, those in it and the folders in it."""
        below = {name.removeprefix(folder): content for name, content in files.items() if name.startswith(folder)}
        if not below:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
        deep = parse_qs(urlsplit(self.path).query).get("recursive") == ["true"]
        folders = {name.partition("/")[0] for name in below if "/" in name and not deep}
        listed = [{"type": "directory", "path": folder + name, "oid": "0"} for name in sorted(folders)]
        return self._json(
            listed
            + [
                {"type": "file", "path": folder + name, "size": len(content), "oid": "0"}
                for name, content in below.items()
                if deep or "/" not in name
            ]
        )

    def _create(self, wanted: dict) -> None:
        name = f"{wanted['organization'] or 'me'}/{wanted['name']}"
        if name in self.server.repositories:
            return self._send(409, b'{"error": "You already created this model repo"}')
        self.server.repositories[name] = Repository(
            wanted.get("visibility") == "private" or bool(wanted.get("private"))
        )
        return self._json({"url": f"{self.server.url}/{name}"})

    def _validate(self, content: str) -> None:
        """The Hub's own rules that can be told from outside."""
        data = ModelCard(content).data.to_dict()
        wrong = [key for key in ("license", "pipeline_tag", "library_name") if not isinstance(data.get(key, ""), str)]
        wrong += [
            key for key in ("tags", "datasets", "base_model") if not all(isinstance(x, str) for x in data.get(key, []))
        ]
        if wrong or yaml.safe_load(content.split("---")[1]) is None:
            return self._send(400, json.dumps({"errors": [{"message": f"wrong: {wrong}"}], "warnings": []}).encode())
        return self._json({"errors": [], "warnings": []})

    def _commit(self, name: str, repository: Repository, body: bytes) -> None:
        lines = [json.loads(line) for line in body.splitlines()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        if header.get("parentCommit", repository.sha) != repository.sha:
            return self._send(412, b'{"error": "A commit has happened since."}')
        files = {
            line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines if line["key"] == "file"
        }
        for value in (line["value"] for line in lines if line["key"] == "lfsFile"):
            if value["oid"] not in self.server.large:
                return self._send(400, b'{"error": "A large file is missing."}')
            files[value["path"]] = self.server.large[value["oid"]]
        proposed = parse_qs(urlsplit(self.path).query).get("create_pr") == ["1"]
        (repository.proposals if proposed else repository.commits).append(files)
        address = f"{self.server.url}/{name}"
        return self._json(
            {
                "commitUrl": f"{address}/commit/{repository.sha}",
                "commitOid": repository.sha,
                "pullRequestUrl": f"{address}/discussions/{len(repository.proposals)}" if proposed else None,
            }
        )

    def _resolve(self, path: str) -> None:
        name, _, rest = path[1:].partition("/resolve/")
        revision, _, file = rest.partition("/")
        repository = self.server.repositories.get(name)
        if repository is None or (repository.private and not self._is_member()):
            return self._send(401, b"", {"X-Error-Code": "RepoNotFound"})
        if repository.gated:
            return self._send(403, b"", {"X-Error-Code": "GatedRepo"})
        number = repository.number(revision)
        content = repository.files_at(number).get(file)
        if content is None:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
        listed = described(file, content)
        tag = listed["lfs"]["sha256"] if "lfs" in listed else listed["blobId"]
        headers = {"ETag": f'"{tag}"', "X-Repo-Commit": repository.shas[number - 1]}
        return self._send(200, repository.sent.get(file, content), headers)

    def _stream(self, failure: Failure) -> None:
        """The end of the connection is that of the answer."""
        self.send_response(failure.status)
        for key, value in failure.headers.items():
            self.send_header(key, value)
        self.end_headers()
        with suppress(ConnectionError):
            for part in failure.parts():
                self.wfile.write(part)
                self.wfile.flush()

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) - self.cut])


def dripping() -> Iterator[bytes]:
    """A byte now and then; none is waited for long."""
    while True:
        threading.Event().wait(0.05)
        yield b" "


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A Hub that listens, until the context ends."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
