"""One expert of B against one of A, units in the same order: which kind of the same, and how much changed."""

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from hf_moe_lmc.moe import ExpertBank

from .rows import dots, is_rounded, squares, wide

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
GAIN = 0.5  # what a sign, a scale or a factor must leave of the distance at most to be believed
_SIGNED = ("up_proj", "up_bias", "down_proj")


@dataclass(frozen=True)
class Freedom:
    """What leaves the function of a unit alone: the sign of its up_proj row, and the degree of its free scale."""

    signs: bool
    scale_degree: int


@dataclass(frozen=True)
class Fit:
    """How one expert comes from another of which every unit has its partner at its place.

    Args:
        kind: "identical", "rounded", "changed" or "scaled".
        change: `|b - a| / |a|` over all tensors, signs, unit scales and factors undone; None if identical.
        signs, scales: whether some units have another sign, or another scale that their function does not see.
        factors: by which gate, up and down are off, of a kind "scaled"; up and down as one in up where units may be
            rescaled.
    """

    kind: Literal["identical", "rounded", "changed", "scaled"]
    change: float | None
    signs: bool = False
    scales: bool = False
    factors: tuple[float, float, float] = (1.0, 1.0, 1.0)


def one_expert(experts: ExpertBank, e: int) -> ExpertBank:
    """The bank of expert e alone (views)."""
    return experts.map(lambda tensor: tensor[e : e + 1])


def widened(expert: ExpertBank) -> ExpertBank:
    """The bank in float32 or better."""
    dtype = wide(*expert.tensors().values())
    return expert.map(lambda tensor: tensor.to(dtype))


def fit(a: ExpertBank, b: ExpertBank, freedom: Freedom) -> Fit:
    """How expert b comes from expert a, both banks of one, as stored, units in one order."""
    if _same_bits(a, b):
        return Fit("identical", None)
    distances, norms = _squares(a, b)
    signed = torch.zeros(0)
    if freedom.signs and bool((distances > 0.5 * norms).any()):
        flipped = _unit_dots(a, b, *_SIGNED) < 0
        if flipped.any():
            signed = torch.where(flipped, -1.0, 1.0)
            flipped_b = _times(b, {name: signed for name in _SIGNED if name in b.tensors()})
            if _same_bits(a, flipped_b):
                return Fit("identical", None, signs=True)
            new_distances, _ = _squares(a, flipped_b)
            if new_distances.sum() < distances.sum():
                b, distances = flipped_b, new_distances
            else:
                signed = torch.zeros(0)
    found = _rescaling_fit(a, b, freedom, _relative(distances, norms))
    return replace(found, signs=bool(len(signed)))


def _rescaling_fit(a: ExpertBank, b: ExpertBank, freedom: Freedom, change: float) -> Fit:
    """The fit of experts whose signs agree, with the factors and scales that explain most of the distance, if any."""
    if change > FACTOR / 2:
        constant = {name: _factor(a, b, name) for name in a.tensors()}
        rescaled = _relative(*_squares(a, _divided(b, constant)))
        scales = constant
        if freedom.scale_degree and rescaled > GAIN * change:
            units = constant | _unit_factors(a, b)
            by_units = _relative(*_squares(a, _divided(b, units)))
            if by_units < GAIN * change:
                rescaled, scales = by_units, units
        if rescaled < GAIN * change:
            return _scaled(scales, freedom, change, rescaled)
    if change < 4 * max(torch.finfo(tensor.dtype).eps for tensor in (a.up_proj, b.up_proj)) or _is_rounded(
        a, b, change
    ):
        return Fit("rounded", change)
    return Fit("changed", change)


def _scaled(scales: dict[str, Tensor], freedom: Freedom, change: float, rescaled: float) -> Fit:
    gate, up, down = (scales.get(name, torch.ones(())) for name in ("gate_proj", "up_proj", "down_proj"))
    if freedom.scale_degree:  # only what is left of the product is a factor
        up, down = up**freedom.scale_degree * down, torch.ones(())
    factors = tuple(part.double().median().item() for part in (gate, up, down))
    if max(abs(factor - 1) for factor in factors) > FACTOR:
        # pyrefly: ignore[bad-argument-type]
        return Fit("scaled", rescaled if rescaled > ROUNDING else None, factors=factors)
    return Fit("rounded" if rescaled < ROUNDING else "changed", rescaled, scales=True)


def _same_bits(a: ExpertBank, b: ExpertBank) -> bool:
    x, y = a.tensors(), b.tensors()
    return all(x[name].dtype == y[name].dtype and torch.equal(x[name], y[name]) for name in x)


def _is_rounded(a: ExpertBank, b: ExpertBank, change: float) -> bool:
    if change > 0.15:  # what float8 does
        return False
    x, y = a.tensors(), b.tensors()
    return all(is_rounded(x[name][0], y[name][0]) for name in x)


def _unit_rows(expert: ExpertBank, name: str) -> Tensor:
    """A tensor of the bank with a row per unit; down_bias, of none, with a single one."""
    tensor = expert.tensors()[name][0]
    if name == "down_proj":
        return tensor.mT
    if name == "down_bias":
        return tensor[None]
    return tensor if tensor.ndim == 2 else tensor[:, None]


def _squares(a: ExpertBank, b: ExpertBank) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Squared distances and norms of the units, with down_bias as one more."""
    of_units, of_output = [], []
    for name in a.tensors():
        if name == "down_proj":
            # Rows as they are stored are read in one go; what counts are the columns.
            found = _column_squares(a.down_proj[0], b.down_proj[0])
        else:
            found = squares(_unit_rows(a, name), _unit_rows(b, name))
        (of_output if name == "down_bias" else of_units).append(found)
    distances, norms = (torch.stack(part).sum(dim=0) for part in zip(*of_units, strict=True))
    if of_output:
        distances, norms = (torch.cat([x, y]) for x, y in zip((distances, norms), of_output[0], strict=True))
    return distances, norms


def _column_squares(a: Float[Tensor, "D F"], b: Float[Tensor, "D F"]) -> tuple[Tensor, Tensor]:
    if not a.is_contiguous() and a.mT.is_contiguous() and b.mT.is_contiguous():
        return squares(a.mT, b.mT)
    dtype, rows = wide(a, b), max(1, 2**16 // max(1, a.shape[1]))
    distances, norms = torch.zeros(a.shape[1], dtype=dtype), torch.zeros(a.shape[1], dtype=dtype)
    for x, y in zip(a.split(rows), b.split(rows), strict=True):
        x, y = x.to(dtype), y.to(dtype)
        norms += x.square().sum(dim=0)
        distances += (x - y).square().sum(dim=0)
    return distances, norms


def _relative(distances: Float[Tensor, " n"], norms: Float[Tensor, " n"]) -> float:
    norm = norms.double().sum().item()
    return math.sqrt(distances.double().sum().item() / norm) if norm > 0 else math.inf


def _unit_dots(a: ExpertBank, b: ExpertBank, *names: str) -> Float[Tensor, " F"]:
    """`<a, b>` of every unit over the tensors of these names."""
    tensors = [name for name in names if name in a.tensors()]
    return torch.stack([dots(_unit_rows(a, name), _unit_rows(b, name)) for name in tensors]).sum(dim=0).double()


def _factor(a: ExpertBank, b: ExpertBank, name: str) -> Float[Tensor, ""]:
    """`<a, b> / |a|^2` of one tensor."""
    return _quotient(_unit_dots(a, b, name).sum(), _unit_dots(a, a, name).sum())


def _unit_factors(a: ExpertBank, b: ExpertBank) -> dict[str, Float[Tensor, " F"]]:
    """The same of every unit, for what the scale of a unit changes."""
    up = _quotient(_unit_dots(a, b, "up_proj", "up_bias"), _unit_dots(a, a, "up_proj", "up_bias"))
    down = _quotient(_unit_dots(a, b, "down_proj"), _unit_dots(a, a, "down_proj"))
    scales = {"up_proj": up, "up_bias": up, "down_proj": down}
    return {name: factor for name, factor in scales.items() if name in a.tensors()}


def _quotient(product: Tensor, norm: Tensor) -> Tensor:
    """1 where it would be 0 or not finite."""
    return torch.where((norm > 0) & (product != 0), product / norm, 1.0)


def _divided(expert: ExpertBank, factors: dict[str, Tensor]) -> ExpertBank:
    return _times(expert, {name: 1 / factor for name, factor in factors.items()})


def _times(expert: ExpertBank, factors: dict[str, Tensor]) -> ExpertBank:
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
