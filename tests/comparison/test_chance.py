"""z of unrelated weights is that of a standard normal; of related ones it is far above; no symmetry changes it."""

import math
from dataclasses import replace

import pytest
import torch

from hf_moe_lmc.comparison.chance import RELATED, Rows, pooled, relation, strongest_units, trace_test
from hf_moe_lmc.comparison.kinds import one_expert
from hf_moe_lmc.moe import ExpertBank
from tests.layers import LAYER_KINDS, bank, derangement, scaled_units


def experts(seed: int, gated: bool = True, E: int = 1) -> ExpertBank:
    generator = torch.Generator().manual_seed(seed)
    return bank(E, 24, 32, gated=gated, bias=False, generator=generator, dtype=torch.float32)


def score(a: ExpertBank, b: ExpertBank, signs: bool = True) -> float:
    return relation(Rows.of(a, strongest_units(a)), Rows.of(b), signs).z


def test_variance_is_that_of_permuted_axes():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(5, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    x, y = (rows - rows.mean(dim=1, keepdim=True) for rows in (x, y))
    draws = torch.stack([(x * y[:, torch.randperm(8, generator=generator)]).sum() for _ in range(20_000)])
    total, variance = trace_test(x, y)
    assert total == pytest.approx((x * y).sum().item())
    assert abs(draws.mean().item()) < 4 * math.sqrt(variance / len(draws))
    assert draws.var().item() == pytest.approx(variance, rel=0.05)


@pytest.mark.parametrize("gated", [True, False])
def test_unrelated_experts_are_standard_normal(gated):
    scores = torch.tensor([score(experts(2 * n, gated), experts(2 * n + 1, gated), gated) for n in range(300)])
    assert abs(scores.mean()) < 4 / math.sqrt(300)
    # A little wider than 1: of so few units, some are chosen by both halves of the weights, which ties the two tests.
    assert 0.85 < scores.std() < 1.25
    assert scores.abs().max() < RELATED


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("noise", [0.0, 1.0, 2.0])
def test_related_experts_are_far_above(gated, noise):
    generator = torch.Generator().manual_seed(1)
    for n in range(20):
        a = experts(n, gated)
        b = a.map(lambda tensor: tensor + noise * torch.randn(tensor.shape, generator=generator))
        assert score(a, b, gated) > RELATED


@pytest.mark.parametrize("kind", ["mlp", "swiglu", "swiglu with biases", "grouped sigmoid"])
def test_no_symmetry_changes_it(kind):
    layer, other = LAYER_KINDS[kind](F_=20, H=24, seed=1), LAYER_KINDS[kind](F_=20, H=24, seed=2)
    signs = layer.group.unit_signs
    near = replace(other, experts=other.experts.map(lambda tensor: tensor))
    near = replace(
        near, experts=ExpertBank(**{n: t + layer.experts.tensors()[n] for n, t in near.experts.tensors().items()})
    )
    symmetry = derangement(layer)
    units = symmetry.units.reorder(symmetry.experts.inverse())
    moved = near.experts.permute_units(units)
    scaled = scaled_units(moved, 1)
    for e in range(layer.experts.num_experts):
        a = one_expert(layer.experts, e)
        plain = score(a, one_expert(near.experts, e), signs)
        assert score(a, one_expert(moved, e), signs) == pytest.approx(plain, rel=1e-6)
        assert score(a, one_expert(scaled, e), signs) == pytest.approx(plain, rel=1e-6)


def test_pooled():
    assert pooled([2.0, 2.0, 2.0, 2.0]) == 4.0
    assert pooled([]) == 0.0
