"""Verdicts on pairs of known truth, and on trained copies beside what their merges show.

    python -m benchmarks.verdict [--seeds 5] [--decays .05 .3 1 3]

Known pairs: `tests/matching/known_pairs.py`, on the last layer of tiny models of every family here and on larger layers of
two shapes, each under seeds that nothing was chosen on. A row counts how many verdicts are right: the label, and how many
experts are called unrelated. z-scores are the least of related experts and the greatest of unrelated ones.

Trained copies: a language model is pretrained on the manual that ships with Python, its first Mixture of Experts is drawn
anew in every copy, and everything is trained under each weight decay. Beside the verdict stand the barriers at the
midpoint (nats above the mean of the ends): naive, units matched only, and aligned. Training differs from one processor to
another, so these rows do too.

Tables go to `results/verdict.md` and `results/verdict-trained.md`.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterator
from copy import deepcopy
from itertools import combinations

import torch
from huggingface_hub.utils import tqdm
from torch import Tensor, nn
from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedModel, Qwen2MoeConfig, Qwen2MoeForCausalLM

from hf_moe_lmc import align
from hf_moe_lmc.adapters import moe_layers
from hf_moe_lmc.matching import LayerEvidence
from hf_moe_lmc.moe import ExpertBank, MoeLayer, Router, SymmetryGroup
from hf_moe_lmc.names import ExpertOrder
from tests import families
from tests.connectivity.finetuned import manual
from tests.matching.known_pairs import KnownPair, changed, known_pairs, noisy, scrambled

from .report import report

FAMILIES = (
    "mixtral", "olmoe", "qwen2_moe", "qwen3_moe", "deepseek_v2", "deepseek_v3", "gpt_oss", "dbrx", "glm4_moe",
    "granitemoe", "switch_transformers", "nllb_moe",
)  # fmt: skip
SHAPES = {"8 x 512 x 256": (8, 512, 256), "32 x 128 x 512": (32, 128, 512)}  # experts, units, hidden size
FIRST_SEED = 70_000
FORMATS = {"pair": "", "right": "", "of": "", "z of related": ".0f", "z of unrelated": ".1f", "labels": ""}

HIDDEN, BLOCK, BATCH, STEPS, HELD_OUT = 32, 64, 16, 300, 128
LR, MOE_LR = 1e-3, 1e-2
TRAINED = {
    "family": "", "decay": "", "label": "", "order z": ".1f", "z of experts": ".0f",
    "naive": ".3f", "units": ".3f", "aligned": ".3f",
}  # fmt: skip


def layers(seed: int) -> Iterator[tuple[str, MoeLayer, MoeLayer]]:
    """A kind, and two independent layers of it."""
    for family in FAMILIES:
        models = [families.build(family, experts=12, seed=2 * seed + i) for i in range(2)]
        yield family, *(moe_layers(model)[-1].read(model.state_dict()) for model in models)
    for name, shape in SHAPES.items():
        yield name, large_layer(*shape, 2 * seed), large_layer(*shape, 2 * seed + 1)


def large_layer(experts: int, units: int, hidden: int, seed: int) -> MoeLayer:
    """A gated layer with norms of units spread log-normally by 0.3."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    spread = (0.3 * draw(experts, units, 1)).exp()
    up, gate, down = (draw(experts, units, hidden) * spread for _ in range(3))
    group = SymmetryGroup(router_translation=True, unit_signs=True, unit_scale_degree=1)
    return MoeLayer(Router(draw(experts, hidden)), ExpertBank(up, down.mT.contiguous(), gate), group=group)


def more_pairs(layer: MoeLayer, fresh: MoeLayer, seed: int) -> dict[str, KnownPair]:
    """Further pairs of large layers, in which noise of any size is seen through."""
    noise = {f"noise of {x:.0%}": KnownPair(layer, changed(layer, noisy(x), seed), ("in_place",)) for x in (3.0, 5.0)}
    far = scrambled(changed(layer, noisy(5.0), seed))
    return known_pairs(layer, fresh, seed) | noise | {"noise of 500 %, scrambled": KnownPair(layer, far, ("aligned",))}


def known_rows(seeds: int) -> list[dict[str, object]]:
    """One row per known pair, over all layers and seeds."""
    judged: dict[str, list[tuple[KnownPair, LayerEvidence]]] = defaultdict(list)
    for seed in tqdm(range(FIRST_SEED, FIRST_SEED + seeds)):
        for kind, layer, fresh in layers(seed):
            pairs = (more_pairs if kind in SHAPES else known_pairs)(layer, fresh, seed)
            for name, pair in pairs.items():
                judged[name].append((pair, pair.judge()))
    return [_row(name, results) for name, results in judged.items()]


def _row(name: str, results: list[tuple[KnownPair, LayerEvidence]]) -> dict[str, object]:
    right = [not pair.mistakes(evidence) for pair, evidence in results]
    experts = [expert for _, evidence in results for expert in evidence.experts]
    labels: dict[str, int] = defaultdict(int)
    for _, evidence in results:
        labels[evidence.label] += 1
    return {
        "pair": name,
        "right": sum(right),
        "of": len(right),
        "z of related": min((expert.z for expert in experts if expert.related), default=None),
        "z of unrelated": max((expert.z for expert in experts if not expert.related), default=None),
        "labels": ", ".join(f"{label} {count}" for label, count in labels.items()),
    }


def trained_rows(decays: list[float]) -> list[dict[str, object]]:
    """One row per family, decay and pair of copies."""
    blocks = manual(BLOCK)
    training, test = blocks[:-HELD_OUT], blocks[-HELD_OUT:]
    rows = []
    for family in ("mixtral", "qwen2_moe"):
        torch.manual_seed(0)
        backbone = train(language_model(family), training, seed=0, decay=1.0)
        for decay in decays:
            copies = [trained_copy(family, backbone, training, seed, decay) for seed in (91, 92, 93)]
            rows += [trained_row(family, decay, *pair, test) for pair in combinations(copies, 2)]
    return rows


def trained_copy(
    family: str, backbone: PreTrainedModel, training: Tensor, seed: int, decay: float
) -> PreTrainedModel:
    """The backbone, whose first Mixture of Experts starts anew, trained."""
    torch.manual_seed(seed)
    copy, fresh = deepcopy(backbone), language_model(family)
    copy.model.layers[0].mlp.load_state_dict(fresh.model.layers[0].mlp.state_dict())
    return train(copy, training, seed, decay)


def trained_row(
    family: str, decay: float, reference: PreTrainedModel, other: PreTrainedModel, test: Tensor
) -> dict[str, object]:
    """The verdict on the first layer of a pair, and the barriers at its midpoint."""
    name = alignable_name(reference)
    evidence = align(reference, other).layers[name].evidence
    ends = (loss(reference, test) + loss(other, test)) / 2
    orders: dict[str, ExpertOrder | None] = {"naive": None, "units": "units", "aligned": "auto"}
    return {
        "family": family,
        "decay": f"{decay:g}",
        "label": evidence.label,
        "order z": evidence.order_z,
        "z of experts": min(expert.z for expert in evidence.experts),
        **{column: midpoint(reference, other, order, test) - ends for column, order in orders.items()},
    }


def midpoint(reference: PreTrainedModel, other: PreTrainedModel, order: ExpertOrder | None, test: Tensor) -> float:
    """The loss of the mean of both, the other one aligned first."""
    merged = deepcopy(other)
    if order is not None:
        align(reference, merged, order).apply(merged)
    with torch.no_grad():
        for tensor, own in zip(merged.state_dict().values(), reference.state_dict().values(), strict=True):
            tensor.lerp_(own, 0.5)
    return loss(merged, test)


def alignable_name(model: PreTrainedModel) -> str:
    """The layer that was drawn anew."""
    return moe_layers(model)[0].name


def language_model(family: str) -> PreTrainedModel:
    """Width 32, 2 layers, top-2 of 4 experts of 256 units; Qwen2-MoE with a shared expert."""
    sizes = {
        "vocab_size": 97,
        "hidden_size": HIDDEN,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_experts_per_tok": 2,
        "max_position_embeddings": BLOCK,
        "initializer_range": HIDDEN**-0.5,
    }
    if family == "mixtral":
        model = MixtralForCausalLM(MixtralConfig(**sizes, intermediate_size=8 * HIDDEN, num_local_experts=4))
    else:
        widths = {"moe_intermediate_size": 8 * HIDDEN, "shared_expert_intermediate_size": 8 * HIDDEN}
        model = Qwen2MoeForCausalLM(Qwen2MoeConfig(**sizes, **widths, num_experts=4, norm_topk_prob=True))
    model.set_experts_implementation("eager")
    return model


def train(model: PreTrainedModel, blocks: Tensor, seed: int, decay: float) -> PreTrainedModel:
    """AdamW, cosine; the first Mixture of Experts learns ten times as fast."""
    first: nn.Module = model.model.layers[0].mlp
    members = {id(parameter) for parameter in first.parameters()}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in members]
    groups = [{"params": list(first.parameters()), "lr": MOE_LR}, {"params": rest, "lr": LR}]
    optimizer = torch.optim.AdamW(groups, weight_decay=decay, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    generator = torch.Generator().manual_seed(seed)
    model.train()
    for _ in tqdm(range(STEPS), desc=f"decay {decay:g}, seed {seed}"):
        tokens = blocks[torch.randint(len(blocks), (BATCH,), generator=generator)]
        model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return model.eval()


@torch.no_grad()
def loss(model: PreTrainedModel, blocks: Tensor) -> float:
    """The mean loss per token."""
    return model(input_ids=blocks, labels=blocks, use_cache=False).loss.item()


def main() -> None:
    """Judge, train, write both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--decays", type=float, nargs="*", default=[0.05, 0.3, 1.0, 3.0])
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.seeds:
        report("verdict", known_rows(options.seeds), FORMATS)
    if options.decays:
        report("verdict-trained", trained_rows(options.decays), TRAINED)


if __name__ == "__main__":
    main()
