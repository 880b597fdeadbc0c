import os

import pytest
import torch

from tests.hub.server import TOKEN, running_hub

# One thread per test process, unless told otherwise: with several processes, more threads than cores spend their time
# waiting for another. Processes that tests start inherit it.
torch.set_num_threads(int(os.environ.setdefault("OMP_NUM_THREADS", "1")))


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk():
    """What was written outlasts the death of its process without fsync, though no loss of power, which no test has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda descriptor: None)
        yield


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub on the loopback that this process talks to, with a token of its own."""
    with running_hub() as hub:
        # Addresses are fixed when the library is imported; processes of their own take HF_ENDPOINT.
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
        template = "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", hub.url + template)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
        yield hub


@pytest.fixture
def data_hub(hub, monkeypatch, tmp_path):
    """That Hub for `datasets` too, with a cache of its own."""
    from huggingface_hub import HfFileSystem

    monkeypatch.setattr("datasets.config.HF_ENDPOINT", hub.url)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    yield hub
    HfFileSystem.clear_instance_cache()  # listings of a server whose port another may get
