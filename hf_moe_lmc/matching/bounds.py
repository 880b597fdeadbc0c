"""Upper bounds on the similarity of units from a few of their coordinates."""

import torch
from jaxtyping import Float
from torch import Tensor

_ROWS = 64


def bounding_rows(part: Float[Tensor, "m k"], squares: Float[Tensor, " m"]) -> Float[Tensor, "m l"]:
    """Rows z_i whose products bound similarities: `S_ij <= <z_i, w_j>`, for either sign.

    The chosen coordinates and the norm of all that they leave out: of the rest, Cauchy-Schwarz.

    Args:
        part: some coordinates that no sign touches, the same for both experts.
        squares: `|x_i|^2` of the whole units.
    """
    rest = (squares - part.square().sum(dim=1)).clamp(min=0).sqrt()
    return torch.cat([part, rest[:, None]], dim=1)


def total_similarity_bound(left: Float[Tensor, "m l"], right: Float[Tensor, "n l"]) -> float:
    """No move of units reaches a greater `sum_i S_ip(i)`; `left` and `right` are bounding rows of two experts.

    `sum_j v_j + sum_i max_j (<z_i, w_j> - v_j)` at the prices `v_j = |w_j|^2 / 2`, where every unit takes the partner
    that is nearest in the chosen coordinates (weak duality, as in `certify`).
    """
    prices = right.square().sum(dim=1) / 2
    best = [torch.addmm(-prices, rows, right.T).amax(dim=1).sum(dtype=torch.float64) for rows in left.split(_ROWS)]
    return (prices.sum(dtype=torch.float64) + torch.stack(best).sum()).item()
