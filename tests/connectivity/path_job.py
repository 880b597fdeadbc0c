"""Evaluates paths and prints their figures; `test_processes.py` runs it in several processes, and itself in one."""

import json
import sys
from pathlib import Path

from accelerate import Accelerator
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoModelForImageClassification

from hf_moe_lmc.connectivity import evaluate_path
from hf_moe_lmc.connectivity.calibration_error import ExpectedCalibrationError
from tests.connectivity import finetuned

WITH_EVERYTHING = ("mixtral", finetuned.IMAGES)


def report(folder: Path, family: str, accelerator: Accelerator) -> dict[str, object]:
    """The report of the pair of `family` in `folder`."""
    auto = AutoModelForImageClassification if family == finetuned.IMAGES else AutoModelForCausalLM
    a, b = (auto.from_pretrained(folder / f"{family}-{end}", experts_implementation="eager") for end in "ab")
    # 13 examples in batches of 2: two processes get unequal shares, and one example is padding.
    data = DataLoader(finetuned.held_out(0, 13, family), batch_size=2)
    everything = {
        "calibration": finetuned.loader(13, 4, batch_size=2, family=family),
        "repairs": ("auto",) if family == "mixtral" else ("rescale",),
        "metrics": [ExpectedCalibrationError()],
    }
    return evaluate_path(
        a,
        b,
        None,
        data,
        3,
        arrangements=("aligned",),
        routing_tokens=200,
        resamples=100,
        accelerator=accelerator,
        **everything if family in WITH_EVERYTHING else {},
    ).to_json()


if __name__ == "__main__":
    accelerator = Accelerator(cpu=True)
    found = {family: report(Path(sys.argv[1]), family, accelerator) for family in finetuned.FAMILIES}
    if accelerator.is_main_process:
        print(json.dumps([accelerator.num_processes, found]), flush=True)  # noqa: T201
    accelerator.end_training()
