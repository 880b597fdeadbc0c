from dataclasses import replace

import pytest
import torch

from hf_moe_lmc.merging import repaired_layer
from hf_moe_lmc.merging.gram import restore_gram
from hf_moe_lmc.merging.second_moments import restoring_map, second_moment
from tests.layers import naive_forward, scaled_units
from tests.merging.endpoints import KINDS, SHARES, endpoints, on_the_line


def rows(bank, part: str, e: int):
    if part == "down":
        return bank.down_proj[e].T
    weight, bias = getattr(bank, f"{part}_proj"), getattr(bank, f"{part}_bias")
    return weight[e] if bias is None else torch.cat([weight[e], bias[e, :, None]], dim=1)


def parts(layer):
    """All that has a Gram matrix: bank, projection, expert."""
    for bank in ("experts", "shared_experts"):
        if own := getattr(layer, bank):
            for part in ("gate", "up", "down") if own.gate_proj is not None else ("up", "down"):
                for e in range(own.num_experts):
                    yield bank, part, e


@pytest.mark.parametrize("shares", SHARES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_grams_of_rows_are_averaged(kind, shares):
    """Expert by expert, against the formula; the router stays the mean."""
    layers = endpoints(kind, shares)
    merged, repaired = repaired_layer(layers, shares), repaired_layer(layers, shares, ["gram"])
    for bank, part, e in parts(merged):
        found, *own = (rows(getattr(layer, bank).balance_units(kind[1]), part, e) for layer in (merged, *layers))
        wanted = on_the_line(map(second_moment, own), shares)
        expected = found @ restoring_map(second_moment(found), wanted)
        torch.testing.assert_close(rows(getattr(repaired, bank), part, e), expected)
    for name, tensor in merged.router.tensors().items():
        assert torch.equal(tensor, repaired.router.tensors()[name])


@pytest.mark.parametrize("shares", SHARES, ids=str)
@pytest.mark.parametrize("kind", ["mlp, shared experts", "swiglu with biases"])
def test_norms_leave_more_of_the_difference(kind, shares):
    """With many units, Gram matrices are nearly the averaged ones; with repair norms only their traces are."""
    layers = [
        layer.with_tensors(
            {k: v * torch.linspace(0.2, 2, v.shape[-1]) if "proj" in k else v for k, v in layer.tensors().items()}
        )
        if i == 0
        else layer
        for i, layer in enumerate(endpoints((kind, 0), shares, F_=400, H=5))
    ]
    errors = []
    for repair in ("gram", "norms"):
        repaired, distance = repaired_layer(layers, shares, [repair]), 0
        for bank, part, e in parts(repaired):
            found, *own = (rows(getattr(layer, bank), part, e) for layer in (repaired, *layers))
            wanted = on_the_line([own_rows.T @ own_rows for own_rows in own], shares)
            distance += float((found.T @ found - wanted).norm() / wanted.norm())
        errors.append(distance)
    assert errors[0] < 0.3 * errors[1]


@pytest.mark.parametrize("shares", SHARES, ids=str)
def test_free_scales_of_units_do_not_count(shares):
    """A mean or an endpoint whose units are scaled otherwise, and which computes the same, is repaired to the same."""
    layers = endpoints(("swiglu, shared experts", 1), shares)
    banks = [repaired_layer(layers, shares).experts, *(layer.experts for layer in layers)]
    scaled = [scaled_units(bank, 1, seed) for seed, bank in enumerate(banks)]
    expected = restore_gram(banks[0], banks[1:], shares, 1).tensors()
    for name, tensor in restore_gram(scaled[0], scaled[1:], shares, 1).tensors().items():
        torch.testing.assert_close(tensor, expected[name])


@pytest.mark.parametrize("kind", [(kind, degree) for kind, degree in KINDS if degree < 2])  # these have no such scale
def test_the_ends_compute_as_before(kind):
    a, b = endpoints(kind, (0.5, 0.5))
    tokens = torch.randn(9, a.router.weight.shape[1], generator=torch.Generator().manual_seed(9)).double()
    for shares, end in (((1.0, 0.0), a), ((0.0, 1.0), b)):
        found = repaired_layer([a, b], shares, ["gram"])
        torch.testing.assert_close(naive_forward(found, tokens), naive_forward(end, tokens))


@pytest.mark.parametrize("shares", SHARES, ids=str)
def test_an_expert_of_zeros_stays_as_it_is(shares):
    layers = [
        replace(layer, experts=layer.experts.map(lambda tensor: tensor.index_fill(0, torch.tensor([1]), 0)))
        for layer in endpoints(("swiglu", 1), shares)
    ]
    found = repaired_layer(layers, shares, ["gram"]).experts
    assert all(torch.isfinite(tensor).all() for tensor in found.tensors().values())
    assert not found.down_proj[1].any()
    assert found.down_proj[0].any()
