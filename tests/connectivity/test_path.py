import pytest
import torch
from hf_moe_lmc.connectivity.path import moved, points_of

from hf_moe_lmc.adapters import alignable_layers, moe_layers
from hf_moe_lmc.alignment import apply_symmetries
from hf_moe_lmc.connectivity import linear_path
from hf_moe_lmc.errors import BadInputError, IncompatiblePairError
from hf_moe_lmc.merging import interpolate
from tests import families
from tests.layers import derangement
from tests.models import build

NAMES = ["moe_vit shared", "moe_gpt2 sparse", "mixtral", "qwen2_moe"]


def pair(name: str):
    a, b = (build(name, seed=seed, dtype=torch.float32) for seed in (0, 1))
    return a.state_dict(), b.state_dict(), moe_layers(a)


def same(x, y) -> bool:
    return list(x) == list(y) and all(torch.equal(x[name], y[name]) for name in x)


@pytest.mark.parametrize("name", NAMES)
def test_a_line_is_the_interpolation(name):
    a, b, _ = pair(name)
    assert same(linear_path(a, b)(0.3), dict(interpolate(a, b, 0.3)))


@pytest.mark.parametrize(
    "name", [*NAMES, "deepseek_v3", "gpt_oss", "switch_transformers", "longcat_flash", "vitpose_backbone", "doge"]
)
def test_moved_equals_moving_the_whole_model(name):
    model = build(name, dtype=torch.float32) if name in NAMES else families.build(name)
    tensors, specs = model.state_dict(), alignable_layers(model)
    planted = {spec.name: derangement(spec.read(tensors), seed) for seed, spec in enumerate(specs)}
    found = moved(tensors, specs, planted)
    assert same(found, apply_symmetries(tensors, specs, planted))
    assert not same(found, tensors)


def test_a_layer_without_a_symmetry():
    a, _, specs = pair("qwen2_moe")
    with pytest.raises(IncompatiblePairError, match=r"layer model\.layers\.0\.mlp exists"):
        moved(a, specs, {spec.name: derangement(spec.read(a)) for spec in specs[1:]})


def test_points():
    assert points_of(5) == (0.0, 0.25, 0.5, 0.75, 1.0)
    assert points_of([0.0, 0.1, 1.0]) == (0.0, 0.1, 1.0)


@pytest.mark.parametrize(
    "t",
    [-3, 0, 1, 2, (), (0.0,), (0.0, 0.5), (0.0, 1.0), (0.1, 0.5, 1.0), (0.0, 0.7, 0.6, 1.0), (0.0, float("nan"), 1.0)],
)
def test_what_is_no_path(t):
    with pytest.raises(BadInputError, match="three points or more, ascending from 0 to 1"):
        points_of(t)
