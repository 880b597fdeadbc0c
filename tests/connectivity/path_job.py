"""Evaluates paths and prints their figures; `test_processes.py` runs it in one process and in several."""

import json
import sys
from pathlib import Path

from accelerate import Accelerator
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoModelForImageClassification

from hf_moe_lmc.connectivity import evaluate_path
from hf_moe_lmc.connectivity.metrics import ExpectedCalibrationError
from tests.connectivity import finetuned

if __name__ == "__main__":
    accelerator = Accelerator(cpu=True)
    for family in sys.argv[2:]:
        auto = AutoModelForImageClassification if family == finetuned.IMAGES else AutoModelForCausalLM
        a, b = (
            auto.from_pretrained(Path(sys.argv[1]) / f"{family}-{end}", experts_implementation="eager") for end in "ab"
        )
        # 13 examples in batches of 2: two processes get unequal shares, and one example is padding.
        data = DataLoader(finetuned.held_out(0, 13, family), batch_size=2)
        report = evaluate_path(
            a,
            b,
            None,
            data,
            3,
            calibration=finetuned.loader(13, 4, batch_size=2, family=family),
            arrangements=("aligned",),
            repairs=("auto",) if family == "mixtral" else ("rescale",),
            routing_tokens=200,
            resamples=100,
            metrics=[ExpectedCalibrationError()],
            accelerator=accelerator,
        )
        found = [accelerator.num_processes, family, report.to_json()]
        if accelerator.is_main_process:
            print(json.dumps(found), flush=True)  # noqa: T201
    accelerator.end_training()
