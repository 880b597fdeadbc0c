import pytest
import torch

from hf_moe_lmc.matching import match_units, unit_similarity
from hf_moe_lmc.symmetry import Permutation
from tests.layers import LAYER_KINDS


@pytest.fixture(params=LAYER_KINDS)
def banks(request):
    build = LAYER_KINDS[request.param]
    return build(seed=0).experts, build(seed=1).experts


def unit(experts, e: int, f: int) -> torch.Tensor:
    parts = [experts.up_proj[e, f], experts.down_proj[e, :, f]]
    if experts.gate_proj is not None:
        parts.append(experts.gate_proj[e, f])
    if experts.up_bias is not None:
        parts.append(experts.up_bias[e, f].reshape(1))
    return torch.cat(parts)


def test_similarity_equals_the_loop(banks):
    a, b = banks
    expected = torch.tensor(
        [
            [[unit(a, e, i) @ unit(b, e, j) for j in range(b.num_units)] for i in range(a.num_units)]
            for e in range(a.num_experts)
        ],
        dtype=torch.float64,
    )
    torch.testing.assert_close(unit_similarity(a, b), expected)


def test_matching_minimises_the_distance(banks):
    """No single exchange of two units brings an expert closer, and the start was farther away."""
    a, b = banks
    matched = b.permute_units(match_units(a, b))

    def distance(other):
        return sum((x - y).square().sum().item() for x, y in zip(a.unit_terms(), other.unit_terms(), strict=True))

    best = distance(matched)
    assert best < 0.99 * distance(b)
    for i in range(a.num_units):
        for j in range(i):
            swap = torch.arange(a.num_units)
            swap[[i, j]] = swap[[j, i]]
            assert distance(matched.permute_units(Permutation(swap.repeat(a.num_experts, 1)))) >= best - 1e-9


def test_planted_units_are_found(banks):
    planted = Permutation.random_derangement(5, 7, generator=torch.Generator().manual_seed(0))
    assert match_units(banks[0], banks[0].permute_units(planted)) == planted.inverse()
