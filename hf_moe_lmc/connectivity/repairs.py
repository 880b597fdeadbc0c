"""Repairs along a path: functions of the merged layer, the layers at both ends, and calibration statistics."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from torch import Tensor

from hf_moe_lmc.adapters import MoeLayerSpec
from hf_moe_lmc.merging import (
    Interpolation,
    LayerCalibration,
    interpolate_layers,
    preserve_norms,
    rescale_outputs,
    restore_gram,
    restore_moments,
    solve_router,
    widest_dtype,
)
from hf_moe_lmc.moe import MoeLayer

from .path import Layerwise, Path

Repair = Literal["norms", "gram", "moments", "rescale", "router"]
LayerRepair = Callable[[MoeLayer, MoeLayer, MoeLayer, float, LayerCalibration], MoeLayer]
"""(merged, reference, other, t, calibration) -> the repaired layer."""
Calibrate = Callable[[float], Mapping[str, LayerCalibration]]
"""t -> what reaches the layers of the merge at t, by layer name."""

DATA_FREE: dict[Repair, Callable[[MoeLayer, MoeLayer, MoeLayer, float], MoeLayer]] = {
    "norms": preserve_norms,
    "gram": restore_gram,
}
"""Repairs that need no calibration data."""

CALIBRATED: dict[Repair, LayerRepair] = {
    "moments": restore_moments,
    "rescale": rescale_outputs,
    "router": solve_router,
}
"""Repairs that need calibration data."""

AUTOMATIC: tuple[Repair, ...] = ("norms", "gram", "moments")
"""What `choose_repairs` chooses from, in the order in which they are applied: each leaves less to the next."""


def repaired_name(path: str, repairs: Sequence[Repair]) -> str:
    """`aligned + norms + rescale` and the like."""
    return " + ".join((path, *repairs))


def repaired_path(
    reference: Mapping[str, Tensor],
    other: Mapping[str, Tensor],
    specs: Sequence[MoeLayerSpec],
    repairs: Sequence[Repair],
    calibrate: Calibrate = lambda t: {},
) -> Path:
    """The straight line with every layer of `specs` under `repairs`, one after the other; the ends are themselves.

    All is computed in float32 or better, layer by layer, and rounds once. A layer that is not calibrated gets the
    data-free repairs only.

    Args:
        reference, other: weights under module names.
        specs: the layers to repair.
        repairs: in their order.
        calibrate: asked only if one of them needs it.
    """
    needs_data = any(repair in CALIBRATED for repair in repairs)

    def at(t: float) -> Mapping[str, Tensor]:
        line = Interpolation(reference, other, t)
        if t in (0, 1) or not repairs:
            return line
        found = calibrate(t) if needs_data else {}

        def repaired(spec: MoeLayerSpec) -> MoeLayer:
            a, b = spec.read(reference), spec.read(other)
            dtype = widest_dtype(a, b)
            a, b = a.to(dtype), b.to(dtype)
            layer, calibration = interpolate_layers(a, b, t), found.get(spec.name)
            for repair in repairs:
                if repair in DATA_FREE:
                    layer = DATA_FREE[repair](layer, a, b, t)
                elif calibration is not None:
                    layer = CALIBRATED[repair](layer, a, b, t, calibration)
            return layer

        return Layerwise(line, specs, repaired)

    return at
