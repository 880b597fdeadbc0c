import json
from pathlib import Path

import pytest
from accelerate import Accelerator
from torch.utils.data import DataLoader

from hf_moe_lmc import MoeAligner
from hf_moe_lmc.connectivity.calibration_error import ExpectedCalibrationError
from tests import forked
from tests.connectivity import siblings

REPAIRS = {"mixtral": "auto", siblings.IMAGES: "rescale"}


def report(folder: Path, family: str, accelerator: Accelerator) -> dict[str, object]:
    """The report of the pair of `family` in `folder`."""
    # 13 examples in batches of 2: two processes get unequal shares, and one example is padding.
    data = DataLoader(siblings.held_out(0, 13, family), batch_size=2)
    calibration = siblings.loader(13, 4, batch_size=2, family=family)
    aligner = MoeAligner.from_pretrained(folder / f"{family}-a", folder / f"{family}-b")
    return aligner.evaluate(
        None, data, 3, calibration=calibration, variants=("aligned",), repairs=(REPAIRS[family],),
        metrics=[ExpectedCalibrationError()], accelerator=accelerator, experts_implementation="eager",
    ).to_json()  # fmt: skip


def evaluate(folder: Path) -> int:
    """All reports, written by the main process of a job of two."""
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    found = {family: report(folder, family, accelerator) for family in REPAIRS}
    if accelerator.is_main_process:
        (folder / "found.json").write_text(json.dumps(found))
    accelerator.end_training()
    return 0


def figures(value: object, name: str = "") -> dict[str, object]:
    """All leaves of a report, by their path in it."""
    if isinstance(value, dict):
        return {key: leaf for k, v in value.items() for key, leaf in figures(v, f"{name}/{k}").items()}
    if isinstance(value, list):
        return {key: leaf for i, v in enumerate(value) for key, leaf in figures(v, f"{name}/{i}").items()}
    return {name: value}


def test_two_processes_give_the_figures_of_one(tmp_path):
    """Losses, barriers, intervals, routing, metrics and the chosen repair; the mean of means would be off."""
    for family in REPAIRS:
        for name, model in zip("ab", siblings.pair(family), strict=True):
            model.save_pretrained(tmp_path / f"{family}-{name}")
    assert forked.run_job(evaluate, [(tmp_path,)] * 2) == [0, 0]
    two = json.loads((tmp_path / "found.json").read_text())
    for family in REPAIRS:
        one = report(tmp_path, family, Accelerator(cpu=True))
        expected, found = figures(json.loads(json.dumps(one))), figures(two[family])
        assert expected.keys() == found.keys()
        assert len(expected) > 100
        for name, value in expected.items():
            close = pytest.approx(value, rel=1e-6, abs=1e-6) if isinstance(value, float) else value
            assert found[name] == close, (family, name)
