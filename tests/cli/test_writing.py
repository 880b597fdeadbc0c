"""What the commands that write say and leave, as processes of their own."""

import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from hf_moe_lmc import align, cli
from tests import forked
from tests.tiny_pair import save_pair


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Path:
    """Checkpoints a and b, in shards, and their alignment."""
    folder = tmp_path_factory.mktemp("pair")
    save_pair(folder)
    align(folder / "a", folder / "b").save_pretrained(folder / "alignment")
    return folder


def arguments(pair: Path, out: Path, *more: str) -> list[str]:
    return ["merge", str(pair / "a"), str(pair / "b"), "--alignment", str(pair / "alignment"), "-o", str(out), *more]


def finished(process, limit: float = 60) -> int:
    process.join(limit)
    assert process.exitcode is not None
    return process.exitcode


def equal(a: Path, b: Path) -> bool:
    files = {path.name: path.read_bytes() for path in a.iterdir()}
    return files == {path.name: path.read_bytes() for path in b.iterdir()}


@pytest.fixture(scope="module")
def undisturbed(pair) -> Path:
    out = pair / "undisturbed" / "out"  # the card calls the folder by its name
    out.parent.mkdir()
    assert cli.main(arguments(pair, out)) == 0
    return out


def pausing(arguments: list[str], error: Path, at: Path) -> int:
    """The command, which creates the file `at` after its first step and waits there."""
    from hf_moe_lmc.checkpoints.durable import Journal

    record = Journal.record

    def paused(journal, step, note):
        record(journal, step, note)
        at.touch()
        time.sleep(60)

    Journal.record = paused
    return forked.command(arguments, error)


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert path.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_cleanly_and_it_goes_on(number, pair, undisturbed, tmp_path):
    command, error, reached = arguments(pair, tmp_path / "out"), tmp_path / "error", tmp_path / "reached"
    process = forked.start(pausing, command, error, reached)
    wait_for(reached)
    start = time.monotonic()
    os.kill(process.pid, number)
    assert finished(process) == 130
    assert time.monotonic() - start < 2
    assert error.read_text() == "interrupted; run the same command again to go on\n"
    assert not (tmp_path / "out").exists()
    steps = (tmp_path / ".out.hf_moe_lmc" / "journal.jsonl").read_text().splitlines()
    assert len(steps) == 2
    assert cli.main(command) == 0
    assert equal(tmp_path / "out", undisturbed)
    assert not (tmp_path / ".out.hf_moe_lmc").exists()


def test_two_writers(pair, undisturbed, tmp_path, capsys):
    command, error, reached = arguments(pair, tmp_path / "out"), tmp_path / "error", tmp_path / "reached"
    process = forked.start(pausing, command, error, reached)
    wait_for(reached)
    assert cli.main(command) == 5
    assert capsys.readouterr().err.endswith("in use by another process; wait for it or give another output\n")
    process.kill()
    assert finished(process) == -signal.SIGKILL
    assert cli.main(command) == 0
    assert equal(tmp_path / "out", undisturbed)


def limited(kind: int, limit: int, arguments: list[str], error: Path) -> int:
    """The command under a limit on its resources."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(kind, (limit, resource.getrlimit(kind)[1]))
    return forked.command(arguments, error)


@pytest.mark.parametrize("kilobytes", [1, 4, 12, 16])
def test_a_limit_on_the_size_of_files(kilobytes, pair, undisturbed, tmp_path):
    """The system refuses to write in the middle of a file; 16 kB are enough."""
    command, error = arguments(pair, tmp_path / "out"), tmp_path / "error"
    process = forked.start(limited, resource.RLIMIT_FSIZE, 1024 * kilobytes, command, error)
    assert finished(process) == (5 if kilobytes < 16 else 0)
    if kilobytes < 16:
        assert not (tmp_path / "out").exists()
        assert "File too large; make room and try again" in error.read_text()
        assert error.read_text().count("\n") == 1
        assert cli.main(command) == 0
    assert equal(tmp_path / "out", undisturbed)


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    """A disk of 256 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


def may_mount() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        mounted = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], capture_output=True).returncode == 0
        if mounted:
            subprocess.run(["umount", folder], check=True)
        return mounted


def filling(arguments: list[str], error: Path, disk: Path) -> int:
    """The command, on a disk that is full after its first step."""
    from hf_moe_lmc.checkpoints.durable import Journal

    record = Journal.record

    def fill(journal, step, note):
        record(journal, step, note)
        with suppress(OSError), (disk / "filler").open("ab", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)

    Journal.record = fill
    return forked.command(arguments, error)


if may_mount():

    def test_a_full_disk(pair, undisturbed, disk, tmp_path):
        command, error = arguments(pair, disk / "out"), tmp_path / "error"
        assert finished(forked.start(filling, command, error, disk)) == 5
        assert error.read_text().endswith("No space left on device; make room and try again\n")
        assert error.read_text().count("\n") == 1
        assert sorted(path.name for path in disk.iterdir()) == [".out.hf_moe_lmc", "filler"]
        (disk / "filler").unlink()
        assert cli.main(command) == 0
        assert equal(disk / "out", undisturbed)

    def test_a_disk_that_is_too_small(pair, disk, capsys):
        (disk / "filler").write_bytes(bytes(200 * 1024))
        assert cli.main(arguments(pair, disk / "out")) == 5
        assert "are needed; make room" in capsys.readouterr().err
        assert [path.name for path in disk.iterdir()] == ["filler"]

    def test_a_mount_point(pair, disk, capsys):
        assert cli.main(arguments(pair, disk)) == 5
        assert "is a link or a mount point" in capsys.readouterr().err


def test_few_descriptors(pair, undisturbed, tmp_path):
    command, error = arguments(pair, tmp_path / "out"), tmp_path / "error"
    process = forked.start(limited, resource.RLIMIT_NOFILE, 24, command, error)
    assert finished(process) == 0, error.read_text()
    assert equal(tmp_path / "out", undisturbed)


def test_the_c_locale_and_a_closed_output(pair, undisturbed, tmp_path):
    """A name that is not ASCII, and standard output that nobody reads."""
    folder = tmp_path / "größer"
    folder.mkdir()
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "hf_moe_lmc", *arguments(pair, folder / "out")]
    done = subprocess.run(command, env=environment, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, b"rror" in done.stderr) == (141, False)
    assert equal(folder / "out", undisturbed)
