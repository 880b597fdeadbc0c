"""A GPU beside the CPU: layers as large as real ones aligned alike, the rate of their similarities, a path's cost.

python -m benchmarks.gpu [--device cuda] [--small] [--output FOLDER]

Writes gpu.json and gpu.md; takes some minutes on one card. Of the largest models a layer has fewer experts. "rate" is
that of the similarities of the units of two experts, as a share of the rate at which the card multiplies matrices in
bfloat16 (0.6 at least is wanted), "gram" and "null" the largest difference of the Gram cost (relative) and of the
null's z from those of the CPU, "path" the cost of a path in plain evaluations of its points. Exits with 1 if an
alignment is not the CPU's, nor as near. `--small` is what the tests run on a CPU. Cells in SmolLM2 have a command of
their own: `python -m benchmarks.paper.run "smollm2/*" --grid benchmarks/paper/scale.yaml --device cuda`.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from transformers import MixtralConfig, MixtralForCausalLM

from hf_moe_lmc import scramble
from hf_moe_lmc.alignment import temporarily_loaded
from hf_moe_lmc.connectivity import evaluate, linear_path, measure
from hf_moe_lmc.connectivity.data import Blocks
from hf_moe_lmc.matching import GaugedLayer, align_layers
from hf_moe_lmc.matching.gram import gram_cost
from hf_moe_lmc.matching.null import expert_similarities
from hf_moe_lmc.moe import MoeLayer, act

from .layer import GROUP, Row, draw_layer, near
from .report import FOLDER, report

ROWS = [
    Row("Mixtral-8x7B", 4, 14336, 4096, "siblings", "4 of 8 experts"),
    Row("Mixtral-8x7B", 2, 14336, 4096, "independent", "2 of 8 experts"),
    Row("Qwen3-30B-A3B", 128, 768, 2048, "siblings"),
    Row("DeepSeek-V3", 16, 2048, 7168, "siblings", "16 of 256 experts"),
]
SMALL_ROWS = [replace(row, experts=3, units=48, hidden=32, scaled="small") for row in ROWS[1:3]]
PATH = MixtralConfig(
    vocab_size=32_000,
    hidden_size=2048,
    intermediate_size=4096,
    num_hidden_layers=6,
    num_attention_heads=16,
    num_key_value_heads=4,
    num_local_experts=8,
    dtype=torch.bfloat16,
)  # fmt: skip  (1.4 B parameters)
SMALL_PATH = MixtralConfig(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
    num_key_value_heads=2, num_local_experts=4,
)  # fmt: skip
FORMATS = {
    "layer": "", "E": "", "F": "", "H": "", "pair": "", "scaled": "", "GPU s": ".2f", "CPU s": ".2f", "alignment": "",
    "rate": ".2f", "gram": ".1e", "null": ".1e",
}  # fmt: skip
NEAR = 1e-5  # relative: of distances, where near ties fall differently


@dataclass(frozen=True)
class Card:
    """A device and the rate of its matrix units, FLOP/s in bfloat16."""

    device: torch.device
    rate: float

    @classmethod
    def measured(cls, device: str, size: int) -> "Card":
        """Multiplies square matrices of `size` rows."""
        a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
        return cls(torch.device(device), 2 * size**3 / seconds(lambda: a @ b, a.device))


def seconds(run: Callable[[], object], device: torch.device, runs: int = 5, warm_ups: int = 1) -> float:
    """The fastest of some runs, until the device has finished, after those that warm up."""
    times = []
    for _ in range(warm_ups + runs):
        _wait(device)
        start = time.perf_counter()
        run()
        _wait(device)
        times.append(time.perf_counter() - start)
    return min(times[warm_ups:])


def compare_layer(row: Row, card: Card) -> dict[str, object]:
    """One layer aligned on the card and on the CPU."""
    reference = draw_layer(row, 0)
    plain = near(reference) if row.pair == "siblings" else draw_layer(row, 1)
    planted = GROUP.random_derangement(*plain.symmetry_shape, generator=torch.Generator().manual_seed(3))
    pair = reference, act(planted, plain)
    on_card = tuple(_to(layer, card.device) for layer in pair)
    found, times = align_layers(*on_card), {}
    times["GPU s"] = seconds(lambda: align_layers(*on_card), card.device, runs=1, warm_ups=0)
    start = time.perf_counter()
    cpu = align_layers(*pair)
    times["CPU s"] = time.perf_counter() - start
    same = found.symmetry == cpu.symmetry
    near_ties = math.isclose(found.distance_after, cpu.distance_after, rel_tol=NEAR)
    gauged, own = GaugedLayer.pair(*on_card), GaugedLayer.pair(*pair)
    a, b = (layer.units(0) for layer in gauged)
    width = sum(part.shape[1] for part in (a.kept, a.signed) if part is not None)
    rate = 2 * row.units**2 * width / seconds(lambda: a.similarity(b), card.device)
    costs = gram_cost(*gauged).cpu(), gram_cost(*own)
    pairs = [(e, e) for e in range(min(row.experts, 4))]
    z = [expert_similarities(*layers, pairs, 8, 128).z for layers in (on_card, pair)]
    return {
        "layer": row.layer, "E": row.experts, "F": row.units, "H": row.hidden, "pair": row.pair, "scaled": row.scaled,
        **times,
        "alignment": "equal" if same else "as near" if near_ties else "OTHER",
        "rate": rate / card.rate,
        "gram": ((costs[0] - costs[1]).abs().max() / costs[1].abs().max()).item(),
        "null": (z[0] - z[1]).abs().max().item(),
    }  # fmt: skip


def path_ratio(config: MixtralConfig, card: Card, blocks: int, length: int) -> float:
    """Seconds of a path of three points, by those of three plain evaluations."""
    torch.manual_seed(0)
    with card.device:
        model = MixtralForCausalLM(config).to(config.dtype or torch.float32).eval()
    other, _ = scramble(deepcopy(model))
    tokens = torch.randint(config.vocab_size, (blocks, length), generator=torch.Generator().manual_seed(0))
    accelerator = Accelerator(cpu=card.device.type == "cpu")
    loader = accelerator.prepare(DataLoader(Blocks(tokens), batch_size=4))
    plain = seconds(lambda: evaluate(model, loader, accelerator), card.device, runs=2)
    with temporarily_loaded(model) as saved:
        path = linear_path(saved, other.state_dict())
        along = seconds(lambda: measure(saved, path, (0.0, 0.5, 1.0), loader, accelerator), card.device, runs=1)
    return along / (3 * plain)


def compare(device: str, small: bool) -> tuple[list[dict[str, object]], float]:
    """The rows of the table, and the cost of a path."""
    card = Card.measured(device, 128 if small else 8192)
    rows = [compare_layer(row, card) for row in (SMALL_ROWS if small else ROWS)]
    return rows, path_ratio(SMALL_PATH if small else PATH, card, *((4, 16) if small else (64, 1024)))


def main() -> int:
    """Compare, write the results, and say whether the alignments agree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--output", type=Path, default=FOLDER)
    options = parser.parse_args()
    rows, path = compare(options.device, options.small)
    report("gpu", [row | {"path": path} for row in rows], FORMATS, options.output)
    sys.stdout.write(f"\na path costs {path:.3f} plain evaluations of its points\n")
    return int(any(row["alignment"] == "OTHER" for row in rows))


def _to(layer: MoeLayer, device: torch.device) -> MoeLayer:
    return layer.with_tensors({name: tensor.to(device) for name, tensor in layer.tensors().items()})


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


if __name__ == "__main__":
    sys.exit(main())
