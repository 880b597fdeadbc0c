from dataclasses import replace

import pytest
import torch

from hf_moe_lmc.merging import repaired_layer
from tests.layers import LAYER_KINDS, same_weights
from tests.merging.endpoints import SHARES, endpoints, statistics


def rows(layer):
    bias = layer.router.bias
    return layer.router.weight if bias is None else torch.cat([layer.router.weight, bias[:, None]], dim=1)


@pytest.mark.parametrize("shares", SHARES, ids=str)
@pytest.mark.parametrize("kind", LAYER_KINDS)
def test_it_equals_the_dense_solution(kind, shares):
    """Against the normal equations, written out with Kronecker products token by token."""
    layers = endpoints(kind, shares)
    mean = repaired_layer(layers, shares)
    known = statistics(mean)
    repaired = repaired_layer(layers, shares, ["router"], known)
    tokens, softmax = known.experts.tokens, mean.group.router_translation
    if mean.router.bias is not None:
        tokens = torch.cat([tokens, torch.ones(len(tokens), 1)], dim=1)
    matrix, right = 0, 0
    for share, layer in zip(shares, layers, strict=True):
        one = 0
        for x in tokens:
            r = (rows(layer) @ x).softmax(0) if softmax else (rows(layer) @ x).sigmoid()
            fisher = torch.diag(r) - torch.outer(r, r) if softmax else torch.diag(r * (1 - r))
            one = one + share * torch.kron(fisher, torch.outer(x, x)) / len(tokens)
        matrix, right = matrix + one, right + one @ (rows(layer) - rows(mean)).flatten()
    matrix = matrix + 0.1 * matrix.diagonal().mean() * torch.eye(len(matrix))
    expected = rows(mean) + torch.linalg.solve(matrix, right).reshape(rows(mean).shape)
    torch.testing.assert_close(rows(repaired), expected, rtol=1e-3, atol=1e-3)
    assert (rows(repaired) - rows(mean)).norm() > 0.1 * rows(mean).norm()
    blind = replace(known, router_sees_tokens=False)
    assert same_weights(repaired_layer(layers, shares, ["router"], blind), mean)
