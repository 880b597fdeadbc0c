"""What the command line offers is what `names.py` and the Python interface say, defaults included."""

import inspect
from dataclasses import fields
from typing import get_args

import pytest
import torch

from hf_moe_lmc import AlignmentConfig, MoeAligner, align, cli, names
from hf_moe_lmc.aligner import POINTS, MergeOptions, apply
from hf_moe_lmc.alignment import WriteOptions, shares_at
from hf_moe_lmc.cli.parser import command_line
from hf_moe_lmc.connectivity import VARIANTS, PathSettings
from hf_moe_lmc.merging import REPAIRS
from tests.hub.server import TOKEN, Repository
from tests.models import build


def arguments(command: str) -> dict:
    """Argument of a command -> its action."""
    root = command_line()
    (group,) = (action for action in root._actions if hasattr(action, "choices") and isinstance(action.choices, dict))
    return {action.dest: action for action in group.choices[command]._actions}


@pytest.mark.parametrize(
    ("command", "argument", "offered"),
    [
        ("merge", "expert_order", names.ExpertOrder),
        *((command, "layout", names.Layout) for command in ("apply", "merge")),
        *((command, "dtype", names.Dtype) for command in ("apply", "merge")),
        ("evaluate", "variants", names.Variant),
        ("demo", "variant", names.MoeVariant),
    ],
)
def test_every_name_is_offered(command, argument, offered):
    assert tuple(arguments(command)[argument].choices) == get_args(offered)


@pytest.mark.parametrize("command", ["merge", "evaluate"])
def test_every_repair_is_offered(command):
    assert tuple(arguments(command)["repair"].choices) == (*get_args(names.Repair), "auto")


def test_every_name_means_something():
    assert tuple(REPAIRS) == get_args(names.Repair)
    assert tuple(VARIANTS) == get_args(names.Variant)
    assert all(isinstance(getattr(torch, name), torch.dtype) for name in get_args(names.Dtype))


def default(function, name: str):
    return inspect.signature(function).parameters[name].default


def field(record: type, name: str):
    return next(field.default for field in fields(record) if field.name == name)


def test_defaults_are_those_of_python():
    evaluate, merge, align_, apply_, demo = map(arguments, ("evaluate", "merge", "align", "apply", "demo"))
    method = MoeAligner.evaluate
    assert evaluate["points"].default == POINTS == default(method, "points")
    assert evaluate["variants"].default == default(method, "variants") == field(PathSettings, "variants")
    assert evaluate["repair"].default == default(method, "repairs") == field(PathSettings, "repairs")
    assert tuple(evaluate["metrics"].default) == default(method, "metrics") == field(PathSettings, "metrics")
    assert evaluate["seed"].default == default(method, "seed") == field(PathSettings, "seed")
    assert evaluate["memory"].default == default(method, "memory") == field(PathSettings, "memory")
    for command in (align_, merge):
        assert command["expert_order"].default == field(AlignmentConfig, "expert_order")
        assert command["device"].default is default(MoeAligner.align, "device") is None
        assert command["memory"].default is default(MoeAligner.align, "memory") is None
        assert command["overwrite"].default is default(MoeAligner.align, "overwrite") is False
    for command in (apply_, merge):
        assert command["layout"].default == field(WriteOptions, "layout") == default(apply, "layout")
        assert command["dtype"].default is field(WriteOptions, "dtype") is default(apply, "dtype") is None
        assert command["overwrite"].default is field(WriteOptions, "overwrite") is False
        assert command["allow_other_weights"].default is default(apply, "allow_other_weights") is False
    assert merge["t"].default is default(MoeAligner.merge, "t") is None
    assert merge["shares"].default is None
    assert merge["repair"].default == ()
    assert demo["variant"].default == "sparse"


def test_every_keyword_of_a_merge_has_its_flag():
    """But for data and for how Transformers implements attention, which the data flags and the model say."""
    flags = set(arguments("merge")) | {"repairs", "calibration", "attn_implementation"}
    assert MergeOptions.__annotations__.keys() <= flags


def test_the_default_t_is_the_midpoint(tmp_path):
    a, b = (build("mixtral", seed=seed, dtype=torch.float32) for seed in (0, 1))
    aligner, alignment = MoeAligner.from_pretrained(a, b), align(a, b, config="gate")
    found, expected = (aligner.merge(alignment, t, force=True).state_dict() for t in (None, 0.5))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
    assert shares_at(0.5) == (0.5, 0.5)
    assert "(default: 0.5)" in arguments("merge")["t"].help


@pytest.fixture
def gated(hub, tmp_path, monkeypatch):
    """org/a, org/b and their alignment, for members only; this process has no token of its own."""
    models = [build("mixtral", seed=seed, dtype=torch.float32) for seed in (0, 1)]
    for name, model in zip("ab", models, strict=True):
        model.save_pretrained(tmp_path / name)
    align(tmp_path / "a", tmp_path / "b", output=tmp_path / "alignment")
    for name in ("a", "b", "alignment"):
        content = {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()}
        hub.repositories[f"org/{name}"] = Repository(private=True, commits=[content])
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    return hub


@pytest.mark.parametrize(
    "command",
    [
        ["inspect", "org/a"],
        ["align", "org/a", "org/b"],
        ["apply", "org/alignment", "org/b"],
        ["merge", "org/a", "org/b", "--alignment", "org/alignment", "--force"],
    ],
)
def test_the_hub_is_reached_as_the_flags_say(command, gated, tmp_path, capsys):
    """With the token, into the cache that is named; then from it alone, without a request."""
    access, cache = ["--cache-dir", str(tmp_path / "own")], tmp_path / "own"

    def run(*flags: str) -> int:
        output = [] if command[0] == "inspect" else ["-o", str(tmp_path / "out"), "--overwrite"]
        return cli.main([*command, *output, *access, *flags])

    assert run() == 6
    assert run("--token", TOKEN) == 0
    assert {folder.name for folder in cache.glob("models--*")} == {
        f"models--{word.replace('/', '--')}" for word in command if word.startswith("org/")
    }
    assert not (tmp_path / "cache").exists()
    gated.requests.clear()
    assert run("--local-files-only") == 0
    assert gated.requests == []
    captured = capsys.readouterr()
    assert TOKEN not in captured.out + captured.err
