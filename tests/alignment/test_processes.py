"""Jobs of two real processes on the loopback, forked from a server that has imported everything."""

import json
import os
import signal
import time
from datetime import timedelta
from pathlib import Path

import pytest

from hf_moe_lmc.alignment import job as job_module
from hf_moe_lmc.alignment import write
from tests import families, forked


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def job(folder: Path, index: int, dies_after: int | None) -> int:
    """Align, apply and merge into `folder`, as one of the processes of `torchrun`.

    With `dies_after`, kill -9 instead of its second step of the merge, once the other process has done so many.
    """
    steps, write_step = [], write._write

    def counted(writer, output, step, inputs):
        if output.record["command"] == "merge":
            steps.append(step.name)
            if dies_after is not None and len(steps) == 2:
                other = folder / ".merged.hf_moe_lmc" / ("journal.jsonl" if index else "journal-1.jsonl")
                while not other.exists() or other.read_bytes().count(b"\n") < 1 + dies_after:
                    time.sleep(0.01)
                os.kill(os.getpid(), signal.SIGKILL)
        return write_step(writer, output, step, inputs)

    write._write = counted
    a, b = (str(folder.parent / name) for name in "ab")
    alignment, applied, merged = (str(folder / name) for name in ("alignment", "applied", "merged"))
    for command in (
        ["align", a, b, "-o", alignment],
        ["apply", alignment, b, "-o", applied],
        ["merge", a, b, "--force", "--alignment", alignment, "-o", merged],
    ):
        if code := forked.command([*command, "--overwrite"], folder.with_name(f"{folder.name}-errors-{index}")):
            return code
    folder.with_name(f"{folder.name}-steps-{index}").write_text(json.dumps(steps))
    return 0


def run(folder: Path, size: int, dies: tuple[int, int] | None = None) -> list[int | None]:
    """Run the job by so many processes; of `dies`, the one that dies, and its `dies_after`."""
    folder.mkdir(exist_ok=True)
    return forked.run_job(
        job, [(folder, index, dies[1] if dies and dies[0] == index else None) for index in range(size)]
    )


def steps(folder: Path, size: int) -> list[list[str]]:
    """The steps of the merge that each process wrote."""
    return [json.loads(folder.with_name(f"{folder.name}-steps-{index}").read_text()) for index in range(size)]


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> Path:
    """A pair of three layers, `a` and `b`, and beside it the folder of a job of one process."""
    folder = tmp_path_factory.mktemp("processes")
    for seed, name in enumerate("ab"):
        families.build("mixtral", seed=seed).save_pretrained(folder / name, max_shard_size="20KB")
    assert run(folder / "one", 1) == [0]
    return folder / "one"


def test_two_processes_write_what_one_writes(one):
    (alone,) = steps(one, 1)
    two = one.with_name("two")
    assert run(two, 2) == [0, 0]
    assert content(two) == content(one)
    first, second = steps(two, 2)
    assert sorted(first + second) == sorted(alone)
    assert abs(len(first) - len(second)) <= 1


@pytest.mark.parametrize("dying", [0, 1])
def test_one_that_is_killed_ends_the_other_and_the_next_job_goes_on(one, dying):
    (alone,) = steps(one, 1)
    killed = one.with_name(f"killed-{dying}")
    codes = run(killed, 2, dies=(dying, len(alone[1 - dying :: 2])))
    assert codes.pop(dying) == -signal.SIGKILL
    assert codes[0] not in (0, None)  # it has ended, in error
    assert not (killed / "merged").exists()
    assert run(killed, 2) == [0, 0]
    assert content(killed) == content(one)
    # The killed one had written its first, and the other all of its own.
    assert sorted(step for own in steps(killed, 2) for step in own) == sorted(alone[dying::2][1:])


def alone(error: Path) -> int:
    job_module.MEETING = timedelta(seconds=1)
    return forked.command(["inspect", "absent"], error)


@pytest.mark.parametrize("index", [0, 1])
def test_one_whose_partner_was_killed_before_they_met_ends(index, tmp_path):
    """Where no launcher ends it."""
    assert forked.run_job(alone, [(tmp_path / "error",)] * 2, only=index) == [130]
    assert "error: another process of this job has ended, or never began; " in (tmp_path / "error").read_text()
