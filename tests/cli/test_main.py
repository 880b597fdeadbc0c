import errno
import os
import pkgutil
import shutil
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError

import hf_moe_lmc
from hf_moe_lmc import cli, demo
from hf_moe_lmc.cli.parser import command_line
from hf_moe_lmc.errors import HubError, IncompatiblePairError
from tests import models
from tests.forked import fork

POSIX_ONLY = [(os, "sched_getaffinity"), (os, "posix_fadvise"), (os, "posix_fallocate"), (os, "fork"), (os, "getuid")]
POSIX_ONLY += [(os, "geteuid"), (os, "getloadavg"), (os, "O_DIRECTORY"), (signal, "SIGKILL"), (signal, "SIGHUP")]

COMMAND = [sys.executable, "-m", "hf_moe_lmc"]


def failing(error: BaseException):
    def run(*args: object) -> None:
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (IncompatiblePairError("layer 3 differs; give another"), 4, "error: layer 3 differs; give another"),
        (HubError("no answer; try later"), 6, "error: no answer; try later"),
        (
            OSError(errno.ENOSPC, "No space left on device", "out/a"),
            5,
            "error: out/a: No space left on device; make room and try again",
        ),
        (
            LocalEntryNotFoundError("not\n cached"),
            6,
            "error: the Hub or the network failed: not cached; try again later",
        ),
        (
            OSError(errno.EACCES, "Permission denied", "out/a\x1b"),
            5,
            "error: out/a\\x1b: Permission denied; mend that and try again",
        ),
        (
            RuntimeError("[/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer"),
            130,
            "error: another process of this job has ended, or never began; see what it said, and run the same command "
            "again to go on",
        ),
        (
            RuntimeError("two\nlines"),
            1,
            "error: RuntimeError: two lines; this was not foreseen, see it with --debug",
        ),
        (KeyboardInterrupt(), 130, "interrupted; run the same command again to go on"),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(error, code, line, capsys, monkeypatch):
    monkeypatch.setattr(demo, "run_demo", failing(error))
    assert cli.main(["demo"]) == code
    assert capsys.readouterr().err == line + "\n"


@pytest.mark.parametrize("arguments", [["--debug", "demo"], ["demo", "--debug"]])
def test_debug_shows_the_traceback(arguments, capsys, monkeypatch):
    monkeypatch.setattr(demo, "run_demo", failing(RuntimeError("inner")))
    assert cli.main(arguments) == 1
    assert "Traceback" in (shown := capsys.readouterr().err)
    assert shown.splitlines()[-1].startswith("error: RuntimeError: inner")


def test_without_arguments_it_shows_its_help(capsys):
    assert cli.main([]) == 0
    assert capsys.readouterr().out.startswith("usage: hf-moe-lmc ")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("algin a b -o out", "(did you mean align?)"),
        ("merge a b --outptu x", "error: there is no --outptu (did you mean --output?); see 'hf-moe-lmc merge --help'"),
        ("align a b -o x --expert_ordr=joint", "error: there is no --expert-ordr (did you mean --expert-order?)"),
        ("align a b -o x --expert-order joit", "(did you mean joint?)"),
        ("--jsn align a b -o x", "error: there is no --jsn (did you mean --json?); see 'hf-moe-lmc --help'"),
        ("align a b -o x --zzz", "error: there is no --zzz; see 'hf-moe-lmc align --help'"),
    ],
)
def test_a_mistyped_word(words, line, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(words.split())
    shown = capsys.readouterr().err
    assert line in shown
    assert shown.count("\n") == 1


def test_underscores_in_flags():
    """As in `--expert_order=x`; those of values stay."""
    parse = command_line().parse_args
    assert parse(["align", "a_b", "c", "--output=o_o", "--expert_order", "gate"]) == parse(
        ["align", "a_b", "c", "--output=o_o", "--expert-order", "gate"]
    )


def test_a_closed_output_is_no_error(monkeypatch):
    """As with `| head`, whose reader leaves."""
    reader, writer = os.pipe()
    os.close(reader)
    script = (
        "import sys; from hf_moe_lmc import cli; from hf_moe_lmc.cli import demo;"
        "demo.run = lambda options: sys.stdout.write('line\\n' * 100000);"
        "sys.exit(cli.main(['demo']))"
    )
    done = subprocess.run([sys.executable, "-c", script], stdout=writer, stderr=subprocess.PIPE, timeout=60)
    os.close(writer)
    assert done.stderr == b""
    assert done.returncode == 141


def test_help_loads_no_heavy_library():
    script = (
        "import sys; from hf_moe_lmc.cli.parser import command_line; command_line().format_help();"
        "print({'torch', 'transformers', 'numpy', 'huggingface_hub'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout == "set()\n"


def test_every_public_name_exists():
    assert all(getattr(hf_moe_lmc, name) for name in hf_moe_lmc.__all__)
    assert set(hf_moe_lmc.__all__) <= set(dir(hf_moe_lmc))
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        hf_moe_lmc.absent  # noqa: B018


def test_without_what_only_posix_has(tmp_path):
    """In a fork, where the package is imported anew."""
    models.build("mixtral", dtype=torch.float32).save_pretrained(tmp_path / "a")
    real = os.open

    def open_file(path, *arguments, **options):
        if Path(path).is_dir():
            raise PermissionError(errno.EACCES, "Windows opens no folders")
        return real(path, *arguments, **options)

    def run():
        for name in [name for name in sys.modules if name.partition(".")[0] == "hf_moe_lmc"]:
            del sys.modules[name]
        sys.modules.update(dict.fromkeys(("fcntl", "resource", "pwd", "grp", "termios")))
        for place, name in POSIX_ONLY:
            delattr(place, name)
        os.open, shutil._use_fd_functions = open_file, False
        for module in pkgutil.walk_packages(import_module("hf_moe_lmc").__path__, "hf_moe_lmc."):
            if not module.name.endswith("__main__"):
                import_module(module.name)
        command_line = import_module("hf_moe_lmc.cli").main
        a, out = str(tmp_path / "a"), str(tmp_path / "out")
        assert command_line(["inspect", a]) == 0
        assert command_line(["merge", a, a, "--quiet", "-o", out]) == 0
        assert command_line(["merge", a, a, "--quiet", "--overwrite", "-o", out]) == 0

    assert fork(run) == 0
