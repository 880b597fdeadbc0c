import shutil

import pytest
import torch

from hf_moe_lmc import scramble
from hf_moe_lmc.alignment import align_opened, merge_checkpoints, open_checkpoint
from tests.models import build

PARENT_CARD = "---\nlicense: apache-2.0\nlanguage: [en]\ndatasets: [org/corpus]\nbase_model: org/base\n---\n# A model\n"
MARKERS = {"merged": "hf_moe_lmc_manifest.json", "alignment": "alignment_config.json"}


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A tiny Mixtral "a", another "b", their alignment, their merge, and what was found; treat as read-only."""
    folder = tmp_path_factory.mktemp("made")
    for name, seed in (("a", 0), ("b", 1)):
        model = build("mixtral", seed=seed, dtype=torch.float32)
        scramble(model, seed=seed + 5)[0].save_pretrained(folder / name, max_shard_size="4KB")
        (folder / name / "README.md").write_text(PARENT_CARD)
    alignment = align_opened(open_checkpoint(folder / "a"), open_checkpoint(folder / "b"))
    alignment.save_pretrained(folder / "alignment")
    merge_checkpoints(folder / "a", folder / "b", folder / "merged", alignment)
    return folder


@pytest.fixture
def folder(made, tmp_path):
    """A copy of all that was made, which names the parents in the copy."""
    copy = shutil.copytree(made, tmp_path / "made")
    for marker in MARKERS.values():
        file = next(copy.glob(f"*/{marker}"))
        file.write_text(file.read_text().replace(str(made), str(copy)))
    return copy
