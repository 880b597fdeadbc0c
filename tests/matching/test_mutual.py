"""Several layers brought close to one another."""

from dataclasses import replace
from itertools import combinations
from math import hypot

import pytest
import torch

from hf_moe_lmc.matching import align_layers, layer_distance, match_mutually
from hf_moe_lmc.moe import MoeLayer, act
from hf_moe_lmc.symmetry import MoeSymmetry
from tests.layers import LAYER_KINDS, derangement, same_weights


@pytest.fixture(params=LAYER_KINDS)
def layer(request) -> MoeLayer:
    return LAYER_KINDS[request.param]()


def noisy(layer: MoeLayer, noise: float, seed: int) -> MoeLayer:
    generator = torch.Generator().manual_seed(100 + seed)  # not those that drew the layer
    return layer.with_tensors(
        {
            name: tensor + noise * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
            for name, tensor in layer.tensors().items()
        }
    )


def starts(layers: list[MoeLayer], method: str) -> list[MoeSymmetry]:
    """Every layer aligned to the first."""
    first, *others = layers
    return [
        MoeSymmetry.identity(*first.symmetry_shape),
        *(align_layers(first, other, method).symmetry for other in others),
    ]


def total(layers: list[MoeLayer], symmetries: list[MoeSymmetry]) -> float:
    moved = [act(symmetry, layer) for symmetry, layer in zip(symmetries, layers, strict=True)]
    return hypot(*(layer_distance(a, b) for a, b in combinations(moved, 2)))


@pytest.mark.parametrize("method", ["gate", "joint"])
def test_planted_symmetries_are_found_bit_for_bit(layer, method):
    planted = [derangement(layer, seed) for seed in (1, 2, 3)]
    layers = [layer, *(act(symmetry, layer) for symmetry in planted)]
    found = match_mutually(layers, starts(layers, method), method)
    assert found.symmetries[0].is_identity
    assert found.symmetries[1:] == [symmetry.inverse() for symmetry in planted]
    assert all(same_weights(act(g, x), layer) for g, x in zip(found.symmetries, layers, strict=True))
    assert found.distance <= found.start_distance < 1e-12


def test_a_bad_start_is_repaired(layer):
    """From no alignment at all to the planted one, which each layer alone finds in the mean of the others."""
    layers = [noisy(layer, 0.05, seed) for seed in range(4)]
    planted = derangement(layer)
    layers[2] = act(planted, layers[2])
    nothing = [MoeSymmetry.identity(*layer.symmetry_shape)] * 4
    found = match_mutually(layers, nothing, "joint")
    assert found.symmetries == [*nothing[:2], planted.inverse(), nothing[3]]
    assert found.start_distance == pytest.approx(total(layers, nothing))
    assert found.distance == pytest.approx(total(layers, found.symmetries))
    assert found.distance < 0.2 * found.start_distance


@pytest.mark.parametrize("method", ["units", "gate", "gram", "joint", "auto"])
def test_never_farther_than_all_aligned_to_the_first(method):
    """Also where the routes are not exact, and where there is nothing to find."""
    for seed in range(3):
        kind = LAYER_KINDS["swiglu, shared experts"]
        layers = [kind(seed=10 * seed + k) for k in range(3)]
        start = starts(layers, method)
        found = match_mutually(layers, start, method)
        assert found.start_distance == pytest.approx(total(layers, start))
        assert found.distance == pytest.approx(total(layers, found.symmetries))
        assert found.distance <= found.start_distance * (1 + 1e-12)


def test_a_bad_reference_is_made_up_for():
    """The first is far from all others: units that it misplaces are found among the others."""
    base = LAYER_KINDS["swiglu"](3, 40, 32)
    layers = [noisy(base, noise, seed) for seed, noise in enumerate((3.0, 1.0, 1.0, 1.0))]
    planted = [derangement(base, seed) for seed in range(3)]
    layers = [layers[0], *(act(symmetry, layer) for symmetry, layer in zip(planted, layers[1:], strict=True))]
    start = starts(layers, "joint")
    found = match_mutually(layers, start, "joint")
    assert found.distance < 0.97 * found.start_distance

    def alike(symmetries: list[MoeSymmetry]) -> float:
        """Share of the units of the second and third that are brought to the same place."""
        a, b = (symmetry @ plant for symmetry, plant in zip(symmetries[1:3], planted[:2], strict=True))
        return (a.units.permutation.index == b.units.permutation.index).double().mean().item()

    assert alike(start) < 0.5
    assert alike(found.symmetries) == 1


def test_scales_that_are_free_do_not_count():
    layer = LAYER_KINDS["swiglu"]()
    layer = replace(layer, group=replace(layer.group, unit_scale_degree=1))
    factors = torch.linspace(-2, 2, 7, dtype=torch.float64).exp2()
    scaled = layer.with_tensors(
        {
            "experts.up_proj": layer.experts.up_proj * factors[:, None],
            "experts.down_proj": layer.experts.down_proj / factors,
        }
    )
    layers = [layer, act(derangement(layer), scaled), scaled]
    start = [MoeSymmetry.identity(*layer.symmetry_shape)] * 3
    assert match_mutually(layers, start, "joint").distance < 1e-12
    fixed = [replace(one, group=replace(one.group, unit_scale_degree=0)) for one in layers]
    assert match_mutually(fixed, start, "joint").distance > 0.1
