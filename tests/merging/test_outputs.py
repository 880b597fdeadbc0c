import pytest
import torch

from hf_moe_lmc.merging import repaired_layer
from hf_moe_lmc.merging.second_moments import restoring_map, second_moment
from tests.layers import LAYER_KINDS
from tests.merging.endpoints import SHARES, endpoints, on_the_line, statistics

CASES = [(kind, shares) for kind in LAYER_KINDS for shares in SHARES]


def case(kind: str, shares: tuple[float, ...]):
    """The endpoints, their mean, and statistics of it."""
    layers = endpoints(kind, shares)
    mean = repaired_layer(layers, shares)
    return layers, mean, statistics(mean)


def banks(repaired, layers, known):
    """The bank, those of the endpoints and the statistics, of routed and of shared experts."""
    yield repaired.experts, [layer.experts for layer in layers], known.experts
    if repaired.shared_experts:
        yield repaired.shared_experts, [layer.shared_experts for layer in layers], known.shared_experts


@pytest.mark.parametrize(("kind", "shares"), CASES)
def test_rescaled_outputs_have_the_averaged_size(kind, shares):
    layers, _, known = case(kind, shares)
    for bank, own, part in banks(repaired_layer(layers, shares, ["rescale"], known), layers, known):
        for e in range(bank.num_experts):
            size, *sizes = (
                (part.weights[:, e, None] * part.outputs(one, e).square()).sum().sqrt() for one in (bank, *own)
            )
            torch.testing.assert_close(size, on_the_line(sizes, shares))


@pytest.mark.parametrize(("kind", "shares"), CASES)
def test_moments_of_outputs_are_averaged(kind, shares):
    """Token by token, biases included."""
    layers, mean, known = case(kind, shares)
    repaired = repaired_layer(layers, shares, ["moments"], known)
    for (bank, own, part), (before, *_) in zip(banks(repaired, layers, known), banks(mean, layers, known), strict=True):
        for e in range(bank.num_experts):
            found, *moments = (second_moment(part.outputs(one, e), part.weights[:, e, None]) for one in (before, *own))
            expected = part.outputs(before, e) @ restoring_map(found, on_the_line(moments, shares))
            torch.testing.assert_close(part.outputs(bank, e), expected)


@pytest.mark.parametrize("shares", SHARES, ids=str)
def test_one_size_leaves_more_of_the_difference(shares):
    """With many tokens, moments are nearly the averaged ones; of rescaled outputs only the trace is."""
    layers = endpoints("swiglu", shares, F_=40, H=5)
    known, errors = statistics(repaired_layer(layers, shares), 2000), []
    part = known.experts
    for repair in ("moments", "rescale"):
        bank = repaired_layer(layers, shares, [repair], known).experts
        found, *own = (
            [part.outputs(x, e).T @ (part.weights[:, e, None] * part.outputs(x, e)) for e in range(x.num_experts)]
            for x in (bank, *(layer.experts for layer in layers))
        )
        wanted = [on_the_line(moments, shares) for moments in zip(*own, strict=True)]
        errors.append(sum(float((x - y).norm() / y.norm()) for x, y in zip(found, wanted, strict=True)))
    assert errors[0] < 0.1 * errors[1]
