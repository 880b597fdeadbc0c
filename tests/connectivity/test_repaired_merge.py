import json
from copy import deepcopy

import pytest
import torch
from accelerate import Accelerator
from hf_moe_lmc.connectivity.repairs import repaired_name

from hf_moe_lmc import MoeAligner, align, scramble
from hf_moe_lmc.connectivity import calibrate_repairs, evaluate, evaluate_path
from hf_moe_lmc.errors import BadInputError
from tests.connectivity import finetuned


@pytest.fixture(scope="module")
def pair():
    """Two fine-tunes, the second one scrambled."""
    a, b = finetuned.pair("qwen2_moe")
    return a, scramble(deepcopy(b), seed=3)[0]


def calibration():
    return finetuned.loader(12, 16)


@pytest.mark.parametrize("repairs", ["auto", ("rescale",), ("norms", "router")])
def test_what_is_written_is_what_was_evaluated(repairs, pair, tmp_path):
    """Bit for bit: the merge on disk, the merge in memory, and the model at t while the path was evaluated."""
    a, b = pair
    for name, model in zip("ab", pair, strict=True):
        model.save_pretrained(tmp_path / name)
    aligner = MoeAligner.from_pretrained(tmp_path / "a", tmp_path / "b")
    alignment, load = aligner.align(), {"experts_implementation": "eager"}
    given = {"t": 0.5, "repairs": repairs, "calibration": calibration(), "load": load}
    on_disk = aligner.merge(alignment, output=tmp_path / "merged", **given)
    live = MoeAligner.from_pretrained(a, b).merge(align(a, b), **given)
    record = json.loads((tmp_path / "merged" / "hf_moe_lmc_manifest.json").read_text())
    assert record["repairs"]
    if repairs != "auto":
        assert record["repairs"] == list(repairs)
    for name, tensor in live.state_dict().items():
        assert torch.equal(tensor, on_disk.state_dict()[name])

    if repairs != "auto" and len(repairs) > 1:
        return  # a chain that no path of `evaluate_path` has
    data, accelerator = finetuned.loader(0, 12), Accelerator(cpu=True)
    measured = evaluate_path(
        a,
        b,
        alignment,
        data,
        3,
        calibration=calibration(),
        arrangements=("aligned",),
        repairs=("auto",) if repairs == "auto" else repairs,
        accelerator=accelerator,
    )
    curve = measured.curves[repaired_name("aligned", record["repairs"])]
    assert evaluate(on_disk, data, accelerator).loss == curve.midpoint_loss
    assert curve.midpoint_loss != measured.curves["aligned"].midpoint_loss
    if repairs == "auto":
        assert record["calibration"]["held_out_loss"] == measured.repair.held_out_loss


def test_calibrated_at_every_t(pair):
    """Each point has calibration statistics of its own; the ends need none."""
    a, b = pair
    found = calibrate_repairs(a, b, align(a, b), (0.0, 0.25, 0.5, 1.0), ("rescale",), calibration())
    assert set(found.calibrations) == {0.25, 0.5}
    first, second = (found.calibrations[t] for t in (0.25, 0.5))
    name = max(first)  # the last layer, which sees what the others made of the tokens
    assert not torch.equal(first[name].experts.tokens, second[name].experts.tokens)
    other = calibrate_repairs(a, b, align(a, b), (0.5,), ("rescale",), finetuned.loader(28, 16))
    assert other.data != found.data


def test_repairs_need_data(pair):
    a, b = pair
    with pytest.raises(BadInputError, match="repairs need calibration data; give two batches or more"):
        calibrate_repairs(a, b, align(a, b), (0.5,), ("rescale",), ())
    assert calibrate_repairs(a, b, align(a, b), (0.5,), ("norms",), ()).repairs == ("norms",)
