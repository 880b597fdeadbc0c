import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_moe_lmc.symmetry import Permutation, SignedPermutation


def draw(n: int, seed: int, *batch: int) -> SignedPermutation:
    return SignedPermutation.random_derangement(*batch, n, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None)
@given(st.integers(2, 9), st.integers(0, 1000))
def test_group_axioms(n, seed):
    p, q, r = (draw(n, seed + i, 3) for i in range(3))
    identity = SignedPermutation.identity(3, n)
    assert (p @ q) @ r == p @ (q @ r)
    assert p @ identity == p == identity @ p
    assert p @ p.inverse() == identity == p.inverse() @ p
    assert identity.is_identity
    assert not p.is_identity


@settings(deadline=None)
@given(st.integers(2, 9), st.integers(0, 1000))
def test_left_action(n, seed):
    p, q = draw(n, seed, 2), draw(n, seed + 1, 2)
    w = torch.randn(2, 3, n)
    assert torch.equal((p @ q).apply(w, dim=2), p.apply(q.apply(w, dim=2), dim=2))
    assert torch.equal(p.inverse().apply(p.apply(w, dim=2), dim=2), w)


def test_convention():
    p = SignedPermutation(Permutation(torch.tensor([2, 0, 1])), torch.tensor([1, -1, 1], dtype=torch.int8))
    assert p.apply(torch.tensor([10.0, 20.0, 30.0]), dim=0).tolist() == [30.0, -10.0, 20.0]


def test_signs_alone_are_not_the_identity():
    flip = SignedPermutation(Permutation.identity(2), torch.tensor([1, -1], dtype=torch.int8))
    assert flip.is_signed
    assert not flip.is_identity
    assert SignedPermutation.random_derangement(5, signed=False).is_signed is False


@pytest.mark.parametrize("signs", [[1, 0], [2, 1], [1]])
def test_not_signs(signs):
    with pytest.raises(ValueError, match="signs must be 1 or -1"):
        SignedPermutation(Permutation.identity(2), torch.tensor(signs, dtype=torch.int8))
