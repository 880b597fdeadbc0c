"""Evaluates paths and prints their figures; `test_processes.py` runs it in several processes, and itself in one."""

import json
import sys
from pathlib import Path

from accelerate import Accelerator
from torch.utils.data import DataLoader

from hf_moe_lmc import MoeAligner
from hf_moe_lmc.connectivity.calibration_error import ExpectedCalibrationError
from tests.connectivity import siblings

FAMILIES = ("mixtral", "deepseek_v3", siblings.IMAGES)
WITH_EVERYTHING = ("mixtral", siblings.IMAGES)


def report(folder: Path, family: str, accelerator: Accelerator) -> dict[str, object]:
    """The report of the pair of `family` in `folder`."""
    # 13 examples in batches of 2: two processes get unequal shares, and one example is padding.
    data = DataLoader(siblings.held_out(0, 13, family), batch_size=2)
    everything = {
        "calibration": siblings.loader(13, 4, batch_size=2, family=family),
        "repairs": ("auto",) if family == "mixtral" else ("rescale",),
        "metrics": [ExpectedCalibrationError()],
    }
    return (
        MoeAligner.from_pretrained(folder / f"{family}-a", folder / f"{family}-b")
        .evaluate(
            None,
            data,
            3,
            variants=("aligned",),
            accelerator=accelerator,
            experts_implementation="eager",
            **everything if family in WITH_EVERYTHING else {},
        )
        .to_json()
    )


if __name__ == "__main__":
    accelerator = Accelerator(cpu=True)
    found = {family: report(Path(sys.argv[1]), family, accelerator) for family in FAMILIES}
    if accelerator.is_main_process:
        print(json.dumps([accelerator.num_processes, found]), flush=True)  # noqa: T201
    accelerator.end_training()
