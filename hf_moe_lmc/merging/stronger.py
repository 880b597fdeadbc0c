"""Repair `stronger`: of matched units that disagree the stronger one, instead of their mean; needs no data.

Two units of equal size at a cosine c have a mean of sqrt((1 + c) / 2) of it: below a cosine of 1/2 more is lost by
averaging than is shared, and one of them computes what it computed. It is a rule for one merge, no point of the
straight line between models: where the shares of models cross, units change at once.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from hf_moe_lmc.moe import ExpertBank

from .statistics import ExpertStatistics

AGREEMENT = 0.5  # cosine


def keep_stronger(
    merged: ExpertBank,
    endpoints: Sequence[ExpertBank],
    shares: Sequence[float],
    scale_degree: int,
    statistics: ExpertStatistics | None = None,
) -> ExpertBank:
    """`merged`, the mean of `endpoints`, but units of which any two disagree are those of one endpoint.

    Units are compared with all their weights, once `|up| = |down|` where they have a free scale; see `strongest_units`.

    Args:
        merged: in float32 or better.
        endpoints, shares: of the mean, aligned.
        scale_degree: of the units' free scale; 0 if there is none.
        statistics: not needed.
    """
    units = [_units(bank, scale_degree) for bank in endpoints]
    disagree = torch.zeros(units[0].shape[:2], dtype=torch.bool, device=units[0].device)
    for i, unit in enumerate(units):
        for other in units[:i]:
            disagree |= torch.cosine_similarity(unit, other, dim=2) < AGREEMENT
    return take_units(merged, endpoints, strongest_units(endpoints, shares, scale_degree), disagree)


def strongest_units(
    endpoints: Sequence[ExpertBank], shares: Sequence[float], scale_degree: int
) -> Int64[Tensor, "E F"]:
    """Number of the endpoint whose unit is largest: its share times the norm of all its weights."""
    norms = [share * _units(bank, scale_degree).norm(dim=2) for bank, share in zip(endpoints, shares, strict=True)]
    return torch.stack(norms).argmax(dim=0)


def take_units(
    merged: ExpertBank,
    endpoints: Sequence[ExpertBank],
    source: Int64[Tensor, "E F"],
    where: Bool[Tensor, "E F"] | None = None,
) -> ExpertBank:
    """`merged` with the units of endpoint `source`, all of them or those of `where`; down_bias stays."""
    where = torch.ones_like(source, dtype=torch.bool) if where is None else where
    taken = {}
    for field, tensor in merged.tensors().items():
        if field != "down_bias":
            shape = (len(source), 1, -1) if field == "down_proj" else (*source.shape, *[1] * (tensor.ndim - 2))
            both = torch.stack([bank.tensors()[field] for bank in endpoints])
            own = both.take_along_dim(source.reshape(shape)[None], dim=0)[0]
            taken[field] = torch.where(where.reshape(shape), own, tensor)
    return replace(merged, **taken)


def _units(bank: ExpertBank, scale_degree: int) -> Float[Tensor, "E F d"]:
    bank = bank.balance_units(scale_degree)
    return torch.cat([*bank.signed_unit_terms(), *bank.unsigned_unit_terms()], dim=2)
