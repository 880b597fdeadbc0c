import os
import subprocess
import sys
from pathlib import Path

from hf_moe_lmc import cli
from tests import families

ROOT = Path(__file__).parents[2]


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_two_processes_write_what_one_writes(tmp_path):
    """Three layers, so the shares are unequal."""
    for seed, name in enumerate(("a", "b")):
        families.build("mixtral", seed=seed).save_pretrained(tmp_path / name)
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    (tmp_path / "two").mkdir()
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*launcher, "-m", "tests.alignment.merge_job", a, b, str(tmp_path / "two")]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Written to") == 2
    (tmp_path / "one").mkdir()
    assert cli.main(["align", a, b, "-o", str(tmp_path / "one" / "alignment")]) == 0
    assert cli.main(["merge", a, b, "--force", "-o", str(tmp_path / "one" / "merged")]) == 0
    assert content(tmp_path / "two") == content(tmp_path / "one")
