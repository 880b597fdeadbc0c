"""Alignment of one layer of known shapes, beside a plain git re-basin step.

python -m benchmarks.layer [--rows WORD] [--output FOLDER]

Writes layer.json and layer.md: CPU seconds of one thread and peak memory, every row in a process of its own. "step" is
the naive weight matching of git re-basin (arXiv:2209.04836): the full product of units, solved by scipy, expert by
expert; it neither matches experts nor signs, so its experts stand in the right slots already. "ours" is
`align_layers(..., "auto")` on the scrambled pair: expert order, units, signs, distances, evidence. "joint" certifies
the expert order instead. Shapes with a star are scaled down, as the last column says.
"""

import argparse
import multiprocessing
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub.utils import tqdm
from scipy.optimize import linear_sum_assignment

from hf_moe_lmc.matching import align_layers
from hf_moe_lmc.moe import ExpertBank, MoeLayer, Router, SymmetryGroup, act

from .assignment import cpu_seconds
from .report import FOLDER, report

GROUP = SymmetryGroup(router_translation=True, unit_signs=True)
FORMATS = {
    "layer": "",
    "E": "",
    "F": "",
    "H": "",
    "pair": "",
    "step": ".2f",
    "ours": ".2f",
    "step / ours": ".1f",
    "joint": "",
    "certified": "",
    "pairs solved": "",
    "order by": "",
    "peak GB": ".2f",
    "weights GB": ".2f",
    "scaled": "",
}


@dataclass(frozen=True)
class Row:
    """A layer of E experts, F units, hidden size H; the other is a sibling, or independent."""

    layer: str
    experts: int
    units: int
    hidden: int
    pair: str
    scaled: str = ""
    joint: bool = False


ROWS = [
    Row("OLMoE", 64, 1024, 2048, "siblings", joint=True),
    Row("OLMoE*", 4, 1024, 2048, "independent", "4 of 64 experts", joint=True),
    Row("Qwen1.5-MoE*", 8, 1408, 2048, "siblings", "8 of 60 experts"),
    Row("Qwen3-30B*", 16, 768, 2048, "siblings", "16 of 128 experts"),
    Row("Mixtral*", 8, 3584, 1024, "siblings", "F and H a quarter"),
    Row("Mixtral*", 2, 3584, 1024, "independent", "F and H a quarter, 2 of 8 experts"),
    Row("DeepSeek-V3*", 4, 2048, 7168, "siblings", "4 of 256 experts"),
]


def draw_layer(row: Row, seed: int) -> MoeLayer:
    """A gated bf16 layer, norms of units log-normal with 0.3."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.bfloat16)

    spread = (0.3 * draw(row.experts, row.units, 1)).exp()
    up, gate = (draw(row.experts, row.units, row.hidden).mul_(spread) for _ in range(2))
    down = draw(row.experts, row.hidden, row.units).mul_(spread.mT)
    return MoeLayer(Router(draw(row.experts, row.hidden)), ExpertBank(up, down, gate), group=GROUP)


def near(layer: MoeLayer) -> MoeLayer:
    """A sibling: noise of 5 % on every weight."""
    generator = torch.Generator().manual_seed(2)

    def noisy(tensor: torch.Tensor) -> torch.Tensor:
        return tensor + 0.05 * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)

    return layer.with_tensors({name: noisy(tensor) for name, tensor in layer.tensors().items()})


def naive_step(reference: ExpertBank, other: ExpertBank) -> list[float]:
    """The units of every expert to those of its namesake, as git re-basin does it."""
    found = []
    for a, b in zip(zip(*_matrices(reference), strict=True), zip(*_matrices(other), strict=True), strict=True):
        similarity = sum(x.float() @ y.float().T for x, y in zip(a, b, strict=True)).numpy()
        found.append(similarity[linear_sum_assignment(similarity, maximize=True)].sum())
    return found


def _matrices(bank: ExpertBank) -> list[torch.Tensor]:
    assert bank.gate_proj is not None
    return [bank.up_proj, bank.gate_proj, bank.down_proj.mT]


def peak_memory() -> int:
    """The most that this process has held since its peak started anew, in bytes."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return 1024 * int(found[1])


def run(row: Row) -> dict[str, object]:
    """One row of the table; peak memory is that of "ours", over what was there before."""
    torch.set_num_threads(1)
    reference = draw_layer(row, 0)
    plain = near(reference) if row.pair == "siblings" else draw_layer(row, 1)
    planted = GROUP.random_derangement(*plain.symmetry_shape, generator=torch.Generator().manual_seed(3))
    other = act(planted, plain)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = peak_memory()
    seconds: dict[str, float] = {}

    def timed(name: str, function: Callable[[], object]) -> object:
        results: list[object] = []
        seconds[name] = cpu_seconds(lambda: results.append(function()))
        return results[0]

    found = timed("ours", lambda: align_layers(reference, other))
    peak = peak_memory() - before
    if row.pair == "siblings":
        assert found.symmetry == planted.inverse()
    joint = timed("joint", lambda: align_layers(reference, other, "joint")) if row.joint else None
    timed("step", lambda: naive_step(reference.experts, plain.experts))
    return {
        "layer": row.layer,
        "E": row.experts,
        "F": row.units,
        "H": row.hidden,
        "pair": row.pair,
        **seconds,
        "step / ours": seconds["step"] / seconds["ours"],
        "joint": f"{seconds['joint']:.2f}" if joint else "",
        "certified": str(joint.evidence.certified) if joint else "",
        "pairs solved": f"{joint.evidence.solved_pairs} of {row.experts**2}" if joint else "",
        "order by": found.evidence.expert_method,
        "peak GB": peak / 1e9,
        "weights GB": 2 * sum(tensor.nbytes for tensor in reference.tensors().values()) / 1e9,
        "scaled": row.scaled,
    }


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", help="only layers whose name begins so")
    parser.add_argument("--output", type=Path, default=FOLDER)
    options = parser.parse_args()
    rows = [row for row in ROWS if row.layer.startswith(options.rows or "")]
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        report("layer", list(tqdm(pool.imap(run, rows), total=len(rows))), FORMATS, options.output)


if __name__ == "__main__":
    main()
