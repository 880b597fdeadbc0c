"""What `benchmarks.match_vs_rebasin` runs in the environment of rebasin: python rebasin_peer.py FOLDER.

Reads FOLDER/a.pt and FOLDER/b.pt, state dicts of one multilayer perceptron; writes b, permuted, to FOLDER/matched.pt;
prints the CPU seconds of tracing and matching.
"""

import sys
import time
from pathlib import Path

import torch
from rebasin import PermutationCoordinateDescent
from torch import nn

torch.set_num_threads(1)
folder = Path(sys.argv[1])
a, b = (torch.load(folder / name) for name in ("a.pt", "b.pt"))
units, hidden = a["0.weight"].shape
models = []
for state in (a, b):
    bias = "0.bias" in state
    model = nn.Sequential(nn.Linear(hidden, units, bias=bias), nn.ReLU(), nn.Linear(units, hidden, bias=bias))
    model.load_state_dict(state)
    models.append(model)
start = time.process_time()
PermutationCoordinateDescent(*models, torch.zeros(1, hidden)).rebasin()
sys.stdout.write(f"{time.process_time() - start}\n")
torch.save(models[1].state_dict(), folder / "matched.pt")
