"""The README's code runs as it stands, on the folders that its demo would have made."""

import re
import shlex
from pathlib import Path

import pytest

from hf_moe_lmc.cli import main
from hf_moe_lmc.demo import run_demo
from tests.demo.tiny import TINY

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("readme")
    run_demo(folder / "demo-sparse", [5, 6], TINY)
    return folder


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_python(folder, monkeypatch):
    monkeypatch.chdir(folder)
    names: dict[str, object] = {}
    for block in blocks("python"):
        exec(block, names)
    assert (folder / "merged" / "model.safetensors").exists()
    assert (folder / "report" / "report.md").exists()


def test_commands(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    commands = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("hf-moe-lmc ")]
    assert len(commands) > 4
    for command in commands:
        assert main(shlex.split(command)[1:]) == 0, command
    assert "inspect" in commands[0]
    assert capsys.readouterr().out
