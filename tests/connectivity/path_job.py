"""Evaluates a path and prints its figures; `test_processes.py` runs it in one process and in several."""

import json

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, StackDataset

from hf_moe_lmc.connectivity import borrow, linear_path, measure
from tests.models import build, inputs

if __name__ == "__main__":
    accelerator = Accelerator(cpu=True)
    a, b = (build("moe_vit sparse", seed=seed, dtype=torch.float32) for seed in (0, 1))
    data = {**inputs(a, 13), "labels": torch.arange(13) % 5}
    loader = accelerator.prepare(DataLoader(StackDataset(**data), batch_size=2))
    with borrow(a) as weights:
        path = linear_path(weights, b.state_dict())
        barrier = measure(weights, path, (0.0, 0.5, 1.0), loader, accelerator).barrier
    print(json.dumps([accelerator.num_processes, barrier.loss, barrier.accuracy]), flush=True)  # noqa: T201
    accelerator.end_training()
