import subprocess
import sys
from pathlib import Path

from hf_moe_lmc import cli
from hf_moe_lmc.demo import run as demo_run


def test_unknown_variant(tmp_path):
    """Through the installed command: one line, and exit code 2."""
    command = [
        str(Path(sys.executable).with_name("hf-moe-lmc")),
        "demo",
        "--variant",
        "both",
        "--output",
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: argument --variant: invalid choice: 'both'")
    assert "sparse" in done.stderr
    assert not any(tmp_path.iterdir())


def test_output_is_a_file(tmp_path, capsys):
    file = tmp_path / "out"
    file.write_text("precious")
    assert cli.main(["demo", "--output", str(file)]) == 5
    assert capsys.readouterr().err.strip().splitlines()[-1] == (
        f"error: the output folder {file} is a file; name a folder with --output"
    )
    assert file.read_text() == "precious"


def test_output_cannot_be_made(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert cli.main(["demo", "--output", str(tmp_path / "file" / "out")]) == 5
    assert "cannot be written: Not a directory" in capsys.readouterr().err


def test_missing_data(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo_run, "digits_file", lambda: tmp_path / "mnist_5k.csv.gz")
    assert cli.main(["demo", "--output", str(tmp_path / "out")]) == 3
    assert capsys.readouterr().err.startswith(f"error: the MNIST digits are missing: {tmp_path / 'mnist_5k.csv.gz'};")
    assert not (tmp_path / "out").exists()


def test_one_seed(tmp_path, capsys):
    assert cli.main(["demo", "--output", str(tmp_path / "out"), "--seeds", "5"]) == 3
    assert capsys.readouterr().err == "error: the demo compares pairs: give at least two different seeds, not [5]\n"
