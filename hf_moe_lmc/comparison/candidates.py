"""Which expert of A an expert of B may be, found without matching any units."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from hf_moe_lmc.matching import solve_assignment
from hf_moe_lmc.moe import ExpertBank

from .fit import one_expert

_GLIMPSE = (16, 64)  # units, hidden coordinates
_COLUMNS, _ENTRIES = 8, 2048  # of a sketch, at least
_COORDINATES = 256  # of a row


def glimpsed_distances(a: ExpertBank, b: ExpertBank) -> Float[Tensor, "Eb Ea"]:
    """Distances of a few rows of all experts, units taken as they stand; of gate_proj where there is one, of norm 1.

    Near 0 for an expert that stays as it is, in whatever slot; about 1.4 for all others.
    """
    x, y = (_glimpse(experts) for experts in (a, b))
    # The default mode of cdist cancels catastrophically for nearly equal rows.
    return torch.cdist(y, x, compute_mode="donot_use_mm_for_euclid_dist")


def candidates(a: ExpertBank, b: ExpertBank, known: Sequence[int], slots: Sequence[int]) -> dict[int, list[int]]:
    """For every slot of B the experts of A that it may be: its partner in the best order, the nearest, its number's.

    Args:
        a, b: experts of the same shapes.
        known: the experts of A that are looked at.
        slots: those of B.
    """
    sides = [[one_expert(bank, e) for e in numbers] for bank, numbers in ((a, known), (b, slots))]
    own, others = (
        [torch.stack([_inward(x) for x in side]), torch.stack([_outward(x) for x in side])] for side in sides
    )
    inward, outward = (y @ x.T for x, y in zip(own, others, strict=True))
    total, chosen = inward + outward, {}
    partners = list[int]()
    if total.shape[0] <= total.shape[1]:
        square = torch.full((total.shape[1],) * 2, float(total.min()) - 1.0)
        square[: total.shape[0]] = total
        partners = solve_assignment(square).columns.tolist()
    for row, j in enumerate(slots):
        columns = [*partners[row : row + 1], *(int(table[row].argmax()) for table in (total, inward, outward))]
        chosen[j] = list(dict.fromkeys([*(known[column] for column in columns), *([j] if j in known else [])]))
    return chosen


def sketch(*matrices: Float[Tensor, "R H"]) -> Float[Tensor, " n"]:
    """`(M^T M - R / H) W` of rows M of norm 1, in H coordinates at most, and seeded columns W; of norm 1.

    It depends on no order of rows, no sign and no scale: not on which rows are gate and which are up either.
    """
    return torch.nn.functional.normalize(sum((_sketch(rows) for rows in matrices), torch.zeros(1)), dim=0)


def _inward(expert: ExpertBank) -> Float[Tensor, " n"]:
    return sketch(*(part[0] for part in (expert.gate_proj, expert.up_proj) if part is not None))


def _outward(expert: ExpertBank) -> Float[Tensor, " n"]:
    return sketch(expert.down_proj[0].mT)


def _sketch(rows: Float[Tensor, "R H"]) -> Float[Tensor, " n"]:
    rows, generator = rows[:, :_COORDINATES].float(), torch.Generator().manual_seed(0)
    width = rows.shape[1]
    columns = torch.randn(width, min(width, max(_COLUMNS, _ENTRIES // width)), generator=generator)
    norms = torch.linalg.vector_norm(rows, dim=1).square_().clamp_(min=torch.finfo(torch.float32).tiny)
    return (rows.T @ ((rows @ columns) / norms[:, None]) - columns * (len(rows) / width)).flatten()


def _glimpse(experts: ExpertBank) -> Float[Tensor, "E k"]:
    part = experts.up_proj if experts.gate_proj is None else experts.gate_proj
    units, coordinates = (
        torch.linspace(0, size - 1, min(count, size)).long()
        for size, count in zip(part.shape[1:], _GLIMPSE, strict=True)
    )
    rows = part[:, units][:, :, coordinates].float()
    rows = torch.nn.functional.normalize(rows, dim=2) / len(units) ** 0.5
    return rows.flatten(1).nan_to_num(0.0, 0.0, 0.0)
