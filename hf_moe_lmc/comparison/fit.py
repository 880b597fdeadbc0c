"""Tensors, and experts whose units stand in one order, entry by entry: which kind of the same, and how much changed."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Literal, get_args

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from hf_moe_lmc.moe import ExpertBank, SymmetryGroup

Kind = Literal[
    "identical",
    "rounded",
    "changed",
    "moved",
    "copied",
    "unrelated",
    "gate_up_swapped",
    "interleaving",
    "transposed",
    "scaled",
    "zero",
    "not_finite",
]
KINDS: tuple[Kind, ...] = get_args(Kind)

FACTOR = 0.01  # factors nearer to 1 are changes of the weights
ROUNDING = 1e-5  # relative distances below it are rounding of float32
NEAR = 0.3  # relative distance below which weights that stand at one place are the same ones, trained
_FOREIGN = 0.9  # relative distance above which they are others
GAIN = 0.5  # what a sign, a scale or a factor must leave of the distance at most to be believed
_BLOCK = 2**16  # entries that stay in the cache
_ROUNDED_TO = (torch.float8_e5m2, torch.float8_e4m3fn, torch.bfloat16, torch.float16, torch.float32)  # coarsest first
_SIGNED = ("up_proj", "up_bias", "down_proj")


@dataclass(frozen=True)
class Fit:
    """How one expert comes from another of which every unit has its partner at its place.

    Args:
        kind: "identical", "rounded", "changed" or "scaled".
        change: `|b - a| / |a|` over all tensors, signs, unit scales and factors undone; None if identical.
        signs, scales: whether some units have another sign, or another scale that their function does not see.
        factors: by which gate, up and down are off, of a kind "scaled"; up and down as one in up where units may be
            rescaled.
        changes: `change` of every tensor; empty if all are identical.
    """

    kind: Literal["identical", "rounded", "changed", "scaled"]
    change: float | None = None
    signs: bool = False
    scales: bool = False
    factors: tuple[float, float, float] = (1.0, 1.0, 1.0)
    changes: Mapping[str, float] = field(default_factory=dict)

    @property
    def worst(self) -> float:
        """`change` of the projection where it is largest."""
        return max(self._of_projections, default=0.0)

    @property
    def foreign(self) -> tuple[str, ...]:
        """Projections and biases that are not A's at all, where a projection is."""
        if min(self._of_projections, default=1.0) > NEAR:
            return ()
        return tuple(name for name, change in self.changes.items() if change > _FOREIGN)

    @property
    def _of_projections(self) -> list[float]:
        return [change for name, change in self.changes.items() if name.endswith("proj")]


def one_expert(experts: ExpertBank, e: int) -> ExpertBank:
    """The bank of expert e alone (views)."""
    return experts.map(lambda tensor: tensor[e : e + 1])


def fit(a: ExpertBank, b: ExpertBank, group: SymmetryGroup) -> Fit:
    """How expert b comes from expert a, both banks of one, as stored, units in one order.

    Of signs and scales that `group` leaves free, those that bring them closest count.
    """
    if _same_bits(a, b):
        return Fit("identical")
    sums = _Sums.of(a, b)
    flipped = sums.dots(*_SIGNED) < 0 if group.unit_signs else torch.zeros(1, dtype=torch.bool)
    if not flipped.any():
        return _rescaling_fit(a, b, sums, group)
    signs = torch.where(flipped, -1.0, 1.0)
    b = _times(b, {name: signs for name in _SIGNED if name in b.tensors()})
    if _same_bits(a, b):
        return Fit("identical", signs=True)
    return replace(_rescaling_fit(a, b, _Sums.of(a, b), group), signs=True)


@dataclass(frozen=True)
class _Sums:
    """`|a - b|^2`, `|a|^2` and `|b|^2` of the units of two experts, by name of the tensor; down_bias is one unit."""

    distances: dict[str, Float[Tensor, " n"]]
    norms: dict[str, Float[Tensor, " n"]]
    other_norms: dict[str, Float[Tensor, " n"]]

    @classmethod
    def of(cls, a: ExpertBank, b: ExpertBank) -> "_Sums":
        """The sums, in one pass."""
        x, y, sums = a.tensors(), b.tensors(), {}
        for name in x:
            if name == "down_proj":
                sums[name] = column_squares(x[name][0], y[name][0])
            else:
                sums[name] = squares(_unit_rows(name, x[name]), _unit_rows(name, y[name]))
        return cls(*({name: own[part].double() for name, own in sums.items()} for part in range(3)))

    @property
    def changes(self) -> dict[str, float]:
        """`|b - a| / |a|` by tensor."""
        return {name: _ratio(part.sum(), self.norms[name].sum()) for name, part in self.distances.items()}

    @property
    def change(self) -> float:
        """`|b - a| / |a|` over all tensors."""
        return _ratio(
            *(torch.stack([part.sum() for part in sums.values()]).sum() for sums in (self.distances, self.norms))
        )

    def dots(self, *names: str) -> Float[Tensor, " n"]:
        """`<a, b>` of every unit over the tensors of these names."""
        known = [name for name in names if name in self.norms]
        return sum(((self.norms[n] + self.other_norms[n] - self.distances[n]) / 2 for n in known), torch.zeros(1))

    def factors(self, *names: str) -> Float[Tensor, " n"]:
        """`<a, b> / |a|^2` of every unit over these tensors."""
        known = [name for name in names if name in self.norms]
        return _quotient(self.dots(*known), sum((self.norms[name] for name in known), torch.zeros(1)))

    def left(self, name: str, factor: Tensor) -> float:
        """`|b / factor - a|^2` of one tensor, to the rounding of float32 only."""
        rest = self.norms[name] - 2 * self.dots(name) / factor + self.other_norms[name] / factor**2
        return rest.clamp(min=0).sum().item()


def _rescaling_fit(a: ExpertBank, b: ExpertBank, sums: _Sums, group: SymmetryGroup) -> Fit:
    """The fit of experts whose signs agree, with the factors and scales that explain most of the distance, if any."""
    one, factors = torch.ones((), dtype=torch.float64), dict[str, Tensor]()
    for name in sums.norms:
        factor = _quotient(sums.dots(name).sum(), sums.norms[name].sum())
        explains = sums.left(name, factor) < GAIN**2 * sums.left(name, one)
        factors[name] = factor if explains and abs(factor - 1) > FACTOR / 2 else one
    if group.unit_scale_degree:
        up, down = sums.factors("up_proj", "up_bias"), sums.factors("down_proj")
        by_unit = {"up_proj": up, "down_proj": down} | ({"up_bias": up} if "up_bias" in factors else {})
        before, after = (sum(sums.left(name, chosen[name]) for name in by_unit) for chosen in (factors, by_unit))
        if after < GAIN**2 * before and max(float((scale - 1).abs().max()) for scale in (up, down)) > FACTOR:
            factors |= by_unit
    off = {name: factor for name, factor in factors.items() if factor is not one}
    if off:
        sums = _Sums.of(a, _times(b, {name: 1 / factor for name, factor in off.items()}))
    change = sums.change
    if off:
        return replace(_scaled(factors, group, change), changes=sums.changes)
    eps = max(torch.finfo(tensor.dtype).eps for tensor in (a.up_proj, b.up_proj))
    is_rounding = eps < ROUNDING and change < 4 * eps
    pairs = [(tensor[0], b.tensors()[name][0]) for name, tensor in a.tensors().items()]
    kind = "rounded" if is_rounding or all(is_rounded(x, y, change) for x, y in pairs) else "changed"
    return Fit(kind, change, changes=sums.changes)


def _scaled(factors: Mapping[str, Tensor], group: SymmetryGroup, change: float) -> Fit:
    gate, up, down = (factors.get(name, torch.ones(())) for name in ("gate_proj", "up_proj", "down_proj"))
    if group.unit_scale_degree:  # only what is left of the product is a factor
        up, down = up**group.unit_scale_degree * down, torch.ones(())
    off = tuple(part.double().median().item() for part in (gate, up, down))
    if max(abs(factor - 1) for factor in off) > FACTOR:
        # pyrefly: ignore[bad-argument-type]
        return Fit("scaled", change if change > ROUNDING else None, factors=off)
    return Fit("rounded" if change < ROUNDING else "changed", change, scales=True)


def _ratio(distance: Tensor, norm: Tensor) -> float:
    return math.sqrt(distance / norm) if norm > 0 else 0.0 if distance == 0 else math.inf


def same_values(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one shape are equal; where they can be, eight bytes at a time."""
    whole = all(x.is_contiguous() and x.data_ptr() % 8 == x.nbytes % 8 == 0 for x in (a, b)) and a.ndim > 0
    if a.dtype == b.dtype and whole and torch.equal(*(x.view(-1).view(torch.int64) for x in (a, b))):
        return True
    return torch.equal(a, b)


def _same_bits(a: ExpertBank, b: ExpertBank) -> bool:
    x, y = a.tensors(), b.tensors()
    return all(x[name].dtype == y[name].dtype and same_values(x[name], y[name]) for name in x)


def _unit_rows(name: str, tensor: Tensor) -> Tensor:
    """A row per unit; down_bias, which belongs to none, is one row."""
    return tensor[0] if tensor.ndim == 3 else tensor if name == "down_bias" else tensor[0][:, None]


def _quotient(product: Tensor, norm: Tensor) -> Tensor:
    """1 where it would be 0 or not finite."""
    return torch.where((norm > 0) & (product != 0), product / norm, 1.0)


def _times(expert: ExpertBank, factors: Mapping[str, Tensor]) -> ExpertBank:
    """The expert with tensors times a number, or a number per unit; signs do not round, other numbers widen."""
    changed = {}
    for name, factor in factors.items():
        tensor = expert.tensors()[name]
        is_sign = bool((factor.abs() == 1).all())
        dtype = tensor.dtype if is_sign else torch.promote_types(tensor.dtype, torch.float32)
        factor = factor.to(dtype)
        of_columns = factor.ndim == 0 or tensor.ndim == 2 or name == "down_proj"
        changed[name] = tensor.to(dtype) * (factor if of_columns else factor[..., None])
    return replace(expert, **changed)


def wide(*tensors: Tensor) -> torch.dtype:
    """The wider of float32 and the dtypes of `tensors`."""
    return reduce(torch.promote_types, (tensor.dtype for tensor in tensors), torch.float32)


def squares(
    a: Shaped[Tensor, "R d"], b: Shaped[Tensor, "R d"]
) -> tuple[Float[Tensor, " R"], Float[Tensor, " R"], Float[Tensor, " R"]]:
    """`(|a_r - b_r|^2, |a_r|^2, |b_r|^2)` of every row, in float32 or better; one pass."""
    dtype, sums = wide(a, b), []
    for x, y in _blocks(a, b):
        x, y = x.to(dtype), y.to(dtype)
        sums.append(torch.stack([torch.linalg.vector_norm(part, dim=1) for part in (x - y, x, y)]))
    distances, norms, other_norms = torch.cat(sums, dim=1).square()
    return distances, norms, other_norms


def column_squares(
    a: Shaped[Tensor, "R d"], b: Shaped[Tensor, "R d"]
) -> tuple[Float[Tensor, " d"], Float[Tensor, " d"], Float[Tensor, " d"]]:
    """The same of every column, along which the tensors are not stored."""
    if a.stride(1) > a.stride(0) and b.stride(1) > b.stride(0):
        return squares(a.mT, b.mT)
    dtype = wide(a, b)
    sums = torch.zeros(3, a.shape[1], dtype=dtype)
    for x, y in _blocks(a, b):
        x, y = x.to(dtype, copy=True), y.to(dtype, copy=True)
        for total, part in zip(sums, (x - y, x, y), strict=True):
            total += part.square_().sum(dim=0)  # a norm along this axis takes ten times as long
    return sums[0], sums[1], sums[2]


def is_rounded(a: Tensor, b: Tensor, change: float) -> bool:
    """Whether one of two tensors of floating-point numbers is the other rounded to a narrower dtype.

    Every entry differs by no more than that rounding allows, whatever dtype holds it now.

    Args:
        a, b: of one shape.
        change: `|b - a| / |a|`; rounding leaves half of the machine epsilon at most.
    """
    dtype, x, y = wide(a, b), _rows(a), _rows(b)
    pairs = [(x[:1], y[:1]), *_blocks(x, y)]  # a row is mostly enough to tell that they are not
    for target in _ROUNDED_TO:
        limits = torch.finfo(target)
        if target.itemsize >= dtype.itemsize or change > limits.eps:
            continue
        is_narrow = any(all(torch.equal(pair[k], pair[k].to(target).to(pair[k])) for pair in pairs) for k in (0, 1))
        if is_narrow and all(_is_near(*pair, limits, dtype) for pair in pairs):
            return True
    return False


def _is_near(x: Tensor, y: Tensor, limits: torch.finfo, dtype: torch.dtype) -> bool:
    x, y = x.to(dtype), y.to(dtype)
    return bool(((x - y).abs() <= limits.eps * torch.maximum(x.abs(), y.abs()) + limits.smallest_normal).all())


def _rows(tensor: Tensor) -> Tensor:
    return tensor.flatten(1) if tensor.ndim > 1 else tensor.reshape(1, -1)


def _blocks(a: Tensor, b: Tensor) -> list[tuple[Tensor, Tensor]]:
    rows = max(1, _BLOCK // max(1, a.shape[1]))
    return list(zip(a.split(rows), b.split(rows), strict=True))
