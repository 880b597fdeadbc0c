"""Whether two layers hold the same experts, in whatever order: also those that no token chooses."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from hf_moe_lmc.matching import solve_assignment
from hf_moe_lmc.moe import ExpertBank, MoeLayer

PROBES = 4


def experts_difference(before: MoeLayer, after: MoeLayer) -> float:
    """How far the experts of `after`, each with its router row, are from those of `before`, best paired; relative.

    Every expert answers four random inputs as the generic network
    `y . (down (silu(gate x + b) * (up x + b)) + b)`, without `gate`: `silu(up x + b)`. That is not what the family
    computes, but no order and no sign of its units matters to it, and any other change of a weight does. Router rows
    are compared in the gauge of `MoeLayer.in_gauge`, by four random projections.
    """
    a, b = (_probe(layer) for layer in (before, after))
    scales = [part.abs().max().clamp_min(torch.finfo(part.dtype).tiny) for part in a]
    expected, found = (torch.cat([part / s for part, s in zip(x, scales, strict=True)], dim=1) for x in (a, b))
    if not (expected.isfinite().all() and found.isfinite().all()):
        return torch.inf
    sigma = solve_assignment(-torch.cdist(expected.double(), found.double())).permutation
    return float((sigma.apply(found, dim=0) - expected).abs().max())


def _probe(layer: MoeLayer) -> tuple[Float[Tensor, "E n"], Float[Tensor, "E n"]]:
    """The answers of the experts, and the projections of their router rows."""
    generator, router = torch.Generator().manual_seed(0), layer.in_gauge().router
    rows = router.rows() if router else layer.experts.up_proj.new_empty(layer.experts.num_experts, 0)
    weight = layer.experts.up_proj

    def random(size: int, like: Tensor) -> Tensor:
        return torch.randn(PROBES, size, generator=generator).to(like)

    x, y = random(weight.shape[2], weight), random(weight.shape[2], weight)
    return _answers(layer.experts, x, y), rows @ random(rows.shape[1], rows).mT


def _answers(experts: ExpertBank, x: Float[Tensor, "n H"], y: Float[Tensor, "n H"]) -> Float[Tensor, "E n"]:
    def inward(weight: Tensor, bias: Tensor | None) -> Tensor:
        units = x @ weight.mT  # [E, n, F]
        return units if bias is None else units + bias[:, None]

    up = inward(experts.up_proj, experts.up_bias)
    units = F.silu(up) if experts.gate_proj is None else F.silu(inward(experts.gate_proj, experts.gate_bias)) * up
    answers = (units * (y @ experts.down_proj)).sum(dim=-1)
    return answers if experts.down_bias is None else answers + experts.down_bias @ y.mT
