"""Evaluates a path and prints its figures; `test_processes.py` runs it in one process and in several."""

import json
import sys

from accelerate import Accelerator
from torch.utils.data import DataLoader

from hf_moe_lmc.connectivity import evaluate_path
from tests.connectivity import finetuned

if __name__ == "__main__":
    accelerator = Accelerator(cpu=True)
    a, b = finetuned.pair(sys.argv[1])
    # 13 blocks in batches of 2: two processes get unequal shares, and one example is padding.
    data = DataLoader(finetuned.held_out(0, 13), batch_size=2)
    report = evaluate_path(
        a,
        b,
        None,
        data,
        3,
        calibration=finetuned.loader(13, 4, batch_size=2),
        routing_tokens=200,
        accelerator=accelerator,
    )
    print(json.dumps([accelerator.num_processes, report.to_json()]), flush=True)  # noqa: T201
    accelerator.end_training()
