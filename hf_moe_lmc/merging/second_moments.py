"""Restoring second moments: the smallest linear map that gives vectors the wanted spread, direction by direction.

Averaging shrinks the directions that two layers do not share and keeps those that they do. Restore the sizes, one
number per vector (`norms`) or per expert (`rescale`), and the shared directions have grown at the cost of others. That
shows in the second moment of the vectors, be they rows or outputs: the matrix `C = E[v v^T]`, of which a size sees the
trace only.

For vectors of moment C, the linear map T with `T C T = W` that is symmetric and positive moves them least of all maps
that give them the moment W: `T = R^(-T) (R^T W R)^(1/2) R^(-1)` for any `R R^T = C`, the Monge map between Gaussians
(Knott and Smith, 1984). It pairs no vector with a wanted one, so no function is fitted: it restores statistics, as
REPAIR (arXiv:2211.08403) and CORAL (arXiv:1511.05547) do.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def second_moment(vectors: Float[Tensor, "N d"], weights: Float[Tensor, "N 1"] | None = None) -> Float[Tensor, "d d"]:
    """`sum_i w_i v_i v_i^T` in float64, shrunk towards a multiple of the identity; equal weights of sum 1 by default.

    The share of the identity, of the same trace, is `d / (d + n)` for n vectors (of unequal weights: `1 / sum w^2`):
    with as many directions as vectors, half of it is the identity.
    """
    vectors, (number, width) = vectors.double(), vectors.shape
    shares = vectors.new_full((number, 1), 1 / number) if weights is None else weights.double()
    moment = vectors.T @ (shares * vectors)
    doubt = width / (width + 1 / shares.square().sum())
    return (1 - doubt) * moment + doubt * moment.trace() / width * torch.eye(width).to(moment)


def restoring_map(moment: Float[Tensor, "d d"], wanted: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    """The symmetric positive T with `T moment T = wanted`; the identity where one of them is zero.

    Args:
        moment, wanted: second moments, positive definite or zero.
    """
    if not (moment.trace() > 0 and wanted.trace() > 0):
        return torch.eye(len(moment)).to(moment)
    root = torch.linalg.cholesky(moment)
    values, vectors = torch.linalg.eigh(root.T @ wanted @ root)
    half = torch.linalg.solve_triangular(root.T, vectors, upper=True)
    return (half * values.sqrt()) @ half.T
