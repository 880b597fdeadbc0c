"""Units of one pair of experts: REAP's permuter and REAM's merge beside `align_layers`; recovered share, distance, CPU.

    git clone https://github.com/CerebrasResearch/reap
    python -m benchmarks.match_vs_reap --reap reap

An expert of 768 units and its copy: noise on every weight (relative to its standard deviation), units reordered, and in
half of the cases the signs of half of the units turned in up_proj and down_proj, which changes nothing in its function.
"REAP" is the class WeightMatchingPermuter of its repository (arXiv:2510.13999): squared distances of gate_proj, up_proj
and down_proj, summed, in float16. "REAM" is done here as its paper describes it (arXiv:2604.04356): distances,
not squared, of the normalised weights of units, plus those of their normalised activations, on 512 Gaussian tokens.
Neither knows signs. Both merge experts within a layer; what is compared here is how they match the units of a pair.
"distance" is that of the weights after matching over that of the planted order; "CPU" in seconds, ours with the proof
of the optimum and the evidence of the verdict. Writes match_vs_reap.json and match_vs_reap.md.
"""

import argparse
import ast
import logging
from collections.abc import Callable
from copy import deepcopy
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional as F

from hf_moe_lmc.matching import align_layers
from hf_moe_lmc.moe import ExpertBank, MoeLayer, SymmetryGroup, act

from .assignment import cpu_seconds
from .report import FOLDER, report

UNITS, HIDDEN, TOKENS = 768, 1024, 512
NOISE = (0.1, 1.0, 3.0)
PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
FORMATS = {"noise": ".0%", "signs": "", "method": "", "recovered": ".1%", "distance": ".4f", "CPU": ".2f"}
Expert = dict[str, Tensor]
"""Projection -> its weight: gate_proj and up_proj `[F, H]`, down_proj `[H, F]`."""


def draw() -> Expert:
    """An expert; norms of units log-normal with 0.3."""
    spread = (0.3 * torch.randn(UNITS)).exp()[:, None]
    rows = {name: 0.02 * spread * torch.randn(UNITS, HIDDEN) for name in PROJECTIONS}
    return rows | {"down_proj": rows["down_proj"].T.contiguous()}


def moved(expert: Expert, order: Tensor, signs: Tensor) -> Expert:
    """The same function, units in another order and with other signs."""
    gate, up, down = (expert[name] for name in PROJECTIONS)
    return dict(zip(PROJECTIONS, (gate[order], up[order] * signs[:, None], down[:, order] * signs), strict=True))


def layer(expert: Expert) -> MoeLayer:
    """As a dense layer of ours."""
    gate, up, down = (expert[name][None] for name in PROJECTIONS)
    return MoeLayer(
        None, ExpertBank(up, down, gate_proj=gate), group=SymmetryGroup(unit_signs=True, unit_scale_degree=1)
    )


def ours(a: Expert, b: Expert) -> Expert:
    """By `align_layers`, signs included."""
    bank = act(align_layers(layer(a), layer(b)).symmetry, layer(b)).experts
    return {name: getattr(bank, name)[0] for name in PROJECTIONS}


def ream(a: Expert, b: Expert) -> Expert:
    """REAM's cost: normalised weights and activations."""
    tokens = torch.randn(TOKENS, HIDDEN, generator=torch.Generator().manual_seed(0))
    cost = 0
    for view in (_weights, lambda expert: _activations(expert, tokens)):
        cost = cost + torch.cdist(*(F.normalize(view(expert), dim=1) for expert in (a, b)))
    order = torch.from_numpy(linear_sum_assignment(cost.numpy())[1])
    return moved(b, order, torch.ones(UNITS))


def published_reap(checkout: Path) -> Callable[[Expert, Expert], Expert]:
    """The permuter of REAP's repository; what it imports for others of its methods is left out."""
    module = ast.parse((checkout / "src/reap/permute.py").read_text())
    code: dict[str, Any] = {"torch": torch, "nn": nn, "np": np, "linear_sum_assignment": linear_sum_assignment}
    code |= {"copy": __import__("copy"), "Any": Any, "ABC": object, "abstractmethod": lambda method: method}
    code["logger"] = logging.getLogger("REAP")
    parts = [part for part in module.body if isinstance(part, ast.FunctionDef | ast.ClassDef)]
    exec(compile(ast.Module(parts, []), "REAP", "exec"), code)
    permuter = code["WeightMatchingPermuter"]({name: name for name in PROJECTIONS})
    permuter._run_assertions = lambda *results: None  # calls the experts, and would count as its time

    def match(a: Expert, b: Expert) -> Expert:
        experts = [
            SimpleNamespace(**{n: SimpleNamespace(weight=nn.Parameter(w)) for n, w in e.items()}) for e in (a, b)
        ]
        permuter.permute(experts, [0, 1], 0)
        return {name: getattr(experts[1], name).weight.data for name in PROJECTIONS}

    return match


def distance(a: Expert, b: Expert) -> float:
    """In float64."""
    return sum((weight.double() - b[name].double()).square().sum().item() for name, weight in a.items()) ** 0.5


def measure(
    noise: float, signs: bool, methods: dict[str, Callable[[Expert, Expert], Expert]]
) -> list[dict[str, object]]:
    """One row for each method."""
    a = draw()
    near = {name: weight + noise * weight.std() * torch.randn_like(weight) for name, weight in a.items()}
    turned = torch.where(torch.rand(UNITS) < 0.5, -1.0, 1.0) if signs else torch.ones(UNITS)
    b, planted, rows = moved(near, torch.randperm(UNITS), turned), distance(a, near), []
    for name, match in methods.items():
        results: list[Expert] = []
        seconds = cpu_seconds(lambda match=match, results=results: results.append(match(deepcopy(a), deepcopy(b))))
        # gate_proj has no sign, so its rows tell which unit came where.
        right = (results[0]["gate_proj"] == near["gate_proj"]).all(dim=1).double().mean().item()
        row = {"noise": noise, "signs": "turned" if signs else "kept", "method": name, "recovered": right}
        rows.append(row | {"distance": distance(a, results[0]) / planted, "CPU": seconds})
    return rows


def _weights(expert: Expert) -> Tensor:
    return torch.cat([expert["gate_proj"], expert["up_proj"], expert["down_proj"].T], dim=1)


def _activations(expert: Expert, tokens: Tensor) -> Tensor:
    return (F.silu(tokens @ expert["gate_proj"].T) * (tokens @ expert["up_proj"].T)).T


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reap", type=Path, required=True, help="a clone of its repository")
    parser.add_argument("--output", type=Path, default=FOLDER)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    methods = {"as it is": lambda a, b: b, "REAP": published_reap(options.reap), "REAM": ream, "ours": ours}
    rows = [row for noise, signs in product(NOISE, (False, True)) for row in measure(noise, signs, methods)]
    report("match_vs_reap", rows, FORMATS, options.output)


if __name__ == "__main__":
    main()
