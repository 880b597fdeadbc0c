"""`merge --dry-run` beside the same merge: what it says happens, and what it refuses is refused."""

import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_moe_lmc import cli, scramble
from hf_moe_lmc.checkpoints import StoredTensor
from tests.cli.test_mistakes import exit_code
from tests.models import build


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """a; b, the same scrambled; c, another model; alignments of both to a; a file and a folder in the way."""
    folder: Path = tmp_path_factory.mktemp("plan")
    model = build("mixtral", dtype=torch.float32)
    model.save_pretrained(folder / "a")
    scramble(model)[0].save_pretrained(folder / "b")
    build("mixtral", seed=1, dtype=torch.float32).save_pretrained(folder / "c")
    for name in "bc":
        words = ["align", str(folder / "a"), str(folder / name), "-o", str(folder / f"to {name}"), "--quiet"]
        assert cli.main(words) == 0
    (folder / "foreign").mkdir()
    (folder / "foreign" / "file").write_text("mine")
    return folder


@pytest.fixture
def read(monkeypatch) -> Counter[str]:
    """Folder -> bytes of the tensors that are read from it."""
    counts, read_into = Counter(), StoredTensor.read_into

    def counted(stored: StoredTensor, tensor: torch.Tensor) -> None:
        counts[stored.file.parent.name] += tensor.nbytes
        read_into(stored, tensor)

    monkeypatch.setattr(StoredTensor, "read_into", counted)
    return counts


def written(out: Path) -> int:
    return sum(tensor.nbytes for file in out.rglob("*.safetensors") for tensor in load_file(file).values())


@pytest.mark.parametrize(
    "words",
    [
        ["--expert-order", "gate"],
        ["--expert-order", "gate", "--t", "0.25", "0.5", "1"],
        ["--expert-order", "none", "--dtype", "bfloat16"],
        ["--expert-order", "none", "--t", "1"],
        ["--alignment", "to b", "--t", "0", "--repair", "norms"],
    ],
    ids=" ".join,
)
def test_what_is_read_and_written(words, folder, read, tmp_path, monkeypatch):
    from hf_moe_lmc import aligner

    monkeypatch.chdir(folder)
    plans, plan_merge = [], aligner.plan_merge
    monkeypatch.setattr(aligner, "plan_merge", lambda *a, **k: plans.append(plan_merge(*a, **k)) or plans[0])
    command = ["merge", "a", "b", *words, "-o", str(tmp_path / "out")]
    assert cli.main([*command, "--dry-run"]) == 0
    assert not (tmp_path / "out").exists()
    (plan,) = plans
    read.clear()
    assert cli.main(command) == 0
    assert written(tmp_path / "out") == plan.written
    assert sum(read[name] for name in "ab") == plan.read


@pytest.mark.parametrize(
    "words",
    [
        "a b -o out --t 7",
        "a b -o foreign",
        "a b -o out --alignment nowhere",
        "a c -o out --alignment|to c",
        "a b -o out --repair moments",
        "a b -o out --shares 1 2 3",
        "a b -o out --device cuda:9",
        "a b -o out --memory 1kB",
    ],
)
def test_what_is_refused(words, folder, monkeypatch, capsys):
    """In the same words."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    arguments = [part.replace("|", " ") for part in words.split()]
    arguments = [part for word in arguments for part in (word.split(" ", 1))]
    said = []
    for more in (["--dry-run"], []):
        assert exit_code(["merge", *arguments, *more]) in (2, 3, 4, 5, 6)
        said.append(capsys.readouterr().err.splitlines()[-1])
    assert said[0] == said[1]
    assert sorted(os.listdir(folder)) == ["a", "b", "c", "foreign", "to b", "to c"]


def test_too_little_room(folder, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(folder)
    usage = shutil.disk_usage(folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    words = ["merge", "a", "b", "--expert-order", "none", "-o", str(tmp_path / "out")]
    assert cli.main([*words, "--dry-run"]) == 0
    assert "free on the output's disk  1 kB, which is too little" in capsys.readouterr().out
    assert cli.main(words) == 5
    assert "has 1,000 bytes free, but" in capsys.readouterr().err
