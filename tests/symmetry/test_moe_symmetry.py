import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_moe_lmc.symmetry import MoeSymmetry, Permutation, SignedPermutation

SHAPES = st.tuples(
    st.integers(2, 5),
    st.integers(2, 6),
    st.none() | st.tuples(st.integers(1, 3), st.integers(2, 4)),
    st.sampled_from([0, 2, 4]),
)


def draw(shape, seed: int) -> MoeSymmetry:
    experts, units, shared, zero = shape
    generator = torch.Generator().manual_seed(seed)
    return MoeSymmetry(
        Permutation.random_derangement(experts, generator=generator),
        SignedPermutation.random_derangement(experts, units, generator=generator),
        SignedPermutation.random_derangement(*shared, generator=generator) if shared else None,
        Permutation.random(shared[0], generator=generator) if shared else None,
        Permutation.random_derangement(zero, generator=generator) if zero else None,
    )


@settings(deadline=None)
@given(SHAPES, st.integers(0, 1000))
def test_group_axioms(shape, seed):
    g, h, k = (draw(shape, seed + i) for i in range(3))
    identity = MoeSymmetry.identity(*shape)
    assert (g @ h) @ k == g @ (h @ k)
    assert g @ identity == g == identity @ g
    assert g @ g.inverse() == identity == g.inverse() @ g
    assert identity.is_identity
    assert not g.is_identity
    assert g.shape == shape


def test_units_travel_with_their_experts():
    """The direct product's law, units composed slot by slot, is not this group's."""
    g, h = draw((3, 4, None, 0), 0), draw((3, 4, None, 0), 1)
    assert (g @ h).units != g.units @ h.units


def test_other_sizes():
    with pytest.raises(ValueError, match="cannot compose"):
        draw((3, 4, None, 0), 0) @ draw((3, 4, (1, 2), 0), 0)
