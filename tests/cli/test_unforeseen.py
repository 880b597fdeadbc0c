"""Inputs of all kinds, broken at random: refused or accepted, never an error that was not foreseen."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from hf_moe_lmc import cli
from hf_moe_lmc.cli.failures import UNEXPECTED
from tests.tiny_pair import save_pair

FUZZ = settings(
    max_examples=25, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)

VALUES: st.SearchStrategy[Any] = st.sampled_from(
    [
        *(None, True, 0, 1, -1, 7, 2.5, 10**9, 2**63, 10**400, float("nan"), float("inf")),
        *("", "x", "\x1b[31m", "../x", [], {}, [None], [1, "a"], {"a": {"b": 1}}, {"tokens": 5}, {"__float__": "x"}),
    ]
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two checkpoints with tokenizers, and the alignment of the second to the first."""
    folder = tmp_path_factory.mktemp("pair")
    save_pair(folder)
    for name in "ab":
        (folder / name / "vocab.json").write_text(json.dumps({"x": 0, "y": 1}))
        (folder / name / "merges.txt").write_text("x y\n")
        (folder / name / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ x }}"}))
    assert cli.main(["align", str(folder / "a"), str(folder / "b"), "-o", str(folder / "alignment")]) == 0
    return folder


def foreseen(capsys, folder: Path, *arguments: object) -> int:
    """The exit code of a command, which says one line if it fails."""
    shutil.rmtree(folder / "out", ignore_errors=True)
    try:
        code = cli.main([*map(str, arguments)])
    except SystemExit as usage:
        code = int(str(usage.code))
    shown = capsys.readouterr().err
    assert code != UNEXPECTED, f"{arguments}: {shown}"
    assert code == 0 or shown.splitlines()[-1].startswith("error: "), shown
    assert "\x1b[31m" not in shown
    return code


def places(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a JSON value."""
    keys = content if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ()
    for key in keys:
        yield (*path, key)
        yield from places(content[key], (*path, key))


def broken(draw: st.DataObject, content: Any) -> None:
    """Put another value in one place of `content`, or take it out."""
    *path, last = draw.draw(st.sampled_from(sorted(places(content), key=str)))
    for key in path:
        content = content[key]
    if draw.draw(st.booleans()) or isinstance(content, list):
        content[last] = draw.draw(VALUES)
    else:
        del content[last]


def break_json(draw: st.DataObject, file: Path) -> None:
    content = json.loads(file.read_bytes())
    broken(draw, content)
    file.write_text(json.dumps(content))


def copied(folder: Path, name: str) -> Path:
    """A copy, to be broken."""
    shutil.rmtree(folder / "broken", ignore_errors=True)
    return shutil.copytree(folder / name, folder / "broken")


@FUZZ
@given(draw=st.data())
def test_settings(folder, capsys, draw):
    model = copied(folder, "b")
    files = ["config.json"] * 6 + ["vocab.json", "vocab.json", "tokenizer_config.json", "generation_config.json"]
    break_json(draw, model / draw.draw(st.sampled_from(files)))
    foreseen(capsys, folder, "merge", folder / "a", model, "--expert-order", "gate", "-o", folder / "out")


@FUZZ
@given(draw=st.data())
def test_alignments(folder, capsys, draw):
    alignment = copied(folder, "alignment")
    if draw.draw(st.booleans()):
        break_json(draw, alignment / "alignment_config.json")
    else:
        file = alignment / "alignment.safetensors"
        tensors = load_file(file)
        key = draw.draw(st.sampled_from(sorted(tensors)))
        changes = {
            "axis": lambda t: t[None],
            "scalar": lambda t: t.flatten()[0],
            "twice": lambda t: torch.cat([t, t]),
            "shorter": lambda t: t[1:].clone(),
            "negative": lambda t: -t,
            **{str(dtype): lambda t, dtype=dtype: t.to(dtype) for dtype in KINDS},
        }
        tensors[key] = changes[draw.draw(st.sampled_from(sorted(changes)))](tensors[key])
        save_file(tensors, file)
    code = foreseen(capsys, folder, "apply", alignment, folder / "b", "--allow-other-weights", "-o", folder / "out")
    if code == 0:
        foreseen(capsys, folder, "card", folder / "out", "--alignment", alignment)
        foreseen(capsys, folder, "push", alignment, "org/name", "--license", "mit", "--dry-run")


KINDS = (torch.bool, torch.int8, torch.int32, torch.uint64, torch.float32, torch.float8_e4m3fn, torch.complex64)

NUMBERS = ["", "-1", "0", "0.5", "1", "nan", "inf", "1e308", "1e400", "-0", "0.30000000000000004", "0.3", "x"]
OPTIONS = {
    "--t": NUMBERS,
    "--shares": NUMBERS,
    "--memory": ["infGB", "-1", "1e400", "0", "4XB", "GB", "1kB", "4GB"],
    "--device": ["meta", "cuda:9", "", "cpu:3", "nowhere", "mps", "privateuseone"],
    "--threads": ["0", "1", "9" * 20],
    "--dtype": ["float64", "float16"],
    "--layout": ["fused", "original"],
    "--repair": ["norms", "gram", "auto", "rescale"],
    "--expert-order": ["none", "units", "joint", "gram"],
    "--alignment": ["absent", "alignment", "a"],
    "--config": ["/dev/null", "absent", "a", "fifo"],
    "--dataset": ["absent", "a", "text.txt", ""],
    "--length": ["-1", "0", "8", "x"],
    "--calibration-examples": ["-1", "1", "4"],
    "--batch-size": ["0", "-1", "2"],
    "--token": ["x", ""],
    "-o": ["out", "a", ".", "", "a/b", "absent/out", "n" * 300],
}


@FUZZ
@given(draw=st.data())
def test_options(folder, capsys, monkeypatch, draw):
    monkeypatch.chdir(folder)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    if not Path("fifo").exists():
        os.mkfifo("fifo")
        Path("text.txt").write_text("some text " * 200)
    flags = draw.draw(st.lists(st.sampled_from(sorted(OPTIONS)), max_size=3, unique=True))
    arguments = ["merge", "a", "b", "-o", "out"]
    for flag in flags:
        few = draw.draw(st.lists(st.sampled_from(OPTIONS[flag]), min_size=1, max_size=2))
        arguments += [flag, *(few if flag in ("--t", "--shares", "--repair") else few[:1])]
    if draw.draw(st.booleans()):
        arguments += ["--dry-run"]
    foreseen(capsys, folder, *arguments)
