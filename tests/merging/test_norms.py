from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_moe_lmc.merging import repaired_layer
from tests.layers import same_weights
from tests.merging.endpoints import KINDS, SHARES, endpoints, on_the_line

BOTH = (0.5, 0.5)


def repaired(layers, shares):
    return repaired_layer(layers, shares, ["norms"])


@pytest.mark.parametrize("kind", KINDS)
def test_the_ends_are_the_layers(kind):
    a, b = endpoints(kind, BOTH)
    assert same_weights(repaired([a, b], (1.0, 0.0)), a)
    assert same_weights(repaired([a, b], (0.0, 1.0)), b)


@pytest.mark.parametrize("shares", SHARES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_every_orbit_has_its_averaged_length(kind, shares):
    """Unit by unit, against the formula."""
    layers = endpoints(kind, shares)
    merged = repaired(layers, shares)

    def row(bank, name: str, e: int, f: int):
        weight, bias = getattr(bank, f"{name}_proj")[e, f], getattr(bank, f"{name}_bias")
        return (weight if bias is None else torch.cat([weight, bias[e, f, None]])).norm()

    group = merged.group
    degrees = {"experts": group.unit_scale_degree, "shared_experts": group.shared_unit_scale_degree}
    for part, degree in degrees.items():
        banks = [getattr(layer, part) for layer in (*layers, merged)]
        if banks[0] is None:
            continue
        for e in range(banks[0].num_experts):
            for f in range(banks[0].num_units):
                ups = [row(bank, "up", e, f) for bank in banks]
                downs = [bank.down_proj[e, :, f].norm() for bank in banks]
                lengths = [[u**degree * d for u, d in zip(ups, downs, strict=True)]] if degree else [ups, downs]
                if banks[0].gate_proj is not None:
                    lengths.append([row(bank, "gate", e, f) for bank in banks])
                for *own, found in lengths:
                    torch.testing.assert_close(found, on_the_line(own, shares))


@pytest.mark.parametrize("shares", SHARES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_router_rows_have_their_averaged_length(kind, shares):
    """About the mean row, where a translation of all rows changes nothing."""
    layers = endpoints(kind, shares)
    routers = [layer.router for layer in (*layers, repaired(layers, shares))]
    rows = [r.weight if r.bias is None else torch.cat([r.weight, r.bias[:, None]], dim=1) for r in routers]
    means = [torch.zeros(())] * len(rows)
    if layers[0].group.router_translation:
        means = [own.mean(dim=0) for own in rows[:-1]]
        means.append(on_the_line(means, shares))
    *own, found = ((row - mean).norm(dim=1) for row, mean in zip(rows, means, strict=True))
    torch.testing.assert_close(found, on_the_line(own, shares))


@pytest.mark.parametrize("shares", SHARES, ids=str)
def test_the_mean_itself_is_shorter(shares):
    """The control: without the repair the lengths are not the averaged ones."""
    layers = endpoints(("swiglu", 1), shares)
    mean = repaired_layer(layers, shares)
    wanted = on_the_line([layer.experts.gate_proj.norm(dim=2) for layer in layers], shares)
    assert (mean.experts.gate_proj.norm(dim=2) < 0.95 * wanted).any()


@given(st.floats(0.1, 10), st.sampled_from([1, 2]))
def test_a_rescaled_unit_counts_as_the_same(c, degree):
    """Up row times c, down column over c^d: the wanted product of lengths does not change."""
    a, b = endpoints(("swiglu", degree), BOTH)
    experts = replace(b.experts, up_proj=b.experts.up_proj * c, down_proj=b.experts.down_proj / c**degree)
    scaled = replace(b, experts=experts)
    products = [
        merged.experts.up_proj.norm(dim=2) ** degree * merged.experts.down_proj.norm(dim=1)
        for merged in (repaired([a, b], BOTH), repaired([a, scaled], BOTH))
    ]
    torch.testing.assert_close(*products)


@pytest.mark.parametrize("shares", SHARES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_with_itself_stays(kind, shares):
    first = endpoints(kind, shares)[0]
    copies = [first] * len(shares)
    if len(shares) == 2:
        assert same_weights(repaired(copies, shares), first)
    for name, tensor in repaired(copies, shares).tensors().items():
        torch.testing.assert_close(tensor, first.tensors()[name], rtol=1e-14, atol=0)


def test_what_cancels_stays_small():
    a, _ = endpoints(("swiglu", 1), BOTH)
    b = replace(a, experts=a.experts.map(torch.neg))
    assert all(torch.isfinite(tensor).all() for tensor in repaired([a, b], BOTH).tensors().values())
    assert repaired([a, b], BOTH).experts.up_proj.abs().max() == 0
