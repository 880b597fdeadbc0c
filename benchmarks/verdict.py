"""Verdicts on pairs of known truth.

    python -m benchmarks.verdict [--seeds 5]

The pairs are those of `tests/matching/known_pairs.py`, on the last layer of tiny models of every family here and on
larger layers of two shapes, each under seeds that nothing was chosen on. A row counts how many verdicts are right: the
label, and how many experts are called unrelated. z-scores are the least of related experts and the greatest of
unrelated ones. Verdicts on trained copies, beside what their merges cost, are in `benchmarks.repair`. A second table
holds what the evidence costs, beside the rest of the alignment: of siblings, which are matched at once, and of copies
with 50 % noise, scrambled.

The tables go to `results/verdict.md` and `results/verdict_cost.md`.
"""

import argparse
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from huggingface_hub.utils import tqdm
from torch import Tensor

from hf_moe_lmc.adapters import moe_layers
from hf_moe_lmc.matching import LayerEvidence, align_layers
from hf_moe_lmc.matching.distance import GaugedLayer, fixed_squared_distance
from hf_moe_lmc.matching.layer_alignment import match_layers
from hf_moe_lmc.matching.verdict import gather_evidence
from hf_moe_lmc.moe import ExpertBank, MoeLayer, Router, SymmetryGroup
from tests import families
from tests.matching.known_pairs import KnownPair, changed, known_pairs, noisy, scrambled

from .report import report

FAMILIES = (
    "mixtral", "olmoe", "qwen2_moe", "qwen3_moe", "deepseek_v2", "deepseek_v3", "gpt_oss", "dbrx", "glm4_moe",
    "granitemoe", "switch_transformers", "nemotron_h",
)  # fmt: skip
SHAPES = {"8 x 512 x 256": (8, 512, 256), "32 x 128 x 512": (32, 128, 512)}  # experts, units, hidden size
COST_SHAPES = (8, 48, 32), (8, 128, 64), (8, 512, 256), (32, 128, 512), (64, 256, 512), (8, 2048, 1024)
FIRST_SEED = 90_000
FORMATS = {"pair": "", "right": "", "of": "", "z of related": ".0f", "z of unrelated": ".1f", "labels": ""}
COST_FORMATS = {"experts x units x hidden": "", "pair": "", "alignment": ".3f", "evidence": ".3f", "ratio": ".2f"}


def layers(seed: int) -> Iterator[tuple[str, MoeLayer, MoeLayer]]:
    """A kind, and two independent layers of it."""
    for family in FAMILIES:
        models = [families.build(family, experts=6, seed=2 * seed + i) for i in range(2)]
        yield family, *(moe_layers(model)[-1].read(model.state_dict()) for model in models)
    for name, shape in SHAPES.items():
        yield name, large_layer(*shape, 2 * seed), large_layer(*shape, 2 * seed + 1)


def large_layer(experts: int, units: int, hidden: int, seed: int) -> MoeLayer:
    """A gated layer with norms of units spread log-normally by 0.3."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    spread = (0.3 * draw(experts, units, 1)).exp()
    up, gate, down = (draw(experts, units, hidden) * spread for _ in range(3))
    group = SymmetryGroup(router_translation=True, unit_signs=True, unit_scale_degree=1)
    return MoeLayer(Router(draw(experts, hidden)), ExpertBank(up, down.mT.contiguous(), gate), group=group)


def more_pairs(layer: MoeLayer, fresh: MoeLayer, seed: int) -> dict[str, KnownPair]:
    """Further pairs of large layers, in which noise of any size is seen through."""
    noise = {f"noise of {x:.0%}": KnownPair(layer, changed(layer, noisy(x), seed), ("in_place",)) for x in (3.0, 5.0)}
    far = scrambled(changed(layer, noisy(5.0), seed))
    return known_pairs(layer, fresh, seed) | noise | {"noise of 500 %, scrambled": KnownPair(layer, far, ("aligned",))}


def known_rows(seeds: int) -> list[dict[str, object]]:
    """One row per known pair, over all layers and seeds."""
    judged: dict[str, list[tuple[KnownPair, LayerEvidence]]] = defaultdict(list)
    for seed in tqdm(range(FIRST_SEED, FIRST_SEED + seeds)):
        for kind, layer, fresh in layers(seed):
            pairs = (more_pairs if kind in SHAPES else known_pairs)(layer, fresh, seed)
            for name, pair in pairs.items():
                judged[name].append((pair, pair.judge()))
    return [_row(name, results) for name, results in judged.items()]


def _row(name: str, results: list[tuple[KnownPair, LayerEvidence]]) -> dict[str, object]:
    experts = [expert for _, evidence in results for expert in evidence.experts]
    labels = Counter(evidence.label for _, evidence in results)
    return {
        "pair": name,
        "right": sum(not pair.mistakes(evidence) for pair, evidence in results),
        "of": len(results),
        "z of related": min((expert.z for expert in experts if expert.related), default=None),
        "z of unrelated": max((expert.z for expert in experts if not expert.related), default=None),
        "labels": ", ".join(f"{label} {count}" for label, count in labels.items()),
    }


def total(found: Sequence[dict]) -> dict[str, object]:
    """All rows as one."""
    counts = {name: sum(row[name] for row in found) for name in ("right", "of")}
    return {"pair": "all", **counts, "z of related": None, "z of unrelated": None, "labels": ""}


def cost_rows() -> Iterator[dict[str, object]]:
    """CPU seconds of an alignment without its evidence, and of the evidence."""
    for shape in COST_SHAPES:
        layer = large_layer(*shape, FIRST_SEED)
        copies = {
            "siblings": changed(layer, noisy(0.05), 0),
            "noise of 50 %, scrambled": scrambled(changed(layer, noisy(0.5), 0)),
        }
        for name, other in copies.items():
            a, b = GaugedLayer.pair(layer, other)
            _, experts, units, _ = match_layers(a, b, "auto")
            fixed = fixed_squared_distance(a, b, experts.order)
            evidence = least_seconds(partial(gather_evidence, a, b, experts, units, [], None, fixed))
            rest = least_seconds(partial(align_layers, layer, other)) - evidence
            size = " x ".join(map(str, shape))
            yield dict(zip(COST_FORMATS, (size, name, rest, evidence, evidence / rest), strict=True))


def least_seconds(function: Callable[[], object], runs: int = 3) -> float:
    """CPU time of the quickest run."""
    seconds = []
    for _ in range(runs):
        start = time.process_time()
        function()
        seconds.append(time.process_time() - start)
    return min(seconds)


def main() -> None:
    """Judge, write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = known_rows(options.seeds)
    report("verdict", [*found, total(found)], FORMATS)
    report("verdict_cost", list(cost_rows()), COST_FORMATS)


if __name__ == "__main__":
    main()
