import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_moe_lmc.symmetry import Permutation

SIZES = st.integers(min_value=1, max_value=13)


def draw(n: int, seed: int, *batch: int) -> Permutation:
    return Permutation.random(*batch, n, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None)
@given(SIZES, st.integers(0, 1000))
def test_group_axioms(n, seed):
    p, q, r = draw(n, seed, 3), draw(n, seed + 1, 3), draw(n, seed + 2, 3)
    identity = Permutation.identity(3, n)
    assert (p @ q) @ r == p @ (q @ r)
    assert p @ identity == p == identity @ p
    assert p @ p.inverse() == identity == p.inverse() @ p


@settings(deadline=None)
@given(SIZES, st.integers(0, 1000))
def test_left_action(n, seed):
    p, q = draw(n, seed), draw(n, seed + 1)
    w = torch.randn(2, n, 3)
    assert torch.equal((p @ q).apply(w, dim=1), p.apply(q.apply(w, dim=1), dim=1))
    assert torch.equal(Permutation.identity(n).apply(w, dim=1), w)


def test_the_product_does_not_commute():
    p, q = Permutation(torch.tensor([1, 0, 2])), Permutation(torch.tensor([0, 2, 1]))
    assert p @ q != q @ p


@pytest.mark.parametrize("dim", [1, 2])
def test_batched_apply_equals_the_loop(dim):
    p = draw(7, 0, 4)
    w = torch.randn((4, 7, 5) if dim == 1 else (4, 5, 7))
    expected = torch.stack([row.index_select(dim - 1, index) for row, index in zip(w, p.index, strict=True)])
    assert torch.equal(p.apply(w, dim), expected)


def test_gather_convention():
    p, w = Permutation(torch.tensor([2, 0, 1])), torch.tensor([10.0, 20.0, 30.0])
    assert p.apply(w, dim=0).tolist() == [30.0, 10.0, 20.0]


@settings(deadline=None)
@given(st.integers(2, 6), st.integers(0, 1000))
def test_derangements_move_everything(n, seed):
    p = Permutation.random_derangement(20, n, generator=torch.Generator().manual_seed(seed))
    assert not (p.index == torch.arange(n)).any()
    assert not p.is_identity


def test_derangements_are_uniform():
    p = Permutation.random_derangement(9000, 4, generator=torch.Generator().manual_seed(0))
    _, counts = p.index.unique(dim=0, return_counts=True)
    assert len(counts) == 9
    assert counts.min() > 850


def test_no_derangement_of_one():
    with pytest.raises(ValueError, match="no derangement of 1"):
        Permutation.random_derangement(1)


@pytest.mark.parametrize("index", [[0, 0, 1], [1, 2, 3], [-1, 0, 1]])
def test_not_a_permutation(index):
    with pytest.raises(ValueError, match="once per row"):
        Permutation(torch.tensor(index))
