"""The difference of two layers' experts, in whatever order, by weight: also of those that no token chooses."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from hf_moe_lmc.matching import solve_assignment
from hf_moe_lmc.moe import ExpertBank, MoeLayer, Router
from hf_moe_lmc.symmetry import Permutation

PROBES = 4


def experts_difference(before: MoeLayer, after: MoeLayer) -> float:
    """Relative difference of the experts of `after` and `before`, each with its router row, best paired.

    Experts whose order is fixed are paired as they stand. Every expert is given four random inputs
    as the generic network `y . (down (silu(gate x + b) * (up x + b)) + b)`, without `gate`: `silu(up x + b)`. The
    family computes something else, but no order and no sign of units matters to it, and any other change of a weight
    does. Router rows are compared in the gauge of `MoeLayer.in_gauge`, by four random projections.
    """
    a, b = before.in_gauge(), after.in_gauge()
    differences = [_difference(_probe(a.experts, a.router), _probe(b.experts, b.router), before.group.fixed_experts)]
    of_shared = before.group.further_rows == "shared experts"
    if a.shared_experts and b.shared_experts:
        rows, rows_after = (layer.further_rows if of_shared else None for layer in (a, b))
        differences.append(_difference(_probe(a.shared_experts, rows), _probe(b.shared_experts, rows_after)))
    if a.further_rows and b.further_rows and not of_shared:
        differences.append(_difference([_projected(a.further_rows)], [_projected(b.further_rows)]))
    return max(differences)


def _difference(before: list[Float[Tensor, "E n"]], after: list[Float[Tensor, "E n"]], fixed: bool = False) -> float:
    """The largest difference of the paired rows, each block on the scale of `before`."""
    scales = [part.abs().max().clamp_min(torch.finfo(part.dtype).tiny) for part in before]
    expected, actual = (torch.cat([p / s for p, s in zip(x, scales, strict=True)], dim=1) for x in (before, after))
    if not (expected.isfinite().all() and actual.isfinite().all()):
        return torch.inf
    sigma = Permutation.identity(len(expected))
    if not fixed:
        sigma = solve_assignment(-torch.cdist(expected.double(), actual.double())).permutation
    return float((sigma.apply(actual, dim=0) - expected).abs().max())


def _probe(experts: ExpertBank, router: Router | None) -> list[Float[Tensor, "E n"]]:
    """The outputs of the experts, and the projections of their router rows."""
    generator, weight = torch.Generator().manual_seed(0), experts.up_proj

    def random(size: int, like: Tensor) -> Tensor:
        return torch.randn(PROBES, size, generator=generator).to(like)

    outputs = _outputs(experts, random(weight.shape[2], weight), random(experts.down_proj.shape[1], weight))
    return [outputs] if router is None else [outputs, _projected(router)]


def _projected(router: Router) -> Float[Tensor, "E n"]:
    rows = router.rows()
    return rows @ torch.randn(PROBES, rows.shape[1], generator=torch.Generator().manual_seed(1)).to(rows).mT


def _outputs(experts: ExpertBank, x: Float[Tensor, "n H"], y: Float[Tensor, "n D"]) -> Float[Tensor, "E n"]:
    def inward(weight: Tensor, bias: Tensor | None) -> Tensor:
        units = x @ weight.mT  # [E, n, F]
        return units if bias is None else units + bias[:, None]

    up = inward(experts.up_proj, experts.up_bias)
    units = F.silu(up) if experts.gate_proj is None else F.silu(inward(experts.gate_proj, experts.gate_bias)) * up
    outputs = (units * (y @ experts.down_proj)).sum(dim=-1)
    return outputs if experts.down_bias is None else outputs + experts.down_bias @ y.mT
