import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from hf_moe_lmc import Alignment, align, apply, merge, scramble
from tests.models import build

PARENT_CARD = "---\nlicense: apache-2.0\nlanguage: [en]\ndatasets: [org/corpus]\nbase_model: org/base\n---\n# A model\n"
MANIFEST = "hf_moe_lmc_manifest.json"
MARKERS = {"merged": MANIFEST, "alignment": "alignment_config.json"}


def written(
    command: str, models: Sequence[str | Path], output: Path, alignment: Alignment, t: float = 0.5, **options
) -> Path:
    """`output`: a folder that `apply` (of one model) or `merge` (of two) wrote, without its card."""
    if command == "apply":
        apply(alignment, models[0], output, **options)
    else:
        merge(*models, alignment=alignment, t=t, output=output, force=True, **options)
    (output / "README.md").unlink()
    return output


def edit_record(folder: Path, edit, marker: str = MANIFEST) -> None:
    """Replace the record of `folder` by what `edit` makes of it."""
    file = folder / marker
    file.write_text(json.dumps(edit(json.loads(file.read_text()))))


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A tiny Mixtral "a", another "b", their alignment, and their merge; treat as read-only."""
    folder = tmp_path_factory.mktemp("made")
    for name, seed in (("a", 0), ("b", 1)):
        model = build("mixtral", seed=seed, dtype=torch.float32)
        scramble(model, seed=seed + 5)[0].save_pretrained(folder / name, max_shard_size="4KB")
        (folder / name / "README.md").write_text(PARENT_CARD)
    alignment = align(folder / "a", folder / "b")
    alignment.save_pretrained(folder / "alignment")
    written("merge", (folder / "a", folder / "b"), folder / "merged", alignment)
    return folder


@pytest.fixture
def folder(made, tmp_path):
    """A copy of all that was made, which names the parents in the copy."""
    copy = shutil.copytree(made, tmp_path / "made")
    for marker in MARKERS.values():
        file = next(copy.glob(f"*/{marker}"))
        file.write_text(file.read_text().replace(str(made), str(copy)))
    return copy
