import torch
from scipy.linalg import sqrtm

from hf_moe_lmc.merging.second_moments import restoring_map, second_moment


def vectors(number: int, width: int, seed: int) -> torch.Tensor:
    """Of unequal spread in every direction, and correlated."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=generator, dtype=torch.float64)
    return torch.randn(number, width, generator=generator, dtype=torch.float64) @ mix


def test_the_moment_equals_the_loop():
    found, weights = vectors(123, 7, seed=0), torch.linspace(1, 2, 123).double()[:, None]
    weights = weights / weights.sum()
    plain = sum(weight * torch.outer(vector, vector) for weight, vector in zip(weights, found, strict=True))
    doubt = 7 / (7 + 1 / float((weights**2).sum()))
    expected = (1 - doubt) * plain + doubt * plain.diagonal().mean() * torch.eye(7)
    torch.testing.assert_close(second_moment(found, weights), expected)
    torch.testing.assert_close(second_moment(found).trace(), found.square().sum(dim=1).mean())


def test_few_vectors_are_hardly_believed():
    """A single one spreads nowhere else, and yet its moment has an inverse."""
    values = torch.linalg.eigvalsh(second_moment(vectors(1, 13, seed=0)))
    assert values.min() > 0.05 * values.max()
    assert torch.linalg.eigvalsh(second_moment(vectors(1300, 13, seed=0))).min() < 0.02 * values.max()


def test_the_map_restores_and_moves_least():
    start, end = vectors(200, 7, seed=0), vectors(200, 7, seed=1)
    found, wanted = second_moment(start), second_moment(end)
    move = restoring_map(found, wanted)
    torch.testing.assert_close(move @ found @ move, wanted)
    expected = torch.linalg.inv(found) @ torch.from_numpy(sqrtm((found @ wanted).numpy()).real)
    torch.testing.assert_close(move, expected)

    def moved(change: torch.Tensor) -> float:
        change = change - torch.eye(7)
        return float((change @ found @ change.T).trace())

    root, inverse = torch.linalg.cholesky(wanted), torch.linalg.inv(torch.linalg.cholesky(found))
    for seed in range(5):  # any other map to the same moment
        turn = torch.linalg.qr(vectors(7, 7, seed))[0]
        other = root @ turn @ inverse
        torch.testing.assert_close(other @ found @ other.T, wanted)
        assert moved(other) > 1.1 * moved(move)


def test_nothing_stays_nothing():
    moment, zero = second_moment(vectors(50, 3, seed=0)), torch.zeros(3, 3, dtype=torch.float64)
    for pair in ((moment, zero), (zero, moment), (zero, zero)):
        assert torch.equal(restoring_map(*pair), torch.eye(3, dtype=torch.float64))
