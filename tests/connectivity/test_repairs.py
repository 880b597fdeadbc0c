from typing import get_args

import pytest
import torch
from hf_moe_lmc.connectivity.repairs import CALIBRATED, Repair

from hf_moe_lmc.adapters import moe_layers
from hf_moe_lmc.connectivity import borrow, calibrate, linear_path, repaired_path
from tests.models import build, inputs

NAMES = ["moe_vit shared", "moe_gpt2 sparse", "mixtral", "qwen2_moe"]


def pair(name: str, dtype: torch.dtype = torch.float32):
    a, b = (build(name, seed=seed, dtype=dtype) for seed in (0, 1))
    return a.state_dict(), b.state_dict(), moe_layers(a)


def same(x, y) -> bool:
    return list(x) == list(y) and all(torch.equal(x[name], y[name]) for name in x)


def calibrated(name: str):
    """Calibration of the merges of `pair(name)`, gathered in a third model."""
    a, b, specs = pair(name)
    scratch = build(name, seed=2, dtype=torch.float32)

    def at(t: float):
        with borrow(scratch) as weights:
            return calibrate(weights, linear_path(a, b)(t), specs, [inputs(scratch)])

    return at


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_norms(name, dtype):
    """The ends are the models; between them only the Mixture-of-Experts layers leave the line, and do."""
    a, b, specs = pair(name, dtype)
    path, line = repaired_path(a, b, specs, ["norms"]), linear_path(a, b)
    assert same(path(0.0), a)
    assert same(path(1.0), b)
    found, plain = path(0.5), line(0.5)
    assert all(found[key].dtype == dtype for key in found)
    changed = {key for key in found if not torch.equal(found[key], plain[key])}
    routed = {key for spec in specs for key in spec.tensor_names if not key.endswith("down_proj_bias")}
    assert changed <= routed
    assert {key for key in routed if "weight" in key or "up_proj" in key} <= changed


CHANGED = {
    "norms": {"router", "up", "down"},
    "gram": {"up", "down"},
    "moments": {"down"},
    "rescale": {"down"},
    "router": {"router"},
}


@pytest.mark.parametrize("repair", get_args(Repair))
@pytest.mark.parametrize("name", NAMES)
def test_what_a_repair_changes(name, repair):
    a, b, specs = pair(name)
    path, line = repaired_path(a, b, specs, [repair], calibrated(name)), linear_path(a, b)
    assert same(path(0.0), a)
    assert same(path(1.0), b)
    found, plain = path(0.4), line(0.4)
    assert all(torch.isfinite(tensor).all() for tensor in found.values())
    for spec in specs:
        router = {key for _, key in spec.router.tensors}
        parts = {
            key: "router" if key in router else "down" if "down_proj" in key else "up" for key in spec.tensor_names
        }
        assert {parts[key] for key in parts if not torch.equal(found[key], plain[key])} == CHANGED[repair]
    others = found.keys() - {key for spec in specs for key in spec.tensor_names}
    assert all(torch.equal(found[key], plain[key]) for key in others)


def test_one_repair_after_the_other():
    """A chain is not the last of its repairs, and its order counts."""
    a, b, specs = pair("mixtral")
    paths = [
        repaired_path(a, b, specs, chain, calibrated("mixtral"))(0.5)
        for chain in (["norms"], ["rescale"], ["norms", "rescale"], ["rescale", "norms"])
    ]
    down = specs[0].experts.tensor_names[1]
    assert len({float(found[down].double().norm()) for found in paths}) == 4


@pytest.mark.parametrize("repair", CALIBRATED)
def test_a_layer_without_calibration_stays_on_the_line(repair):
    a, b, specs = pair("mixtral")
    assert same(repaired_path(a, b, specs, [repair])(0.5), dict(linear_path(a, b)(0.5)))
