"""What all commands have in common: a file of settings, output for machines, quiet, verbose, colours, completion."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hf_moe_lmc import cli
from hf_moe_lmc.cli.parser import COMMANDS, command_line
from hf_moe_lmc.cli.results import RED, coloured
from tests.tiny_pair import save_pair

COMMAND = [sys.executable, "-m", "hf_moe_lmc"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pair")
    save_pair(folder)
    return folder


def write(file: Path, **settings: object) -> str:
    file.write_text("".join(f"{name}: {json.dumps(value)}\n" for name, value in settings.items()))  # JSON is YAML
    return str(file)


def parsed(*arguments: str) -> dict:
    return {name: value for name, value in vars(command_line().parse_args([*arguments])).items() if name != "root"}


def test_a_file_says_what_the_command_line_would(tmp_path):
    file = write(
        tmp_path / "merge.yml",
        reference="org/a",
        other="org/b",
        output="out",
        t=[0.25, 1],
        **{"expert-order": "joint", "repair": ["norms", "gram"], "overwrite": True},
    )
    found = parsed("merge", "--config", file)
    words = [
        "org/a",
        "org/b",
        "-o",
        "out",
        "--t",
        "0.25",
        "1",
        "--expert-order",
        "joint",
        "--repair",
        "norms",
        "gram",
        "--overwrite",
    ]
    assert {name: value for name, value in found.items() if name != "config"} == parsed("merge", *words)


def test_the_command_line_wins(tmp_path):
    file = write(tmp_path / "merge.yml", reference="org/a", other="org/b", output="out", t=0.25, dtype="float32")
    found = parsed("merge", "here", f"--config={file}", "--t", "0.5", "0.75", "-o", "elsewhere")
    assert [found[name] for name in ("reference", "other", "output")] == ["here", ["org/b"], "elsewhere"]
    assert (found["t"], found["dtype"]) == ([0.5, 0.75], "float32")


@pytest.mark.parametrize("command", [module.__name__.rpartition(".")[2] for module in COMMANDS])
def test_every_command_takes_one(command, tmp_path, capsys):
    file = write(tmp_path / "settings.yml", absent=1)
    with pytest.raises(SystemExit, match="2"):
        command_line().parse_args([command, "--config", file])
    assert f"error: {file}: there is no argument absent; known are " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("t: [0.5, half]", "argument --t: invalid float value: 'half'"),
        ("layout: {a: 1}", "layout is {'a': 1}; give one value"),
        ("layout: kept and fused", "argument --layout: invalid choice: 'kept and fused'"),
        ("overwrite: 1", "overwrite is 1; say true or false"),
        ("repair: [norms, luck]", "argument --repair: invalid choice: 'luck'"),
        ("t: []", "t is []; give one value or a list"),
        ("[1]", "holds no `argument: value` lines"),
        ("a: [", "cannot be read as YAML"),
        ("help: true", "there is no argument help"),
        (None, "No such file or directory"),
    ],
)
def test_a_file_that_is_wrong(content, line, tmp_path, capsys):
    file = tmp_path / "merge.yml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(SystemExit, match="2"):
        cli.main(["merge", "a", "b", "-o", "out", "--config", str(file)])
    assert line in (shown := capsys.readouterr().err)
    assert shown.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [["--config", "x.yml", "align", "a", "b", "-o", "o"], ["align", "--conf", "x.yml", "a", "b", "-o", "o"]],
)
def test_a_file_is_never_passed_over(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(arguments)


def test_a_run_out_of_a_file(pair, tmp_path, capsys):
    file = write(tmp_path / "align.yml", reference=str(pair / "a"), other=str(pair / "b"), expert_order="gate")
    assert cli.main(["align", "--config", file, "-o", str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out/alignment_config.json").read_text())["config"]["expert_order"] == "gate"


def test_documents_for_machines(pair, tmp_path, capsys):
    models, out = [str(pair / "a"), str(pair / "b")], tmp_path

    def document(*arguments: str) -> dict:
        assert cli.main(["--json", *arguments]) == 0
        return json.loads(capsys.readouterr().out)

    assert document("inspect", models[0])["layers"][0]["num_experts"] == 3
    assert document("align", *models, "-o", str(out / "x"), "--dry-run")["layers"] == 1
    aligned = document("align", *models, "-o", str(out / "alignment"))
    assert aligned["layers"][0]["distance_after"] < aligned["layers"][0]["distance_before"]
    assert aligned["verdict"]["layers"][0]["label"] == "aligned"
    assert document("merge", *models, "-o", str(out / "merged"))["output"] == str(out / "merged")
    rewritten = document("apply", str(out / "alignment"), models[1], "-o", str(out / "aligned"))["output"]
    assert document("verify", models[1], rewritten)["equal"] is True
    assert document("card", str(out / "merged"), "--license", "mit")["output"].endswith("README.md")
    sent = document("push", str(out / "merged"), "me/ab", "--dry-run")
    assert (sent["repo_id"], sent["license"]) == ("me/ab", "mit")
    shards = {file.name: file.stat().st_size for file in (out / "merged").glob("*.safetensors")}
    assert shards.items() <= sent["files"].items()


def test_quiet_and_verbose(pair, tmp_path):
    """In processes of their own, for the libraries read what they may say when they are imported."""

    def shown(*arguments: str) -> tuple[str, str]:
        command = [*COMMAND, "align", str(pair / "a"), str(pair / "b"), "-o", str(tmp_path / "out"), "--overwrite"]
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout, done.stderr

    text, progress = shown("--quiet")
    assert "1 of 1 layers permuted" in text
    assert progress == ""
    assert shown() == (text, "")  # too short a run for a line in a log file


def test_colours_on_terminals_only(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert coloured("no", RED, Terminal()) == "\x1b[31mno\x1b[0m"
    assert coloured("no", RED, io.StringIO()) == "no"
    monkeypatch.setenv("NO_COLOR", "1")
    assert coloured("no", RED, Terminal()) == "no"
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert coloured("no", RED, Terminal()) == "no"


def test_a_shell_completes(tmp_path, capsys):
    """What bash itself makes of the script."""
    assert cli.main(["completion", "bash"]) == 0
    (tmp_path / "script").write_text(capsys.readouterr().out)

    def completed(*words: str) -> list[str]:
        line = f"COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; _shtab_hf_moe_lmc; echo ${{COMPREPLY[@]}}"
        ask = ["bash", "-c", f"source {tmp_path}/script; {line}"]
        return subprocess.run(ask, capture_output=True, text=True, timeout=60, cwd=tmp_path).stdout.split()

    assert completed("hf-moe-lmc", "ins") == ["inspect"]
    assert "--expert-order" in completed("hf-moe-lmc", "merge", "--exp")
    assert completed("hf-moe-lmc", "inspect", "scr") == ["script"]
    for shell in ("zsh", "tcsh", "fish"):
        assert cli.main(["completion", shell]) == 0
        assert "inspect" in capsys.readouterr().out


def test_hf_moe_lmc(tmp_path):
    """`hf moe-lmc ...`, once `hf extensions install` has put the console script where `hf` looks for it."""
    script = tmp_path / "bin" / "hf-moe-lmc"
    script.parent.mkdir()
    script.write_text(f"#!{sys.executable}\nimport sys\nfrom hf_moe_lmc.cli import main\nsys.exit(main())\n")
    script.chmod(0o755)
    extension = tmp_path / ".local/share/hf/extensions/hf-moe-lmc"
    extension.mkdir(parents=True)
    manifest = {
        "owner": "org",
        "repo": "hf-moe-lmc",
        "repo_id": "org/hf-moe-lmc",
        "short_name": "moe-lmc",
        "executable_path": str(script),
        "type": "python",
        "installed_at": "2026-01-01T00:00:00+00:00",
    }
    (extension / "manifest.json").write_text(json.dumps(manifest))
    environment = os.environ | {"HOME": str(tmp_path), "HF_HUB_DISABLE_UPDATE_CHECK": "1"}
    hf = shutil.which("hf", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    done = subprocess.run([hf, "moe-lmc", "--help"], env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: hf-moe-lmc ")
