"""Unit matching of one multilayer perceptron: the package rebasin beside `align_layers`; CPU time and distance.

python -m benchmarks.match_vs_rebasin --rebasin PYTHON_OF_ITS_ENVIRONMENT [--output FOLDER]

rebasin lives in an environment of its own (`python -m venv rb && rb/bin/pip install rebasin==0.0.47`). It knows no
Mixture of Experts, so the case is what both can do: one hidden layer, whose units are to be permuted so that the
squared distance is least. One assignment is exact; rebasin goes on from its own until nothing gains, and leaves biases
out (it multiplies them to one number). Writes match_vs_rebasin.json and match_vs_rebasin.md. "none" is the distance
before, "planted" that of the true permutation.
"""

import argparse
import os
import subprocess
import tempfile
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from hf_moe_lmc.matching import align_layers
from hf_moe_lmc.moe import ExpertBank, MoeLayer, act

from .assignment import cpu_seconds
from .report import FOLDER, report

UNITS, HIDDEN = 2048, 1024
NOISE = {"siblings, noise 50 %": 0.5, "noise 300 %": 3.0, "independent": None}
FORMATS = {
    "pair": "",
    "biases": "",
    "rebasin": ".2f",
    "ours": ".2f",
    "rebasin / ours": ".1f",
    "distance: none": ".4f",
    "planted": "",
    "by rebasin": ".4f",
    "by ours": ".4f",
}
State = dict[str, Tensor]


def draw(biases: bool, seed: int) -> State:
    """A state dict of Linear, ReLU, Linear; norms of units log-normal with 0.3."""
    generator = torch.Generator().manual_seed(seed)
    spread = (0.3 * torch.randn(UNITS, generator=generator)).exp()
    state = {
        "0.weight": torch.randn(UNITS, HIDDEN, generator=generator) * spread[:, None] / HIDDEN**0.5,
        "2.weight": torch.randn(HIDDEN, UNITS, generator=generator) * spread / UNITS**0.5,
    }
    if biases:
        state |= {"0.bias": torch.randn(UNITS, generator=generator), "2.bias": torch.randn(HIDDEN, generator=generator)}
    return state


def permuted(state: State, order: Tensor) -> State:
    """The same function, units in another order."""
    axes = {"0.weight": 0, "0.bias": 0, "2.weight": 1}
    return {name: x.index_select(axes[name], order) if name in axes else x for name, x in state.items()}


def layer(state: State) -> MoeLayer:
    """As a dense layer of ours."""
    biases = {"up_bias": state["0.bias"][None], "down_bias": state["2.bias"][None]} if "0.bias" in state else {}
    return MoeLayer(None, ExpertBank(state["0.weight"][None], state["2.weight"][None], **biases))


def distance(a: State, b: State) -> float:
    """In float64."""
    return sum((x.double() - b[name].double()).square().sum().item() for name, x in a.items()) ** 0.5


def measure(python: Path, pair: str, biases: bool) -> dict[str, object]:
    """One row of the table."""
    a, stranger, noise = draw(biases, 0), draw(biases, 1), NOISE[pair]
    near = stranger if noise is None else {n: x + noise * x.std() * torch.randn_like(x) for n, x in a.items()}
    b = permuted(near, torch.randperm(UNITS))
    with tempfile.TemporaryDirectory() as folder:
        torch.save(a, f"{folder}/a.pt")
        torch.save(b, f"{folder}/b.pt")
        command, environment = [python, Path(__file__).with_name("rebasin_peer.py"), folder], {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=True)
        theirs, seconds = torch.load(f"{folder}/matched.pt"), float(done.stdout)
    found = []
    ours = cpu_seconds(lambda: found.append(align_layers(layer(a), layer(b))))
    moved = act(found[0].symmetry, layer(b)).experts
    matched = b | {"0.weight": moved.up_proj[0], "2.weight": moved.down_proj[0]}
    if moved.up_bias is not None:
        matched["0.bias"] = moved.up_bias[0]
    return {
        "pair": pair,
        "biases": "yes" if biases else "no",
        "rebasin": seconds,
        "ours": ours,
        "rebasin / ours": seconds / ours,
        "distance: none": distance(a, b),
        "planted": None if noise is None else f"{distance(a, near):.4f}",
        "by rebasin": distance(a, theirs),
        "by ours": distance(a, matched),
    }


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rebasin", type=Path, required=True, help="the python of its environment")
    parser.add_argument("--output", type=Path, default=FOLDER)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = [measure(options.rebasin, pair, biases) for pair, biases in product(NOISE, (False, True))]
    report("match_vs_rebasin", rows, FORMATS, options.output)


if __name__ == "__main__":
    main()
