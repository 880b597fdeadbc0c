from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_moe_lmc.merging import interpolate_layers, preserve_norms
from hf_moe_lmc.moe import act
from tests.layers import LAYER_KINDS, derangement, same_weights

# (kind of layer, degree of its units' free scale)
KINDS = [(kind, degree) for kind in LAYER_KINDS for degree in (0, 1)] + [("mlp, shared experts", 2)]


def pair(kind: tuple[str, int]):
    name, degree = kind
    layers = LAYER_KINDS[name](seed=0), LAYER_KINDS[name](seed=1)
    group = replace(layers[0].group, unit_scale_degree=degree, shared_unit_scale_degree=degree)
    return tuple(replace(layer, group=group) for layer in layers)


def repaired(a, b, t: float):
    return preserve_norms(interpolate_layers(a, b, t), a, b, t)


@pytest.mark.parametrize("kind", KINDS)
def test_the_ends_are_the_layers(kind):
    a, b = pair(kind)
    assert same_weights(repaired(a, b, 0.0), a)
    assert same_weights(repaired(a, b, 1.0), b)


@pytest.mark.parametrize("kind", KINDS)
def test_every_orbit_has_its_interpolated_length(kind):
    """Unit by unit, against the formula."""
    a, b = pair(kind)
    merged, t = repaired(a, b, 0.3), 0.3

    def row(bank, name: str, e: int, f: int):
        weight, bias = getattr(bank, f"{name}_proj")[e, f], getattr(bank, f"{name}_bias")
        return (weight if bias is None else torch.cat([weight, bias[e, f, None]])).norm()

    degrees = {"experts": a.group.unit_scale_degree, "shared_experts": a.group.shared_unit_scale_degree}
    for part, degree in degrees.items():
        banks = [getattr(layer, part) for layer in (a, b, merged)]
        if banks[0] is None:
            continue
        for e in range(banks[0].num_experts):
            for f in range(banks[0].num_units):
                ups = [row(bank, "up", e, f) for bank in banks]
                downs = [bank.down_proj[e, :, f].norm() for bank in banks]
                lengths = [[u**degree * d for u, d in zip(ups, downs, strict=True)]] if degree else [ups, downs]
                if banks[0].gate_proj is not None:
                    lengths.append([row(bank, "gate", e, f) for bank in banks])
                for start, end, found in lengths:
                    torch.testing.assert_close(found, (1 - t) * start + t * end)


@pytest.mark.parametrize("kind", KINDS)
def test_router_rows_have_their_interpolated_length(kind):
    """About the mean row, where a translation of all rows changes nothing."""
    a, b = pair(kind)
    t, rows = (
        0.3,
        [
            r.weight if r.bias is None else torch.cat([r.weight, r.bias[:, None]], dim=1)
            for r in (a.router, b.router, repaired(a, b, 0.3).router)
        ],
    )
    means = [0, 0, 0]
    if a.group.router_translation:
        means = [rows[0].mean(dim=0), rows[1].mean(dim=0), torch.lerp(rows[0], rows[1], t).mean(dim=0)]
    start, end, found = ((row - mean).norm(dim=1) for row, mean in zip(rows, means, strict=True))
    torch.testing.assert_close(found, (1 - t) * start + t * end)


def test_the_line_itself_is_shorter():
    """The control: without the repair the lengths are not on the line."""
    a, b = pair(("swiglu", 1))
    line = interpolate_layers(a, b, 0.5)
    wanted = (a.experts.gate_proj.norm(dim=2) + b.experts.gate_proj.norm(dim=2)) / 2
    assert (line.experts.gate_proj.norm(dim=2) < 0.95 * wanted).any()


@pytest.mark.parametrize("kind", KINDS)
def test_it_commutes_with_the_group(kind):
    a, b = pair(kind)
    g = derangement(a)
    x, y = act(g, repaired(a, b, 0.4)).tensors(), repaired(act(g, a), act(g, b), 0.4).tensors()
    for name in x:
        torch.testing.assert_close(x[name], y[name])


@given(st.floats(0.1, 10), st.sampled_from([1, 2]))
def test_a_rescaled_unit_counts_as_the_same(c, degree):
    """Up row times c, down column over c^d: the wanted product of lengths does not change."""
    a, b = pair(("swiglu", degree))
    experts = replace(b.experts, up_proj=b.experts.up_proj * c, down_proj=b.experts.down_proj / c**degree)
    scaled = replace(b, experts=experts)
    products = [
        merged.experts.up_proj.norm(dim=2) ** degree * merged.experts.down_proj.norm(dim=1)
        for merged in (repaired(a, b, 0.5), repaired(a, scaled, 0.5))
    ]
    torch.testing.assert_close(*products)


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_with_itself_does_not_move(kind):
    a, _ = pair(kind)
    assert same_weights(repaired(a, a, 0.37), a)


def test_what_cancels_stays_small():
    a, _ = pair(("swiglu", 1))
    b = replace(a, experts=a.experts.map(torch.neg))
    assert all(torch.isfinite(tensor).all() for tensor in repaired(a, b, 0.5).tensors().values())
    assert repaired(a, b, 0.5).experts.up_proj.abs().max() == 0
