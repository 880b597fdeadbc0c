"""Which expert of A an expert of B may be, found without matching any units."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from hf_moe_lmc.moe import ExpertBank

_GLIMPSE = (16, 64)  # units, hidden coordinates
_COLUMNS = 16


def glimpsed_distances(a: ExpertBank, b: ExpertBank) -> Float[Tensor, "Eb Ea"]:
    """Distances of a few rows of all experts, units taken as they stand; of gate_proj where there is one, of norm 1.

    Near 0 for an expert that stays as it is, in whatever slot; about 1.4 for all others.
    """
    x, y = (_glimpse(experts) for experts in (a, b))
    # The default mode of cdist cancels catastrophically for nearly equal rows.
    return torch.cdist(y, x, compute_mode="donot_use_mm_for_euclid_dist")


def _glimpse(experts: ExpertBank) -> Float[Tensor, "E k"]:
    part = experts.up_proj if experts.gate_proj is None else experts.gate_proj
    units, coordinates = (
        torch.linspace(0, size - 1, min(count, size)).long()
        for size, count in zip(part.shape[1:], _GLIMPSE, strict=True)
    )
    rows = part[:, units][:, :, coordinates].float()
    rows = torch.nn.functional.normalize(rows, dim=2) / len(units) ** 0.5
    return rows.flatten(1).nan_to_num(0.0, 0.0, 0.0)


def inward_sketch(expert: ExpertBank) -> Float[Tensor, " n"]:
    """`(M^T M - R / H) W` of the R rows of gate_proj and up_proj, each of norm 1, and 16 seeded columns W; norm 1.

    It depends on no order of rows, no sign and no scale: not on which rows are gate and which are up either.
    """
    parts = [part[0] for part in (expert.gate_proj, expert.up_proj) if part is not None]
    return _sketch(torch.cat(parts))


def outward_sketch(expert: ExpertBank) -> Float[Tensor, " n"]:
    """The same of the columns of down_proj."""
    return _sketch(expert.down_proj[0].mT)


def agreements(b: Sequence[Tensor], a: Sequence[Tensor]) -> Float[Tensor, "Eb Ea"]:
    """Cosines of sketches."""
    return torch.stack(list(b)) @ torch.stack(list(a)).T


def _sketch(rows: Float[Tensor, "R H"]) -> Float[Tensor, " n"]:
    rows = torch.nn.functional.normalize(rows.float(), dim=1)
    generator = torch.Generator().manual_seed(0)
    columns = torch.randn(rows.shape[1], min(_COLUMNS, rows.shape[1]), generator=generator)
    sketch = rows.T @ (rows @ columns) - columns * (len(rows) / rows.shape[1])
    return torch.nn.functional.normalize(sketch.flatten(), dim=0)
