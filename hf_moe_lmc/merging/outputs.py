"""Repairs `moments` and `rescale`: experts whose outputs are as large as at the endpoints; need calibration data.

Where endpoints disagree, the mean of their outputs, sum_i s_i f_i, is shorter than the mean of their sizes. An expert
scaled to the latter outputs more than all endpoints together would; where they disagree much, as re-initialised experts
do, that can cost more than it gains.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from hf_moe_lmc.moe import ExpertBank

from .mean import weighted_sum
from .second_moments import restoring_map, second_moment
from .statistics import ExpertStatistics


def restore_moments(
    merged: ExpertBank,
    endpoints: Sequence[ExpertBank],
    shares: Sequence[float],
    scale_degree: int,
    statistics: ExpertStatistics,
) -> ExpertBank:
    """`merged` with the second moment of every expert's outputs at `sum_i s_i E[f_i f_i^T]`.

    f_i are the outputs of the endpoints. All moments are shrunk by `second_moment`, the less the more tokens there are.
    The `restoring_map` is folded into down_proj and down_bias. It sees how the outputs spread, not which token got
    which. Costs one eigendecomposition of size H for every expert.

    Args:
        merged: the mean of `endpoints`, in float32 or better.
        endpoints, shares: of the mean, aligned.
        scale_degree: not needed.
        statistics: of this bank.
    """
    maps = torch.stack([_map(merged, endpoints, shares, statistics, e) for e in range(merged.num_experts)])
    bias = merged.down_bias
    return replace(
        merged,
        down_proj=(maps @ merged.down_proj.double()).to(merged.down_proj),
        down_bias=None if bias is None else (maps @ bias.double()[..., None])[..., 0].to(bias),
    )


def rescale_outputs(
    merged: ExpertBank,
    endpoints: Sequence[ExpertBank],
    shares: Sequence[float],
    scale_degree: int,
    statistics: ExpertStatistics,
) -> ExpertBank:
    """`merged` with the output of every expert times `sum_i s_i n_i / n`, n the root mean square of its outputs.

    It restores the trace of what `restore_moments` restores. Scaling needs no alignment, and is therefore the control
    for any alignment (REPAIR, arXiv:2211.08403). Arguments as of `restore_moments`.
    """
    sizes = [_sizes(bank, statistics) for bank in endpoints]
    size, wanted = _sizes(merged, statistics), weighted_sum(sizes, shares)
    return merged.scale_outputs(torch.where(size > 0, wanted / size, torch.ones_like(size)))


def _map(
    merged: ExpertBank,
    endpoints: Sequence[ExpertBank],
    shares: Sequence[float],
    statistics: ExpertStatistics,
    e: int,
) -> Float[Tensor, "D D"]:
    weights = statistics.weights_of(merged, e)
    moment, *others = (second_moment(statistics.outputs(bank, e), weights) for bank in (merged, *endpoints))
    return restoring_map(moment, weighted_sum(others, shares))


def _sizes(bank: ExpertBank, statistics: ExpertStatistics) -> Float[Tensor, " E"]:
    return torch.stack(
        [
            (statistics.weights_of(bank, e) * statistics.outputs(bank, e).square()).sum().sqrt()
            for e in range(bank.num_experts)
        ]
    )
