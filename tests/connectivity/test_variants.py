from copy import deepcopy
from dataclasses import replace
from typing import get_args

import pytest
import torch

from hf_moe_lmc import Alignment, align
from hf_moe_lmc.adapters import alignable_layers
from hf_moe_lmc.alignment import aligned, mean, open_models
from hf_moe_lmc.connectivity import VARIANTS, linear_path, points_of, variant_weights
from hf_moe_lmc.connectivity.variants import UNAVERAGED, control_path
from hf_moe_lmc.errors import BadInputError
from hf_moe_lmc.names import Variant
from hf_moe_lmc.symmetry import Permutation
from tests import families
from tests.connectivity import siblings
from tests.layers import derangement
from tests.models import build, logits

NAMES = ["moe_vit shared", "moe_gpt2 sparse", "mixtral", "qwen2_moe"]


def same(x, y) -> bool:
    return list(x) == list(y) and all(torch.equal(x[name], y[name]) for name in x)


@pytest.mark.parametrize("name", NAMES)
def test_a_line_is_the_mean(name):
    a, b = (build(name, seed=seed, dtype=torch.float32).state_dict() for seed in (0, 1))
    path = linear_path(a, b)
    assert same(dict(path(0.3)), dict(mean([a, b], (0.7, 0.3))))
    assert same(dict(path(0.0)), a)
    assert same(dict(path(1.0)), b)


def test_a_line_of_given_layers_is_in_one_gauge():
    a, b = (build("mixtral", seed=seed, dtype=torch.float32) for seed in (0, 1))
    path, states = linear_path(a.state_dict(), b.state_dict(), alignable_layers(a)), [a.state_dict(), b.state_dict()]
    assert same(dict(path(1.0)), states[1])
    assert not same(dict(path(0.3)), dict(mean(states, (0.7, 0.3))))


@pytest.mark.parametrize("variant", UNAVERAGED)
def test_controls_that_average_no_experts(variant):
    a, b = (build("mixtral", seed=seed, dtype=torch.float32).state_dict() for seed in (0, 1))
    specs = alignable_layers(build("mixtral"))
    found, line = dict(control_path(variant, a, b, specs)(0.5)), dict(mean([a, b], (0.5, 0.5)))
    layers = {key for spec in specs for key in spec.tensor_names}
    assert all(torch.equal(found[key], line[key]) for key in line.keys() - layers)
    experts = [key for key in layers if ".experts." in key]
    assert not any(torch.equal(found[key], line[key]) for key in experts)
    if variant != "pick":
        own = a if variant == "reference_experts" else b
        assert all(torch.equal(found[key], own[key]) for key in layers)


def test_every_name_is_a_variant():
    assert get_args(Variant) == tuple(VARIANTS)


@pytest.mark.parametrize("name", [*NAMES, "deepseek_v3", "gpt_oss", "switch_transformers", "doge"])
def test_every_variant_computes_what_the_other_does(name):
    """They are that model itself, rewritten; "naive" bit for bit."""
    make = build if name in NAMES else families.build
    a, b = (make(name, seed=seed, dtype=torch.float32) for seed in (0, 1))
    pair, alignment = open_models([a, b]), align(a, b, config="gate")
    outputs = logits if name in NAMES else lambda model: families.outputs(model, name)
    own, expected = dict(b.state_dict()), outputs(b)
    scratch, weights = make(name, seed=2, dtype=torch.float32), {}
    for variant in VARIANTS:
        weights[variant] = dict(variant_weights(variant, pair, alignment, seed=0))
        scratch.load_state_dict(weights[variant])
        torch.testing.assert_close(outputs(scratch), expected, rtol=1e-3, atol=1e-3)
    assert same(weights["naive"], own)
    assert same(weights["aligned"], dict(alignment.apply(b).state_dict()))
    layers = {key for spec in alignable_layers(b) for key in spec.tensor_names}
    for variant in ("random", "units"):
        changed = {key for key in own if not torch.equal(own[key], weights[variant][key])}
        assert changed
        assert changed <= layers


def test_units_leave_experts_in_their_order():
    """Planted units are found; planted experts stay where they are."""
    a, b = siblings.pair("mixtral")
    own, specs = dict(b.state_dict()), alignable_layers(b)
    planted = {spec.name: derangement(spec.read(own)) for spec in specs}
    units = {
        name: replace(symmetry, experts=Permutation.identity(siblings.EXPERTS)) for name, symmetry in planted.items()
    }
    moved, weights = deepcopy(b), {}
    for case, symmetries in (("units", units), ("all", planted)):
        moved.load_state_dict(dict(aligned(own, specs, symmetries)))
        weights[case] = dict(variant_weights("units", open_models([a, moved]), Alignment({}), seed=0))
    assert same(weights["units"], own)
    routers = [key for spec in specs for _, key in spec.router.tensors]
    assert all(torch.equal(weights["all"][key], moved.state_dict()[key]) for key in routers)
    assert not any(torch.equal(weights["all"][key], own[key]) for key in routers)


def test_the_random_element_has_a_seed():
    a, b = (build("mixtral", seed=seed, dtype=torch.float32) for seed in (0, 1))
    pair, unused = open_models([a, b]), Alignment({})
    first, again, other = (dict(variant_weights("random", pair, unused, seed)) for seed in (0, 0, 1))
    assert same(first, again)
    assert not same(first, other)


def test_points():
    assert points_of(5) == (0.0, 0.25, 0.5, 0.75, 1.0)
    assert points_of(11, [0.0, 0.1, 1.0]) == (0.0, 0.1, 1.0)


@pytest.mark.parametrize("points", [-1, 0, 1, 2])
def test_too_few_points(points):
    with pytest.raises(BadInputError, match=f"three points or more, ascending from 0 to 1, not {points} points"):
        points_of(points)


@pytest.mark.parametrize(
    "t", [(), (0.0,), (0.0, 1.0), (0.0, 0.5), (0.1, 0.5, 1.0), (0.0, 0.7, 0.6, 1.0), (0.0, float("nan"), 1.0)]
)
def test_what_is_no_path(t):
    with pytest.raises(BadInputError, match="three points or more, ascending from 0 to 1, not t = "):
        points_of(11, t)
