"""The paper's order test: every expert order with matched units, and where each method's order stands among them."""

from itertools import permutations

import torch

from hf_moe_lmc.connectivity import linear_path
from hf_moe_lmc.matching import align_layers
from hf_moe_lmc.symmetry import Permutation

from .pair import METHODS, Pair


def rank_orders(pair: Pair, naive: float) -> dict[str, object]:
    """All expert orders with matched units: the loss barrier of each; rank and L^ of every method.

    `L^ = 100 (L - L_best) / (L_naive - L_best)` (arXiv:2509.11348, section 6), None where nothing beats naive; rank 1
    is the best of n!.
    """
    (spec,), (source,) = pair.moe, pair.test
    a, b = (spec.read(endpoint) for endpoint in pair.endpoints)
    barriers = {}
    for order in permutations(range(a.experts.num_experts)):
        symmetry = align_layers(a, b, Permutation(torch.tensor(order))).symmetry
        path = linear_path(pair.endpoints[0], pair.aligned(pair.alignments["units"].symmetries | {spec.name: symmetry}))
        barriers[order] = pair.curve(path, source).barrier.loss_barrier
    best = min(barriers.values())
    ranked = {}
    for method in METHODS:
        own = barriers[tuple(pair.alignments[method].symmetries[spec.name].experts.index.tolist())]
        rank = 1 + sum(barrier < own for barrier in barriers.values())
        ranked[method] = {"rank": rank, "l_hat": 100 * (own - best) / (naive - best) if naive > best else None}
    return {"methods": ranked, "best": best, "worst": max(barriers.values()), "orders": len(barriers)}
