import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_moe_lmc.matching import solve_assignment
from hf_moe_lmc.matching.unit_bounds import bounding_rows, least_squared_distances, match_sibling_units
from hf_moe_lmc.matching.unit_matching import match_units
from hf_moe_lmc.matching.units import Units

COUNT = 150


def siblings(noise: float, signs: bool, seed: int = 0, dtype=torch.float32) -> tuple[Units, Units, torch.Tensor]:
    """Units with norms spread as those of real models; the other's in another order, with signs if free, and noise."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    spread = (0.3 * draw(COUNT, 1)).exp()
    kept, signed = draw(COUNT, 60) * spread, draw(COUNT, 90) * spread
    order = torch.randperm(COUNT, generator=generator)
    flips = torch.randint(2, (COUNT, 1), generator=generator).double() * 2 - 1
    near = [(x + noise * spread * draw(*x.shape))[order] for x in (kept, signed)]
    if signs:
        a, b = (kept, signed), (near[0], near[1] * flips)
    else:
        a, b = (torch.cat([kept, signed], 1), None), (torch.cat(near, 1), None)
    make = [Units(x.to(dtype), None if y is None else y.to(dtype)) for x, y in (a, b)]
    return make[0], make[1], order.argsort()


@pytest.mark.parametrize("signs", [False, True])
@pytest.mark.parametrize("noise", [0.0, 0.01, 0.05, 0.1])
def test_siblings_are_proven_and_equal_the_full_product(signs, noise):
    a, b, planted = siblings(noise, signs)
    found = match_sibling_units(a, b)
    assert found is not None
    partners, margins = found
    assert torch.equal(partners.columns, planted)
    similarity = a.similarity(b)
    full = solve_assignment(similarity).permutation.index
    assert torch.equal(partners.columns, full)
    # The margins are true: nothing else comes as close.
    distances = a.squares[:, None] + b.squares - 2 * similarity
    own = distances.gather(1, full[:, None])[:, 0]
    second = distances.scatter(1, full[:, None], torch.inf).amin(dim=1)
    assert (margins > 0).all()
    assert (2 * margins <= second - own + 1e-3).all()


def test_a_false_bound_would_be_seen():
    """Control: without the norm of the rest, the rows no longer bound the similarity."""
    a, b, _ = siblings(0.1, True)
    kept = a.strongest(8)
    similarity = a.similarity(b)
    left, right = bounding_rows(a.kept[:, kept], a.squares), bounding_rows(b.kept[:, kept], b.squares)
    assert (similarity <= left @ right.T + 1e-3).all()
    assert (similarity > left[:, :-1] @ right[:, :-1].T + 1e-3).any()


@pytest.mark.parametrize("signs", [False, True])
def test_unrelated_units_and_twins_are_left_to_the_full_product(signs):
    a, _, _ = siblings(0.0, signs, seed=0)
    b, _, _ = siblings(0.0, signs, seed=1)
    assert match_sibling_units(a, b) is None
    twice = torch.arange(COUNT) // 2
    twins = Units(a.kept[twice], None if a.signed is None else a.signed[twice])
    assert match_sibling_units(twins, twins) is None
    assert match_units(twins, twins).gap <= 1e-3


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([0.0, 0.02, 0.1, 0.3, 1.0]), st.booleans())
def test_pairs_equal_the_full_product_whatever_the_route(seed, noise, signs):
    a, b, _ = siblings(noise, signs, seed, torch.float64)
    found = match_units(a, b)
    full = solve_assignment(a.similarity(b))
    assert found.similarity == pytest.approx(full.objective, rel=1e-12)
    assert torch.equal(found.units.permutation.index, full.permutation.index)
    assert found.gap <= 1e-9 * full.objective
    distance = (a.squares.sum() + b.squares.sum() - 2 * full.objective).item()
    assert found.squared_distance == pytest.approx(distance, abs=1e-9 * a.squares.sum().item())
    coordinates = a.strongest(16)
    rows = [bounding_rows(x.kept[:, coordinates], x.squares) for x in (a, b)]
    bound = least_squared_distances([rows[0], rows[0][:5]], rows[1]).tolist()
    assert 0 <= bound[1] <= bound[0] <= distance + 1e-9 * a.squares.sum().item()
