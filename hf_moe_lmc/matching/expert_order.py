"""Matching the experts: which expert of the other model belongs to which expert of the reference.

Each method fills an E x E table and solves one assignment on it.
"""

from typing import Literal, assert_never

import torch
from jaxtyping import Float
from torch import Tensor

from hf_moe_lmc.moe import ExpertBank, MoeLayer, Router
from hf_moe_lmc.symmetry import Permutation

from .assignment import solve_assignment, solve_grouped_assignment
from .unit_matching import unit_similarity

ExpertOrder = Literal["units", "gate", "gram", "joint"]


def match_experts(reference: MoeLayer, other: MoeLayer, method: ExpertOrder) -> Permutation:
    """The order of `other`'s experts that fits `reference`'s best, `[E]`.

    Args:
        reference, other: comparable layers.
        method: "units" keeps the order as it is (only units will be matched); "gate" compares router rows;
            "gram" compares the experts' Gram matrices, which do not depend on the order of units; "joint" solves
            every pair's unit assignment, E^2 of them, and is the exact optimum of the squared distance.
    """
    reference, other = reference.in_gauge(), other.in_gauge()
    router, other_router = reference.router, other.router
    if method == "units" or reference.group.fixed_experts or router is None or other_router is None:
        return Permutation.identity(reference.experts.num_experts)
    match method:
        case "gate":
            similarity = -gate_cost(router, other_router)
        case "gram":
            similarity = -gram_cost(reference.experts, other.experts)
        case "joint":
            similarity = joint_similarity(reference, other)
        case _:
            assert_never(method)
    return solve_grouped_assignment(similarity, reference.group.expert_groups).permutation


def gate_cost(reference: Router, other: Router) -> Float[Tensor, "E E"]:
    """`C_ij = (|W_i - W'_j|^2 + (b_i - b'_j)^2)^(1/2)`, selection biases and scales as further columns.

    Both routers in the gauge of `MoeLayer.in_gauge`. Source: arXiv:2509.11348, equation 10.
    """
    return _distances(reference.rows(), other.rows())


def gram_cost(reference: ExpertBank, other: ExpertBank) -> Float[Tensor, "E E"]:
    """`C_ij = (|A_i^T A_i - A'_j^T A'_j|_F^2 + |B_i B_i^T - B'_j B'_j^T|_F^2)^(1/2)`, biases as a further column.

    A is up_proj and B is down_proj; a gated expert adds the term of gate_proj. Source: arXiv:2509.11348, equation 11.
    """
    pairs = zip(_grams(reference), _grams(other), strict=True)
    return torch.stack([_distances(a.flatten(1), b.flatten(1)) for a, b in pairs]).square().sum(dim=0).sqrt()


def joint_similarity(reference: MoeLayer, other: MoeLayer) -> Float[Tensor, "E E"]:
    """`T_ij = max over unit permutations of <expert i of reference, expert j of other>`, router rows included.

    The layer's squared distance under the expert order sigma and the best units is a constant minus
    `2 sum_i T[i, sigma(i)]`, so one assignment on T finds the optimum over the whole group. Layers in the gauge of
    `MoeLayer.in_gauge`.
    """
    a, b, group = reference.experts, other.experts, reference.group
    table = torch.zeros(a.num_experts, b.num_experts, dtype=torch.float64)
    if reference.router and other.router:
        table += (reference.router.rows() @ other.router.rows().T).double().cpu()
    if a.down_bias is not None and b.down_bias is not None:
        table += (a.down_bias @ b.down_bias.T).double().cpu()
    for j in range(b.num_experts):
        # Expert j of the other model against all experts of the reference: the single expert broadcasts.
        similarity = unit_similarity(a, b.map(lambda tensor, j=j: tensor[j : j + 1]), group.unit_signs)
        for i in range(a.num_experts):
            table[i, j] += similarity[i].trace() if group.fixed_units else solve_assignment(similarity[i]).objective
    return table


def _grams(experts: ExpertBank) -> list[Float[Tensor, "E d d"]]:
    up, down = experts.up_proj, experts.down_proj
    if experts.up_bias is not None:
        up = torch.cat([up, experts.up_bias[..., None]], dim=2)
    if experts.down_bias is not None:
        down = torch.cat([down, experts.down_bias[..., None]], dim=2)
    grams = [up.mT @ up, down @ down.mT]
    if (gate := experts.gate_proj) is not None:
        if experts.gate_bias is not None:
            gate = torch.cat([gate, experts.gate_bias[..., None]], dim=2)
        grams.append(gate.mT @ gate)
    return grams


def _distances(a: Float[Tensor, "E d"], b: Float[Tensor, "E d"]) -> Float[Tensor, "E E"]:
    # The default mode of cdist cancels catastrophically for nearly equal rows.
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
