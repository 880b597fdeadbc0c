import pytest
import torch

from hf_moe_lmc.symmetry import Permutation, SignedPermutation
from tests.layers import LAYER_KINDS
from tests.matching.matched import match_banks, units_of


@pytest.fixture(params=LAYER_KINDS)
def banks(request):
    build = LAYER_KINDS[request.param]
    return build(seed=0).experts, build(seed=1).experts


def unit(experts, e: int, f: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What a unit keeps whatever its sign, and what changes with it."""
    kept, changing = [torch.zeros(0, dtype=torch.float64)], [experts.up_proj[e, f], experts.down_proj[e, :, f]]
    if experts.gate_proj is not None:
        kept.append(experts.gate_proj[e, f])
    if experts.gate_bias is not None:
        kept.append(experts.gate_bias[e, f].reshape(1))
    if experts.up_bias is not None:
        changing.append(experts.up_bias[e, f].reshape(1))
    return torch.cat(kept), torch.cat(changing)


@pytest.mark.parametrize("signs", [False, True])
def test_similarity_equals_the_loop(banks, signs):
    a, b = banks

    def best(e: int, i: int, j: int) -> torch.Tensor:
        x, y = unit(a, e, i), unit(b, e, j)
        flipped = torch.cat([x[0], -x[1]]) @ torch.cat(y)
        return torch.maximum(torch.cat(x) @ torch.cat(y), flipped) if signs else torch.cat(x) @ torch.cat(y)

    expected = torch.stack([best(e, i, j) for e in range(a.num_experts) for i in range(7) for j in range(7)])
    units = [[units_of(bank, e, signs) for bank in banks] for e in range(a.num_experts)]
    found = torch.stack([own.similarity(other) for own, other in units])
    torch.testing.assert_close(found.flatten(), expected)


def test_matching_minimises_the_distance(banks):
    """No exchange of two units, and no change of one sign, brings an expert closer; and the start was farther away."""
    a, b = banks
    signs = a.gate_proj is not None
    matched = b.permute_units(match_banks(a, b, signs))

    def distance(other):
        return sum((x - other.tensors()[name]).square().sum().item() for name, x in a.tensors().items())

    best = distance(matched)
    assert best < 0.99 * distance(b)
    for i in range(a.num_units):
        for j in range(i):
            swap = torch.arange(a.num_units)
            swap[[i, j]] = swap[[j, i]]
            move = SignedPermutation.unsigned(Permutation(swap.repeat(a.num_experts, 1)))
            assert distance(matched.permute_units(move)) >= best - 1e-9
        if signs:
            flip = torch.ones(a.num_experts, a.num_units, dtype=torch.int8)
            flip[:, i] = -1
            move = SignedPermutation(Permutation.identity(a.num_experts, a.num_units), flip)
            assert distance(matched.permute_units(move)) >= best - 1e-9


def test_planted_units_are_found(banks):
    a = banks[0]
    signs = a.gate_proj is not None
    generator = torch.Generator().manual_seed(0)
    planted = SignedPermutation.random_derangement(a.num_experts, 7, signed=signs, generator=generator)
    assert match_banks(a, a.permute_units(planted), signs) == planted.inverse()
