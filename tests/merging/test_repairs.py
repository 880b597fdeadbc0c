"""Laws of all repairs, on layers of every kind, between two endpoints and among three."""

from dataclasses import replace
from typing import get_args

import pytest
import torch

from hf_moe_lmc.merging import AUTOMATIC, REPAIRS, needs_data, repaired_bank, repaired_layer
from hf_moe_lmc.moe import act
from hf_moe_lmc.names import Repair
from tests.layers import LAYER_KINDS, derangement, same_weights
from tests.merging.endpoints import KINDS, SHARES, endpoints, statistics

both = pytest.mark.parametrize("shares", SHARES, ids=str)
every = pytest.mark.parametrize("repair", REPAIRS)


def test_the_table_has_the_names_that_are_offered():
    assert set(REPAIRS) == {*get_args(Repair)}
    assert set(AUTOMATIC) < set(REPAIRS)
    assert needs_data(AUTOMATIC)
    assert not needs_data(["norms", "gram"])
    assert not needs_data([])


@both
@every
@pytest.mark.parametrize("kind", KINDS)
def test_repairs_commute_with_symmetries(kind, repair, shares):
    layers = endpoints(kind, shares)
    known, symmetry = statistics(repaired_layer(layers, shares), 60), derangement(layers[0])
    experts = replace(known.experts, weights=known.experts.weights[:, symmetry.experts.index])
    scrambled = [act(symmetry, layer) for layer in layers]
    found = repaired_layer(scrambled, shares, [repair], replace(known, experts=experts)).tensors()
    repaired = repaired_layer(layers, shares, [repair], known)
    assert not same_weights(repaired, repaired_layer(layers, shares))
    # Only the router is solved for iteratively.
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if repair == "router" else {"rtol": 1e-9, "atol": 1e-9}
    for name, tensor in act(symmetry, repaired).tensors().items():
        torch.testing.assert_close(found[name], tensor, **tolerance)


@both
@every
def test_equal_endpoints_need_no_repair(repair, shares):
    layer = LAYER_KINDS["mlp, shared experts"]()
    repaired = repaired_layer([layer] * len(shares), shares, [repair], statistics(layer)).tensors()
    for name, tensor in layer.tensors().items():
        torch.testing.assert_close(repaired[name], tensor)


@both
@every
def test_the_order_of_the_endpoints_does_not_count(repair, shares):
    layers = endpoints("swiglu, shared experts", shares)
    known = statistics(repaired_layer(layers, shares))
    expected = repaired_layer(layers, shares, [repair], known).tensors()
    for name, tensor in repaired_layer(layers[::-1], shares[::-1], [repair], known).tensors().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-4)


@both
@pytest.mark.parametrize("repairs", [*([repair] for repair in REPAIRS), ["norms", "gram", "moments", "rescale"]])
def test_a_bank_cut_into_experts_gives_the_same(repairs, shares):
    """The writer's way: expert by expert."""
    layers = endpoints(("swiglu", 1), shares)
    known = statistics(repaired_layer(layers, shares)).experts
    banks = [layer.experts for layer in layers]
    whole = repaired_bank(banks, shares, repairs, 1, known)
    for e in range(whole.num_experts):
        alone = [bank.map(lambda tensor, e=e: tensor[e, None]) for bank in banks]
        found = repaired_bank(alone, shares, repairs, 1, known.expert(e)).tensors()
        for name, tensor in whole.tensors().items():
            torch.testing.assert_close(found[name][0], tensor[e])


@both
@every
def test_an_expert_without_outputs_stays_as_it_is(repair, shares):
    layers = [
        replace(layer, experts=layer.experts.map(lambda tensor: tensor.index_fill(0, torch.tensor([1]), 0)))
        for layer in endpoints("swiglu", shares)
    ]
    repaired = repaired_layer(layers, shares, [repair], statistics(repaired_layer(layers, shares)))
    assert all(torch.isfinite(tensor).all() for tensor in repaired.tensors().values())
    assert not repaired.experts.down_proj[1].any()


def test_one_repair_after_the_other():
    """The second sees the first's result: rescaled outputs have the averaged size, whatever came before."""
    shares = SHARES[0]
    layers = endpoints("swiglu", shares)
    known = statistics(repaired_layer(layers, shares))
    once, first, last = (
        repaired_layer(layers, shares, repairs, known)
        for repairs in (["rescale"], ["norms", "rescale"], ["rescale", "norms"])
    )

    def sizes(layer):
        part = known.experts
        return [(part.weights[:, e, None] * part.outputs(layer.experts, e).square()).sum() for e in range(5)]

    torch.testing.assert_close(sizes(once), sizes(first))
    assert not same_weights(once, first)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(sizes(once), sizes(last))


@every
def test_without_statistics_only_repairs_that_need_none(repair):
    shares = SHARES[0]
    layers = endpoints("swiglu, shared experts", shares)
    alone = same_weights(repaired_layer(layers, shares, [repair]), repaired_layer(layers, shares))
    assert alone == REPAIRS[repair].needs_data
    mixed = repaired_layer(layers, shares, ["norms", repair])
    if REPAIRS[repair].needs_data:
        assert same_weights(mixed, repaired_layer(layers, shares, ["norms"]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@every
def test_arithmetic_is_in_float32_or_better(repair, dtype):
    """Of 16-bit layers the result is that of the same layers in float32."""
    shares = SHARES[0]
    pair = endpoints("swiglu, shared experts", shares)
    layers = [layer.with_tensors({k: v.to(dtype) for k, v in layer.tensors().items()}) for layer in pair]
    known = statistics(pair[0])
    found = repaired_layer(layers, shares, [repair], known)
    wide = [layer.with_tensors({k: v.float() for k, v in layer.tensors().items()}) for layer in layers]
    assert {tensor.dtype for tensor in found.tensors().values()} == {torch.float32}
    assert same_weights(found, repaired_layer(wide, shares, [repair], known))
