import os
import shutil
import time
from pathlib import Path

import pytest

from hf_moe_lmc.alignment import open_model
from hf_moe_lmc.checkpoints import Fingerprint
from hf_moe_lmc.errors import BadInputError
from tests.checkpoints.faulty import shards


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(1_000_000))
    return path


def changed_in_secret(file: Path, position: int) -> None:
    """One byte, with the size and the time of before."""
    status = file.stat()
    time.sleep(0.02)  # the clock of a file system ticks
    with file.open("r+b") as opened:
        opened.seek(position)
        opened.write(b"!")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_the_same(file):
    assert Fingerprint.of(file) == Fingerprint.of(file)
    assert Fingerprint.of(file).is_unchanged(file)


@pytest.mark.parametrize("position", [0, 430_000, 999_999])
def test_changed_with_the_size_and_the_time_of_before(file, position):
    """Between the samples, the time of the last change of any kind tells, which no program can set."""
    before = Fingerprint.of(file)
    changed_in_secret(file, position)
    after = Fingerprint.of(file)
    assert (before.size, before.modified) == (after.size, after.modified)
    assert before.changed != after.changed
    assert (before.digest != after.digest) == (position != 430_000)
    assert not before.is_unchanged(file)


def test_another_file_in_its_place(file):
    before = Fingerprint.of(file)
    copy = shutil.copy2(file, file.with_name("copy"))
    os.replace(copy, file)
    assert Fingerprint.of(file) != before


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097])
def test_small_files(file, size):
    file.write_bytes(os.urandom(size))
    assert Fingerprint.of(file).size == size


def test_no_file(tmp_path):
    with pytest.raises(BadInputError, match=r"cannot read .*absent"):
        Fingerprint.of(tmp_path / "absent")


def test_a_run_that_goes_on_begins_anew_when_an_input_has_changed(sharded):
    before = open_model(sharded).fingerprint
    assert open_model(sharded).fingerprint == before
    changed_in_secret(shards(sharded)[-1], 5000)
    assert open_model(sharded).fingerprint != before
