"""Repairs with calibration data, on layers of every kind."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from hf_moe_lmc.merging import (
    ExpertCalibration,
    LayerCalibration,
    interpolate_layers,
    rescale_outputs,
    restore_moments,
    solve_router,
    token_weights,
)
from hf_moe_lmc.merging.second_moments import restoring_map, second_moment
from hf_moe_lmc.moe import act
from tests.layers import LAYER_KINDS, derangement, naive_expert, naive_routing, same_weights

REPAIRS = [rescale_outputs, restore_moments, solve_router]
T = 0.4


def activation(gate, up):
    return F.relu(up) if gate is None else F.silu(gate) * up


def calibration(layer, number: int = 200) -> LayerCalibration:
    tokens = torch.randn(number, layer.router.weight.shape[1], generator=torch.Generator().manual_seed(9)).double()
    routed = torch.zeros(number, layer.experts.num_experts, dtype=torch.bool)
    for row, token in zip(routed, tokens, strict=True):
        row[naive_routing(layer, token)[1]] = True
    shared = ExpertCalibration(tokens, torch.full((number, 1), 1 / number), activation)
    return LayerCalibration(
        ExpertCalibration(tokens, token_weights(routed), activation), shared if layer.shared_experts else None, True
    )


def three(kind: str):
    """Both ends, the point 0.4 between them, and what reaches it."""
    a, b = (LAYER_KINDS[kind](seed=seed) for seed in (0, 1))
    merged = interpolate_layers(a, b, T)
    return merged, a, b, calibration(merged)


def with_calibration(repaired, a, b, calibrated):
    yield repaired.experts, a.experts, b.experts, calibrated.experts
    if repaired.shared_experts:
        yield repaired.shared_experts, a.shared_experts, b.shared_experts, calibrated.shared_experts


def test_weights_of_tokens():
    routed = torch.tensor([[1, 0], [1, 0], [1, 0], [0, 0]]).bool()
    found = token_weights(routed)
    assert found.sum(dim=0).tolist() == pytest.approx([1, 1])
    assert found[:, 1].tolist() == pytest.approx([0.25] * 4)  # a dead expert sees the layer's tokens
    assert found[:, 0].tolist() == pytest.approx([17 / 67] * 3 + [16 / 67])


@pytest.mark.parametrize("kind", LAYER_KINDS)
def test_answers_equal_the_loop(kind):
    layer = LAYER_KINDS[kind]()
    found = calibration(layer, 7).experts
    expected = torch.stack([naive_expert(layer.experts, 3, token) for token in found.tokens])
    torch.testing.assert_close(found.answers(layer.experts, 3), expected)


@pytest.mark.parametrize("kind", LAYER_KINDS)
def test_rescaled_answers_have_the_size_between_the_ends(kind):
    merged, a, b, calibrated = three(kind)
    repaired = rescale_outputs(merged, a, b, T, calibrated)
    for bank, start, end, known in with_calibration(repaired, a, b, calibrated):
        for e in range(bank.num_experts):
            sizes = [
                (known.weights[:, e, None] * known.answers(end_bank, e).square()).sum().sqrt()
                for end_bank in (bank, start, end)
            ]
            torch.testing.assert_close(sizes[0], (1 - T) * sizes[1] + T * sizes[2])


@pytest.mark.parametrize("kind", LAYER_KINDS)
def test_answers_are_moved_to_the_line_of_moments(kind):
    """Token by token, biases included."""
    merged, a, b, calibrated = three(kind)
    repaired = restore_moments(merged, a, b, T, calibrated)
    pairs = zip(*(with_calibration(layer, a, b, calibrated) for layer in (repaired, merged)), strict=True)
    for (bank, start, end, known), (before, *_) in pairs:
        for e in range(bank.num_experts):
            found, first, last = (
                second_moment(known.answers(end_bank, e), known.weights[:, e, None])
                for end_bank in (before, start, end)
            )
            expected = known.answers(before, e) @ restoring_map(found, (1 - T) * first + T * last)
            torch.testing.assert_close(known.answers(bank, e), expected)


def test_what_one_size_leaves_of_the_difference():
    """With many tokens, moments are nearly those of the line; of rescaled answers only the trace is."""
    a, b = (LAYER_KINDS["swiglu"](F_=40, H=5, seed=seed) for seed in (0, 1))
    merged = interpolate_layers(a, b, T)
    calibrated, errors = calibration(merged, 2000), []
    known = calibrated.experts
    for repair in (restore_moments, rescale_outputs):
        bank = repair(merged, a, b, T, calibrated).experts
        found, start, end = (
            [known.answers(x, e).T @ (known.weights[:, e, None] * known.answers(x, e)) for e in range(x.num_experts)]
            for x in (bank, a.experts, b.experts)
        )
        wanted = [(1 - T) * x + T * y for x, y in zip(start, end, strict=True)]
        errors.append(sum(float((x - y).norm() / y.norm()) for x, y in zip(found, wanted, strict=True)))
    assert errors[0] < 0.1 * errors[1]


@pytest.mark.parametrize("kind", LAYER_KINDS)
def test_the_router_equals_the_dense_solution(kind):
    """Against the normal equations, written out with Kronecker products token by token."""
    merged, a, b, calibrated = three(kind)
    repaired = solve_router(merged, a, b, T, calibrated)
    tokens, softmax = calibrated.experts.tokens, merged.group.router_translation

    def rows(layer):
        bias = layer.router.bias
        return layer.router.weight if bias is None else torch.cat([layer.router.weight, bias[:, None]], dim=1)

    if merged.router.bias is not None:
        tokens = torch.cat([tokens, torch.ones(len(tokens), 1)], dim=1)
    matrix, right = 0, 0
    for share, end in ((1 - T, a), (T, b)):
        one = 0
        for x in tokens:
            r = (rows(end) @ x).softmax(0) if softmax else (rows(end) @ x).sigmoid()
            fisher = torch.diag(r) - torch.outer(r, r) if softmax else torch.diag(r * (1 - r))
            one = one + share * torch.kron(fisher, torch.outer(x, x)) / len(tokens)
        matrix, right = matrix + one, right + one @ (rows(end) - rows(merged)).flatten()
    matrix = matrix + 0.1 * matrix.diagonal().mean() * torch.eye(len(matrix))
    expected = rows(merged) + torch.linalg.solve(matrix, right).reshape(rows(merged).shape)
    torch.testing.assert_close(rows(repaired), expected, rtol=1e-3, atol=1e-3)
    assert (rows(repaired) - rows(merged)).norm() > 0.1 * rows(merged).norm()
    blind = replace(calibrated, router_sees_tokens=False)
    assert same_weights(solve_router(merged, a, b, T, blind), merged)


@pytest.mark.parametrize("kind", LAYER_KINDS)
@pytest.mark.parametrize("repair", REPAIRS, ids=lambda repair: repair.__name__)
def test_repairs_commute_with_symmetries(repair, kind):
    merged, a, b, calibrated = three(kind)
    symmetry = derangement(merged)
    moved = [act(symmetry, layer) for layer in (merged, a, b)]
    order = symmetry.experts.index
    experts = replace(calibrated.experts, weights=calibrated.experts.weights[:, order])
    found = repair(*moved, T, replace(calibrated, experts=experts)).tensors()
    for name, tensor in act(symmetry, repair(merged, a, b, T, calibrated)).tensors().items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("repair", REPAIRS, ids=lambda repair: repair.__name__)
def test_two_equal_ends_need_no_repair(repair):
    layer = LAYER_KINDS["mlp, shared experts"]()
    repaired = repair(layer, layer, layer, T, calibration(layer)).tensors()
    for name, tensor in layer.tensors().items():
        torch.testing.assert_close(repaired[name], tensor)


def test_an_expert_that_answers_nothing_stays_as_it_is():
    merged, a, b, _ = three("swiglu")
    merged, a, b = (
        replace(layer, experts=layer.experts.map(lambda tensor: tensor.index_fill(0, torch.tensor([1]), 0)))
        for layer in (merged, a, b)
    )
    for repair in REPAIRS:
        repaired = repair(merged, a, b, T, calibration(merged))
        assert all(torch.isfinite(tensor).all() for tensor in repaired.tensors().values())
