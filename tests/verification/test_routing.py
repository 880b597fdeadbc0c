from itertools import permutations

import pytest
import torch

from hf_moe_lmc.adapters import experts_per_token, moe_layers, router_of
from hf_moe_lmc.verification.routing import routing_agreement, selected_experts
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
    model, found = families.build(name), []
    spec = moe_layers(model)[-1]
    top_k = experts_per_token(model, spec)
    router_of(model, spec).register_forward_hook(
        lambda module, args, output: found.append(selected_experts(output, spec.router.num_experts, top_k))
    )
    families.outputs(model, name)
    chosen = torch.cat(found)
    assert chosen.shape[1] == top_k
    assert all(len(set(row)) == top_k for row in chosen.tolist())
    assert len(chosen.unique(dim=0)) > 1


def test_llama4_chooses_by_scores():
    """Its router returns the scores of all experts, those not chosen 0."""
    model, found = families.build("llama4"), []
    model.model.layers[1].feed_forward.router.register_forward_hook(lambda module, args, output: found.append(output))
    families.outputs(model, "llama4")
    chosen = selected_experts(found[0], 12, 3)
    assert torch.equal((found[0][0] != 0), torch.zeros(14, 12).scatter(1, chosen, 1.0).bool())


def test_the_dense_variant_chooses_all():
    model, found = models.build("moe_vit dense"), []
    model.vit.layers[0].mlp.router.register_forward_hook(lambda module, args, output: found.append(output))
    models.logits(model)
    assert selected_experts(found[0], 5, 5).shape[1] == 5
