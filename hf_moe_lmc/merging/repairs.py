"""All repairs by name, and what they make of the mean of aligned layers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from hf_moe_lmc.moe import ExpertBank, MoeLayer, Router
from hf_moe_lmc.names import Repair

from .gram import restore_gram
from .mean import mean_bank, mean_router, widest_dtype
from .norms import restore_norms, restore_router_norms
from .outputs import rescale_outputs, restore_moments
from .router import solve_router
from .statistics import ExpertStatistics, LayerStatistics

BankRepair = Callable[[ExpertBank, Sequence[ExpertBank], Sequence[float], int, ExpertStatistics], ExpertBank]
"""(merged, endpoints, shares, degree of free unit scales, statistics) -> the repaired bank."""

RouterRepair = Callable[[Router, Sequence[Router], Sequence[float], bool, LayerStatistics], Router]
"""(merged, endpoints, shares, whether translation is a symmetry, statistics) -> the repaired router."""


@dataclass(frozen=True)
class RepairMethod:
    """A function of the mean of a layer, its endpoints and statistics; it changes experts, the router, or both.

    Args:
        experts, router: the functions; None leaves that part alone.
        needs_data: whether they need statistics on calibration data.
    """

    experts: BankRepair | None = None
    router: RouterRepair | None = None
    needs_data: bool = False


REPAIRS: Mapping[Repair, RepairMethod] = {
    "norms": RepairMethod(restore_norms, restore_router_norms),
    "gram": RepairMethod(restore_gram),
    "moments": RepairMethod(restore_moments, needs_data=True),
    "rescale": RepairMethod(rescale_outputs, needs_data=True),
    "router": RepairMethod(router=solve_router, needs_data=True),
}

AUTOMATIC: tuple[Repair, ...] = ("norms", "gram", "moments")
"""The repairs of "auto", one after the other: each leaves less to the next."""


def needs_data(repairs: Sequence[Repair]) -> bool:
    """Whether one of `repairs` needs statistics on calibration data."""
    return any(REPAIRS[repair].needs_data for repair in repairs)


def repaired_bank(
    endpoints: Sequence[ExpertBank],
    shares: Sequence[float],
    repairs: Sequence[Repair],
    scale_degree: int,
    statistics: ExpertStatistics | None = None,
) -> ExpertBank:
    """The mean of aligned expert banks under `repairs`, one after the other; in float32 or better.

    Every expert is computed by itself: a bank cut into several gives the same. Without statistics, the repairs that
    need them are left out.
    """
    dtype = widest_dtype(*endpoints)
    endpoints = [bank.map(lambda tensor: tensor.to(dtype)) for bank in endpoints]
    merged = mean_bank(endpoints, shares)
    for method in _usable(repairs, statistics is not None):
        if method.experts:
            merged = method.experts(merged, endpoints, shares, scale_degree, statistics)  # type: ignore[arg-type]
    return merged


def repaired_router(
    endpoints: Sequence[Router],
    shares: Sequence[float],
    repairs: Sequence[Repair],
    translation: bool,
    statistics: LayerStatistics | None = None,
) -> Router:
    """The mean of aligned routers under `repairs`; as `repaired_bank`."""
    dtype = widest_dtype(*endpoints)
    endpoints = [router.map(lambda tensor: tensor.to(dtype)) for router in endpoints]
    merged = mean_router(endpoints, shares)
    for method in _usable(repairs, statistics is not None):
        if method.router:
            merged = method.router(merged, endpoints, shares, translation, statistics)  # type: ignore[arg-type]
    return merged


def repaired_layer(
    endpoints: Sequence[MoeLayer],
    shares: Sequence[float],
    repairs: Sequence[Repair] = (),
    statistics: LayerStatistics | None = None,
) -> MoeLayer:
    """The mean of aligned layers under `repairs`: its router, its experts and its shared experts."""
    first, group = endpoints[0], endpoints[0].group
    routers = [layer.router for layer in endpoints if layer.router]
    further = [layer.further_rows for layer in endpoints if layer.further_rows]
    shared = [layer.shared_experts for layer in endpoints if layer.shared_experts]
    own, common = (statistics.experts, statistics.shared_experts) if statistics else (None, None)
    experts = [layer.experts for layer in endpoints]
    return replace(
        first,
        router=repaired_router(routers, shares, repairs, group.router_translation, statistics) if routers else None,
        experts=repaired_bank(experts, shares, repairs, group.unit_scale_degree, own),
        shared_experts=repaired_bank(shared, shares, repairs, group.shared_unit_scale_degree, common)
        if shared
        else None,
        further_rows=repaired_router(further, shares, (), False) if further else None,
    )


def _usable(repairs: Sequence[Repair], has_data: bool) -> list[RepairMethod]:
    return [REPAIRS[repair] for repair in repairs if has_data or not REPAIRS[repair].needs_data]
