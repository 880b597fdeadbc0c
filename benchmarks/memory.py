"""Peak memory of `hf-moe-lmc merge` against the size of the checkpoints, beside what `--dry-run` says.

python -m benchmarks.memory [--layers 10 110] [--align] [--folder FOLDER]

10 layers are 2 GB, 110 layers 20 GB. The checkpoints are sparse files, so only the merge takes room on the disk. Their
weights are all zero, so nothing is aligned by default; permutations are drawn.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from transformers import MixtralForCausalLM
from transformers.core_model_loading import revert_weight_conversion

from hf_moe_lmc import Alignment
from hf_moe_lmc.adapters import alignable_layers
from hf_moe_lmc.matching import LayerAlignment

from .merge_vs_mergekit import OURS, Cost, machine, measure
from .pair import configuration


def write_sparse(folder: Path, layers: int) -> int:
    """Two checkpoints full of zeros, `folder`/a and `folder`/b; the size of one."""
    with torch.device("meta"):
        model = MixtralForCausalLM(configuration(layers)).to(torch.bfloat16)
    described, size = {}, 0
    for key, tensor in revert_weight_conversion(model, model.state_dict()).items():
        offsets = [size, size := size + tensor.nbytes]
        described[key] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": offsets}
    header = json.dumps(described).encode()
    for name in ("a", "b"):
        model.config.save_pretrained(folder / name)
        fields = json.loads((folder / name / "config.json").read_text()) | {"architectures": [type(model).__name__]}
        (folder / name / "config.json").write_text(json.dumps(fields))
        with (folder / name / "model.safetensors").open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.truncate(8 + len(header) + size)
    generator, layers_found = torch.Generator().manual_seed(0), {}
    for spec in alignable_layers(model):
        layer = spec.read(model.state_dict())
        symmetry = layer.group.random_derangement(*layer.symmetry_shape, generator=generator)
        layers_found[spec.name] = LayerAlignment(symmetry, 0.0, 0.0)
    Alignment(layers_found).save_pretrained(folder / "alignment")
    return size


def stated(command: list[str]) -> float:
    """Bytes of memory that `--dry-run` announces."""
    plan = subprocess.run([*command, "--dry-run"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"memory at most about +([\d.e+-]+) GB", plan)
    assert found, plan
    return float(found[1]) * 1e9


def measured(folder: Path, aligning: bool) -> list[tuple[Cost, float]]:
    """Cost and stated memory of every command."""
    sides = [str(folder / "a"), str(folder / "b")]
    merge = [*OURS, "merge", *sides, "--alignment", str(folder / "alignment"), "-o", str(folder / "out")]
    align = [*OURS, "align", *sides, "-o", str(folder / "found")]
    commands = {"merge": merge} | ({"align": align} if aligning else {})
    return [(measure(name, command), stated([*command, "--overwrite"])) for name, command in commands.items()]


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=[10, 110])
    parser.add_argument("--align", action="store_true", help="measure `align` as well")
    parser.add_argument("--folder", type=Path, help="where the disk has room for the largest")
    options = parser.parse_args()
    sys.stdout.write(
        "| | size of each, GB | peak memory, GB | stated, GB | CPU s | wall s |\n|---|---|---|---|---|---|\n"
    )
    for layers in options.layers:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            size = write_sparse(Path(folder), layers)
            for cost, limit in measured(Path(folder), options.align):
                sys.stdout.write(
                    f"| {cost.name} | {size / 1e9:.1f} | {cost.peak_memory / 1e9:.2f} | {limit / 1e9:.2f} "
                    f"| {cost.cpu:.1f} | {cost.wall:.1f} |\n"
                )
                sys.stdout.flush()
    sys.stdout.write(f"\n{json.dumps(machine())}\n")


if __name__ == "__main__":
    main()
