import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

from tests import models
from tests.checkpoints.faulty import failed, worked

LIMIT_SECONDS = 120


@pytest.fixture(autouse=True)
def _nothing_hangs():
    """A test that waits, as for a file that never ends, fails."""

    def late(*_: object) -> None:
        pytest.fail(f"not done after {LIMIT_SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(LIMIT_SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="session")
def saved(tmp_path_factory) -> Path:
    """A folder of one Mixtral, saved sharded and as a single file. Read it only."""
    folder = tmp_path_factory.mktemp("saved")
    model = models.build("mixtral", dtype=torch.float32)
    model.save_pretrained(folder / "sharded", max_shard_size="8KB")
    model.save_pretrained(folder / "single")
    return folder


@pytest.fixture
def sharded(saved, tmp_path) -> Path:
    """A copy of it in shards, to be broken."""
    return shutil.copytree(saved / "sharded", tmp_path / "sharded")


@pytest.fixture
def single(saved, tmp_path) -> Path:
    """A copy of it in one file, to be broken."""
    return shutil.copytree(saved / "single", tmp_path / "single")


@pytest.fixture(params=["sharded", "single"])
def checkpoint(request) -> Path:
    """A copy of it, to be broken."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def refused(saved, tmp_path, capsys):
    """Merge with an intact checkpoint must end with exit code 3 and one line that says all of `words`."""

    def check(folder: Path, *words: str, options: tuple[str, ...] = ()) -> None:
        found = failed(capsys, tmp_path / "out", "merge", saved / "single", folder, "--force", *options)
        assert found.code == 3, found.line
        assert all(word in found.line for word in words), found.line
        assert os.fspath(folder) in found.line

    return check


@pytest.fixture
def accepted(saved, tmp_path, capsys):
    """Merge with an intact checkpoint must work; gives the merged tensors' folder."""

    def check(folder: Path, *options: str) -> Path:
        worked(capsys, tmp_path / "out", "merge", saved / "single", folder, "--force", *options)
        return tmp_path / "out"

    return check
