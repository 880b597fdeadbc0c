import math
from itertools import permutations

import pytest
import torch

from hf_moe_lmc.adapters import experts_per_token, moe_layers, router_of
from hf_moe_lmc.verification.block_comparison import (
    relative_difference,
    routing_agreement,
    row_differences,
    selected_experts,
)
from tests import families, models


def choices(tokens: int, experts: int, top_k: int, seed: int) -> torch.Tensor:
    return torch.rand(tokens, experts, generator=torch.Generator().manual_seed(seed)).topk(top_k).indices


def test_a_renumbering_agrees():
    before = choices(40, 7, 3, seed=0)
    sigma = torch.tensor([1, 2, 3, 4, 5, 6, 0])
    assert routing_agreement(before, sigma[before].flip(1)) == 1


def test_agreement_is_the_best_over_all_renumberings():
    before, after = choices(9, 4, 2, seed=1), choices(9, 4, 2, seed=2)
    best = max(
        sum(len({sigma[e] for e in b} & set(a)) for b, a in zip(before.tolist(), after.tolist(), strict=True))
        for sigma in permutations(range(4))
    )
    assert routing_agreement(before, after) == best / before.numel() < 1


def test_one_token_of_another_expert_is_counted():
    before = choices(40, 7, 1, seed=0)
    after = before.clone()
    after[5, 0] = (after[5, 0] + 1) % 7
    assert routing_agreement(before, after) == pytest.approx(39 / 40)


@pytest.mark.parametrize(
    "name", ["mixtral", "deepseek_v3", "dbrx", "jetmoe", "llama4", "switch_transformers", "inkling", "longcat_flash"]
)
def test_choices_are_read_out_of_every_router(name):
    """As many per token as the layer says, all different, and not the same ones for all tokens."""
    model, chosen = families.build(name), []
    spec = moe_layers(model)[-1]
    top_k = experts_per_token(model, spec)
    router_of(model, spec).register_forward_hook(
        lambda module, args, output: chosen.append(selected_experts(output, spec.router.num_experts, top_k))
    )
    families.outputs(model, name)
    chosen = torch.cat(chosen)
    assert chosen.shape[1] == top_k
    assert all(len(set(row)) == top_k for row in chosen.tolist())
    assert len(chosen.unique(dim=0)) > 1


def test_llama4_chooses_by_scores():
    """Its router returns the scores of all experts, those not chosen 0."""
    model, outputs = families.build("llama4"), []
    model.model.layers[1].feed_forward.router.register_forward_hook(lambda module, args, output: outputs.append(output))
    families.outputs(model, "llama4")
    chosen = selected_experts(outputs[0], 12, 3)
    assert torch.equal((outputs[0][0] != 0), torch.zeros(14, 12).scatter(1, chosen, 1.0).bool())


def test_the_dense_variant_chooses_all():
    model, outputs = models.build("moe_vit dense"), []
    model.vit.layers[0].mlp.router.register_forward_hook(lambda module, args, output: outputs.append(output))
    models.logits(model)
    assert selected_experts(outputs[0], 5, 5).shape[1] == 5


@pytest.mark.parametrize(
    ("expected", "actual", "difference"),
    [
        ([1.0, -4.0], [1.0, -4.0], 0.0),
        ([1.0, -4.0], [2.0, -4.0], 0.25),
        ([0.0, 0.0], [0.0, 0.0], 0.0),
        ([0.0, 0.0], [0.0, 1.0], math.inf),
        ([-math.inf, 4.0], [-math.inf, 3.0], 0.25),
        ([-math.inf, 4.0], [1.0, 4.0], math.inf),
        ([1.0, 4.0], [math.nan, 4.0], math.inf),
        ([math.nan, 4.0], [math.nan, 4.0], math.inf),
    ],
)
def test_difference_by_hand(expected, actual, difference):
    assert relative_difference(torch.tensor(expected), torch.tensor(actual)) == difference


def test_differences_of_rows_by_hand():
    expected = torch.tensor([[[1.0, -4.0], [2.0, 0.0]], [[0.0, 0.0], [math.inf, 1.0]]])
    actual = torch.tensor([[[1.0, -4.0], [2.0, 1.0]], [[0.0, math.nan], [math.inf, 3.0]]])
    assert row_differences(expected, actual).tolist() == [0.0, 0.25, math.inf, 0.5]
