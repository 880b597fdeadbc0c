from pathlib import Path
from unittest import mock

import pytest

from hf_moe_lmc.alignment import Alignment, AlignmentConfig, align, align_into, open_checkpoint
from hf_moe_lmc.matching import align_layers
from tests import families


@pytest.fixture
def folder(tmp_path):
    """Checkpoints a and b of three layers."""
    for seed, name in enumerate(("a", "b")):
        families.build("mixtral", seed=seed).save_pretrained(tmp_path / name)
    return tmp_path


def run(folder: Path, config: AlignmentConfig | None = None, stop_after: int = 3) -> int:
    """Align into `folder`/out, interrupted after some layers; the number of layers that were matched."""
    aligned = 0

    def interrupted(*arguments):
        nonlocal aligned
        if aligned == stop_after:
            raise KeyboardInterrupt
        aligned += 1
        return align_layers(*arguments)

    with mock.patch("hf_moe_lmc.alignment.align.align_layers", interrupted):
        try:
            a, b = open_checkpoint(folder / "a"), open_checkpoint(folder / "b")
            align_into(folder / "out", a, b, config or AlignmentConfig())
        except KeyboardInterrupt:
            assert not (folder / "out").exists()
    return aligned


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_it_goes_on_after_the_last_layer(folder):
    assert run(folder) == 3
    undisturbed = content(folder / "out")
    assert Alignment.from_pretrained(folder / "out") == align(folder / "a", folder / "b")
    (folder / "out").rename(folder / "undisturbed")
    assert run(folder, stop_after=2) == 2
    assert run(folder) == 1
    assert content(folder / "out") == undisturbed
    assert sorted(path.name for path in folder.iterdir()) == ["a", "b", "out", "undisturbed"]


def test_another_way_to_match_starts_clean(folder):
    assert run(folder, stop_after=2) == 2
    assert run(folder, AlignmentConfig("gram")) == 3


def test_other_weights_start_clean(folder):
    assert run(folder, stop_after=2) == 2
    families.build("mixtral", seed=2).save_pretrained(folder / "b")
    assert run(folder) == 3
    assert Alignment.from_pretrained(folder / "out") == align(folder / "a", folder / "b")
