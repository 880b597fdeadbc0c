"""The largest value of a tensor, and whether all are finite, in one pass."""

from torch import Tensor


def largest_magnitude(tensor: Tensor) -> float:
    """`max |x|`; NaN if any value is; 0 for what is never computed with: integers, and codes of 8 bits."""
    if not tensor.is_floating_point() or tensor.itemsize == 1 or not tensor.numel():
        return 0.0
    # The extremes carry any NaN, and finding them is an order faster than isfinite.
    return max(abs(extreme.item()) for extreme in tensor.aminmax())
