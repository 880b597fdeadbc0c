from dataclasses import replace

import pytest
import torch

from hf_moe_lmc.merging import interpolate_layers, preserve_norms, restore_gram
from hf_moe_lmc.merging.second_moments import restoring_map, second_moment
from hf_moe_lmc.moe import act
from tests.layers import LAYER_KINDS, derangement, naive_forward, scaled_units

KINDS = [(kind, degree) for kind in LAYER_KINDS for degree in (0, 1)]
T = 0.3


def pair(kind: tuple[str, int], **sizes: int):
    name, degree = kind
    layers = LAYER_KINDS[name](**sizes, seed=0), LAYER_KINDS[name](**sizes, seed=1)
    group = replace(layers[0].group, unit_scale_degree=degree, shared_unit_scale_degree=degree)
    return tuple(replace(layer, group=group) for layer in layers)


def rows(bank, part: str, e: int):
    if part == "down":
        return bank.down_proj[e].T
    weight, bias = getattr(bank, f"{part}_proj"), getattr(bank, f"{part}_bias")
    return weight[e] if bias is None else torch.cat([weight[e], bias[e, :, None]], dim=1)


def parts(layer):
    """All that has a Gram matrix: bank, projection, expert."""
    for bank in ("experts", "shared_experts"):
        if found := getattr(layer, bank):
            for part in ("gate", "up", "down") if found.gate_proj is not None else ("up", "down"):
                for e in range(found.num_experts):
                    yield bank, part, e


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_moved_to_the_line_of_grams(kind):
    """Expert by expert, against the formula; the router stays."""
    a, b = pair(kind)
    merged = interpolate_layers(a, b, T)
    repaired = restore_gram(merged, a, b, T)
    for bank, part, e in parts(merged):
        found, start, end = (rows(getattr(layer, bank).balance_units(kind[1]), part, e) for layer in (merged, a, b))
        wanted = (1 - T) * second_moment(start) + T * second_moment(end)
        expected = found @ restoring_map(second_moment(found), wanted)
        torch.testing.assert_close(rows(getattr(repaired, bank), part, e), expected)
    assert repaired.router is merged.router


@pytest.mark.parametrize("kind", ["mlp, shared experts", "swiglu with biases"])
def test_what_norms_leave_of_the_difference(kind):
    """With many units, Gram matrices are nearly those of the line; with norms kept they are not: their trace is."""
    a, b = pair((kind, 0), F_=400, H=5)
    a = a.with_tensors(
        {k: v * torch.linspace(0.2, 2, v.shape[-1]) if "proj" in k else v for k, v in a.tensors().items()}
    )
    merged = interpolate_layers(a, b, T)
    errors = []
    for repaired in (restore_gram(merged, a, b, T), preserve_norms(merged, a, b, T)):
        distance = 0
        for bank, part, e in parts(merged):
            found, start, end = (rows(getattr(layer, bank), part, e) for layer in (repaired, a, b))
            found, wanted = found.T @ found, (1 - T) * start.T @ start + T * end.T @ end
            distance += float((found - wanted).norm() / wanted.norm())
        errors.append(distance)
    assert errors[0] < 0.3 * errors[1]


@pytest.mark.parametrize("kind", KINDS)
def test_repair_commutes_with_symmetries(kind):
    a, b = pair(kind)
    merged, symmetry = interpolate_layers(a, b, T), derangement(a)
    found = restore_gram(*(act(symmetry, layer) for layer in (merged, a, b)), T).tensors()
    for name, tensor in act(symmetry, restore_gram(merged, a, b, T)).tensors().items():
        torch.testing.assert_close(found[name], tensor)


def test_free_scales_of_units_do_not_count():
    """A merge or an end whose units are scaled otherwise, and which computes the same, is repaired to the same."""
    a, b = pair(("swiglu, shared experts", 1))
    merged = interpolate_layers(a, b, T)
    scaled = [replace(layer, experts=scaled_units(layer.experts, 1, seed)) for seed, layer in enumerate((merged, a, b))]
    expected = restore_gram(merged, a, b, T).tensors()
    for name, tensor in restore_gram(*scaled, T).tensors().items():
        torch.testing.assert_close(tensor, expected[name])


@pytest.mark.parametrize("kind", KINDS)
def test_the_ends_compute_what_they_did(kind):
    a, b = pair(kind)
    tokens = torch.randn(9, a.router.weight.shape[1], generator=torch.Generator().manual_seed(9)).double()
    for t, end in ((0.0, a), (1.0, b)):
        found = restore_gram(interpolate_layers(a, b, t), a, b, t)
        torch.testing.assert_close(naive_forward(found, tokens), naive_forward(end, tokens))


def test_an_expert_of_zeros_stays_as_it_is():
    layers = [
        replace(layer, experts=layer.experts.map(lambda tensor: tensor.index_fill(0, torch.tensor([1]), 0)))
        for layer in pair(("swiglu", 1))
    ]
    found = restore_gram(interpolate_layers(*layers, T), *layers, T).experts
    assert all(torch.isfinite(tensor).all() for tensor in found.tensors().values())
    assert not found.down_proj[1].any()
    assert found.down_proj[0].any()
