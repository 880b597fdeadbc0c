"""Checkpoints on a Hub: downloads by commit, and all that a network does instead."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from hf_moe_lmc import cli
from hf_moe_lmc.checkpoints import find_source
from hf_moe_lmc.errors import MoeLmcError
from tests.hub_server import COMMIT, REPOSITORY, serve

TOKEN = "hf_averysecrettokenofatestaverysecret"
TIMEOUT = 0.5  # seconds without a byte
DEADLINE = 60


@dataclass
class Client:
    """This process, where the Hub is at `url`."""

    url: str
    offline: bool = False

    @contextmanager
    def asking(self) -> Iterator[pytest.MonkeyPatch]:
        """Within, the Hub's library asks there, and does not wait long."""
        constants = {
            "ENDPOINT": self.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": self.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_OFFLINE": self.offline,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_DOWNLOAD_TIMEOUT": TIMEOUT,
            "HF_HUB_ETAG_TIMEOUT": TIMEOUT,
        }
        with pytest.MonkeyPatch.context() as patch:
            for name, value in constants.items():
                patch.setattr(f"huggingface_hub.constants.{name}", value)
            patch.setattr("time.sleep", lambda seconds: None)  # between attempts
            yield patch

    def open(self, name: object = REPOSITORY, **options: object) -> dict:
        with self.asking():
            try:
                source = find_source(str(name), options)
            except MoeLmcError as error:
                return {"code": error.exit_code, "message": str(error)}
        return {"folder": str(source.folder), "commit": source.commit, "listed": source.listed}


@pytest.fixture(autouse=True)
def _no_token_is_shown(capfd):
    yield
    assert all(TOKEN not in shown for shown in capfd.readouterr())


@pytest.fixture(scope="module")
def saved_files(tmp_path_factory):
    """A repository's files; only their names and bytes matter here."""
    folder = tmp_path_factory.mktemp("repository")
    for name in (
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "README.md",
        "pytorch_model.bin",
        "modeling_x.py",
    ):
        (folder / name).write_bytes(name.encode() * 100)
    return folder


@pytest.fixture(scope="module")
def served(saved_files):
    with serve(saved_files) as hub:
        yield hub


@pytest.fixture
def client(served):
    return Client(served.url)


@pytest.fixture
def hub(served):
    served.fault, served.times, served.faulty = "", None, "model.safetensors"
    served.asked.clear()
    return served


@pytest.fixture
def cache(tmp_path):
    return str(tmp_path / "cache")


def test_download(hub, client, cache):
    found = client.open(cache_dir=cache, token=TOKEN)
    assert found["commit"] == COMMIT
    assert {file.name for file in Path(found["folder"]).iterdir()} - {"README.md"} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    }
    assert f"Bearer {TOKEN}" in hub.tokens
    asked = hub.asked["file"]
    assert client.open(f"{REPOSITORY}@main", cache_dir=cache) == found
    assert hub.asked["file"] == asked


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("unauthorized", "does not accept the token for someone/mixtral; log in again"),
        ("gated", "someone/mixtral is gated; ask for access"),
        ("no repository", "someone/mixtral is not on the Hub, or the token may not see it"),
        ("no revision", "someone/mixtral has no revision v9"),
        ("absent", "someone/mixtral@v9 is not on the Hub"),
        ("403", "the token may not read someone/mixtral@v9"),
        ("bad JSON", "the Hub answered something else than expected for someone/mixtral@v9"),
        ("other JSON", "the Hub answered something else than expected for someone/mixtral@v9"),
        ("stalled", "the Hub did not answer in time for someone/mixtral@v9"),
    ],
)
def test_refusals(hub, client, cache, fault, words):
    hub.fault, hub.where = fault, "api"
    start = time.monotonic()
    found = client.open(f"{REPOSITORY}@v9", cache_dir=cache, token=TOKEN)
    assert found["code"] == 6
    assert words in found["message"]
    assert "\n" not in found["message"]
    assert TOKEN not in found["message"]
    assert time.monotonic() - start < DEADLINE


@pytest.mark.parametrize("where", ["api", "file"])
@pytest.mark.parametrize("fault", ["429", "500", "503"])
def test_busy_once(hub, client, cache, fault, where):
    hub.fault, hub.where, hub.times = fault, where, 1
    assert client.open(cache_dir=cache, token=TOKEN)["commit"] == COMMIT


@pytest.mark.parametrize(
    ("fault", "where", "words"),
    [
        ("429", "api", "the Hub has had too many requests from here (429)"),
        ("500", "api", "the Hub failed (500)"),
        ("503", "file", "the Hub failed (503)"),
    ],
)
def test_busy_for_ever(hub, client, cache, fault, where, words):
    hub.fault, hub.where = fault, where
    found = client.open(cache_dir=cache, token=TOKEN)
    assert found["code"] == 6
    assert found["message"].startswith(f"{words} for {REPOSITORY}@main; ")


def test_broken_off_once(hub, client, cache):
    hub.fault, hub.where, hub.times = "truncated", "file", 1
    folder = Path(client.open(cache_dir=cache)["folder"])
    assert (folder / "model.safetensors").read_bytes() == b"model.safetensors" * 100


@pytest.mark.parametrize(
    ("fault", "words"),
    [("truncated", "the connection to the Hub failed"), ("stalled", "the Hub did not answer in time")],
)
def test_broken_off_for_ever(hub, client, cache, fault, words):
    hub.fault, hub.where = fault, "file"
    found = client.open(cache_dir=cache, token=TOKEN)
    assert found["code"] == 6
    assert found["message"].startswith(f"{words} for {REPOSITORY}@main")


@pytest.mark.parametrize("faulty", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("fault", ["other content", "shorter", "longer"])
def test_wrong_bodies(hub, client, cache, fault, faulty, saved_files):
    """Refused while the Hub sends them, not kept, and fetched once it sends the right ones."""
    hub.fault, hub.where, hub.faulty = fault, "file", faulty
    found = client.open(cache_dir=cache, token=TOKEN)
    assert found["code"] == 6
    assert "\n" not in found["message"]
    if fault == "other content":
        assert found["message"].startswith(f"what the Hub sent as {faulty} of {REPOSITORY}@main is not what it lists")
    hub.fault = ""
    folder = Path(client.open(cache_dir=cache)["folder"])
    assert (folder / faulty).read_bytes() == (saved_files / faulty).read_bytes()


def test_a_wrong_body_once(hub, client, cache, saved_files):
    hub.fault, hub.where, hub.times = "other content", "file", 1
    folder = Path(client.open(cache_dir=cache)["folder"])
    assert (folder / "model.safetensors").read_bytes() == (saved_files / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    "name",
    ["a/b/c", "../no-such-model", "a//b", "-x/y", "a b", "", "https://huggingface.co/a/b", "~user", "/absent/folder"],
)
def test_malformed_names(hub, client, cache, name):
    found = client.open(name, cache_dir=cache)
    assert found["code"] == 3
    assert "\n" not in found["message"]


def test_a_name_that_is_also_a_folder(hub, client, tmp_path, cache):
    """As in Transformers, the folder wins."""
    found = client.open(tmp_path, cache_dir=cache)
    assert found["folder"] == str(tmp_path)
    assert found["commit"] is None
    assert not hub.asked


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("model.gguf", "is not a folder; it is GGUF"),
        ("model.safetensors", "is not a folder; give the folder of a model"),
        ("pytorch_model.bin", "is not a folder; pickles are never read"),
        ("pipe", "is not a folder"),
    ],
)
def test_no_folder(hub, client, tmp_path, name, words):
    os.mkfifo(tmp_path / name) if name == "pipe" else (tmp_path / name).write_text("")
    found = client.open(tmp_path / name)
    assert found["code"] == 3
    assert words in found["message"]
    assert not hub.asked


@pytest.mark.parametrize("name", ["SS", "tests/SS"])
@pytest.mark.parametrize("reason", ["unreachable", "offline", "absent"])
def test_a_mistyped_folder(hub, cache, name, reason):
    """In a folder that is there; a repository of another's is not taken for one."""
    hub.fault, hub.where = "no repository", "api"
    url = "http://127.0.0.1:9" if reason == "unreachable" else hub.url
    mistaken = Client(url, offline=reason == "offline")
    found = mistaken.open(name, cache_dir=cache)
    other = mistaken.open("someone/SS", cache_dir=cache)
    assert found["code"] == other["code"] == 6
    assert found["message"].startswith(f"no folder '{name}' here (mistyped?), and ")
    assert found["message"].partition(" here (mistyped?), and ")[2].replace(name, "") == other["message"].replace(
        "someone/SS", ""
    )


@pytest.mark.parametrize("name", ["a" * 5000, "a/" * 3000, "a\0b"])
def test_names_that_no_system_takes(client, name):
    assert client.open(name)["code"] == 3


def test_subfolder(hub, client, cache, saved_files):
    found = client.open(cache_dir=cache, subfolder="absent")
    assert found["code"] in (3, 6)
    assert "absent" in found["message"]


@pytest.fixture
def repository(tmp_path):
    """A repository in shards with names of their own, further weights, and files in folders."""
    folder = tmp_path / "repository"
    (folder / "original").mkdir(parents=True)
    index = {"weight_map": {"a": "weights-b.safetensors", "b": "weights-a.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for name in ("config.json", "tekken.json", "LICENSE", "modeling_x.py", "pytorch_model.bin", "original/params.json"):
        (folder / name).write_text(json.dumps(name))
    for name in ("weights-a", "weights-b", "model.fp16", "consolidated"):
        (folder / f"{name}.safetensors").write_bytes(name.encode())
    return folder


def test_what_is_fetched(repository, cache):
    """The weights that the index names, whatever they are called, and known small files, also offline afterwards."""
    with serve(repository) as hub:
        client = Client(hub.url)
        found = client.open(cache_dir=cache)
        names = {path.name for path in Path(found["folder"]).iterdir()}
        weights = {"weights-a.safetensors", "weights-b.safetensors", "model.safetensors.index.json"}
        assert names == weights | {"config.json", "tekken.json", "LICENSE"}
        assert set(found["listed"]) == {path.name for path in repository.iterdir() if path.is_file()}
        assert client.open(cache_dir=cache, local_files_only=True) == found


def test_a_repository_of_something_else(tmp_path, cache):
    (tmp_path / "repository").mkdir()
    (tmp_path / "repository" / "notebook.ipynb").write_text("{}")
    with serve(tmp_path / "repository") as hub:
        found = Client(hub.url).open(cache_dir=cache)
    assert found["code"] == 3
    assert found["message"] == f"{REPOSITORY} holds no file such as config.json; give another repository"


def test_a_damaged_file_that_another_process_has_left(repository, cache):
    """Killed between the download and the look at it; and damaged later. Each is read once, if nothing happens."""
    with serve(repository) as hub:
        client = Client(hub.url)
        folder = Path(client.open(cache_dir=cache)["folder"])
        checked = folder.parents[1] / ".hf_moe_lmc_checked.json"
        assert len(json.loads(checked.read_text())) == 6
        for unlink in (False, True):
            if unlink:
                checked.unlink()
            broken = [folder / "weights-a.safetensors", folder / "tekken.json"]
            for file in broken:
                status = file.stat()
                file.write_bytes(b"?" * status.st_size)
                os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
            assert client.open(cache_dir=cache)["folder"] == str(folder)
            assert all(file.read_bytes() == (repository / file.name).read_bytes() for file in broken)
        (folder / "tekken.json").write_bytes(b"??")
        found = client.open(cache_dir=cache, local_files_only=True)
    assert "tekken.json of someone/mixtral@main was damaged in the cache" in found["message"]


def test_offline(hub, client, cache):
    offline = Client(hub.url, offline=True)
    found = offline.open(cache_dir=cache)
    assert found["code"] == 6
    assert found["message"] == f"{REPOSITORY}@main is not in the cache, and the network may not be used"
    there = client.open(cache_dir=cache)
    requests = hub.asked.total()
    assert offline.open(cache_dir=cache) == there
    assert client.open(cache_dir=cache, local_files_only=True) == there
    assert client.open(f"{REPOSITORY}@{COMMIT}", cache_dir=cache, local_files_only=True) == there
    assert hub.asked.total() == requests


def test_nothing_cached_and_no_network_wanted(hub, client, cache):
    found = client.open(cache_dir=cache, local_files_only=True)
    assert found["code"] == 6
    assert "is not in the cache" in found["message"]
    assert not hub.asked


def test_no_hub_at_all(cache):
    found = Client("http://127.0.0.1:9").open(cache_dir=cache, token=TOKEN)
    assert found["code"] == 6
    assert "the connection to the Hub failed" in found["message"]


def test_the_command_line(hub, client, saved, tmp_path, capfd):
    hub.fault, hub.where = "gated", "api"
    with client.asking() as patch:
        patch.setenv("HF_TOKEN", TOKEN)
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        assert cli.main(["align", REPOSITORY, str(saved / "single"), "-o", str(tmp_path / "out")]) == 6
    line = f"error: {REPOSITORY} is gated; ask for access on its page and log in (hf auth login)\n"
    assert capfd.readouterr().err == line
    assert f"Bearer {TOKEN}" in hub.tokens
    assert not (tmp_path / "out").exists()
