"""A Hub that drips, never ends, compresses or asks to wait, on the loopback."""

import gzip
import threading
import tracemalloc
from dataclasses import replace
from functools import partial
from itertools import repeat

import pytest
from huggingface_hub import HfApi, get_session, hf_hub_download

from hf_moe_lmc.checkpoints import find_source, hub_limits
from hf_moe_lmc.checkpoints.hub_errors import hub_access
from hf_moe_lmc.errors import HubError
from tests.hub.server import Failure, Repository, dripping


@pytest.fixture
def repository(hub):
    hub.repositories["org/a"] = Repository(commits=[{"config.json": b"{}", "README.md": b"# A\n"}])
    return hub


BOMB = gzip.compress(b"[" * 10**8)
FAULTS = {
    "dripping": (Failure("models/org/a", parts=dripping), "did not answer in time for org/a@main"),
    "endless": (Failure("models/org/a", parts=lambda: repeat(b"[" * 2**16)), "answers hold more than 1000000 bytes"),
    "compressed": (
        Failure("models/org/a", parts=lambda: [BOMB], headers={"Content-Encoding": "gzip"}),
        "an answer is compressed",
    ),
    "repeating": (
        Failure("/tree/", body="[]", headers={"Link": '<{url}/api/models/org/a/tree/main>; rel="next"'}),
        "did not answer in time",
    ),
    "asking to wait": (
        Failure("models/org/a", 429, headers={"Retry-After": "1000000"}),
        r"had too many requests from here \(429\)",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_listing(fault, repository, tmp_path, monkeypatch):
    """It ends in a second, and within ten times the bytes that are read."""
    failure, line = FAULTS[fault]
    headers = {name: value.format(url=repository.url) for name, value in failure.headers.items()}
    repository.failures.append(replace(failure, headers=headers))
    tracemalloc.start()
    with monkeypatch.context() as patch:
        patch.setattr("hf_moe_lmc.checkpoints.download.PAUSES", ())
        patch.setattr(hub_limits, "LARGEST", 10**6)
        patch.setattr(hub_limits, "DEADLINE", 0.5)
        with pytest.raises(HubError, match=line):
            find_source("org/a", {"cache_dir": tmp_path})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10**7
    repository.failures.clear()
    assert (find_source("org/a", {"cache_dir": tmp_path}).folder / "config.json").read_bytes() == b"{}"


def test_many_answers_have_one_deadline(repository, monkeypatch):
    monkeypatch.setattr(hub_limits, "DEADLINE", 3)
    repository.failures.append(Failure("models/org/a", body=None, delay=1))
    answers = []
    with pytest.raises(HubError, match="did not answer in time"), hub_access("org/a"):
        answers.extend(HfApi().model_info("org/a") for _ in range(4))
    assert len(answers) < 4


def slowly(size: int):
    for _ in range(10):
        threading.Event().wait(0.1)
        yield b"x" * (size // 10)


@pytest.mark.parametrize(("size", "arrives"), [(10**7, True), (10**3, False)])
def test_a_large_file_may_take_longer(size, arrives, repository, tmp_path, monkeypatch):
    """In proportion to its size: both take a second."""
    monkeypatch.setattr(hub_limits, "SLOWEST", 10**5)
    files = repository.repositories["org/a"]
    files.commits[0]["big"] = b"x" * size
    headers = {"Content-Length": str(size), "ETag": '"0"', "X-Repo-Commit": files.sha}
    repository.failures.append(Failure("/big", parts=partial(slowly, size), headers=headers))

    def fetched() -> bool:
        with hub_access("org/a"):
            monkeypatch.setattr(hub_limits, "TIMEOUT", 0.5)  # that of the connection stays
            return bool(hf_hub_download("org/a", "big", cache_dir=tmp_path))

    if arrives:
        assert fetched()
    else:
        with pytest.raises(HubError, match="did not answer in time"):
            fetched()


def test_the_client_is_as_before(repository):
    before = get_session().timeout, get_session().event_hooks
    with hub_access("org/a"):
        HfApi().model_info("org/a")
        assert get_session().timeout.read == hub_limits.TIMEOUT
    assert (get_session().timeout, get_session().event_hooks) == before
