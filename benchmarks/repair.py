"""Midpoints of two copies that re-initialised their first FFN: as they are, aligned and repaired, beside controls.

    python -m benchmarks.repair                     # all cells; a killed run goes on
    python -m benchmarks.repair "ViT sparse" Mixtral

ViTs on MNIST are those of the demo. Language models: a backbone is pretrained on the manual that ships with Python,
one character per token; in every copy the first Mixture of Experts is re-initialised, and everything is trained. Every
cell can be run on two backbones, each with a test split of its own, and three copies of each: six pairs.

"auto" is norms, gram and moments, one after the other, if they lower the loss on held-out calibration data; every
variant of the other model has a test of its own. "random" is a random symmetric rewrite; "shuffled" has the entries of
its Mixtures of Experts shuffled, and is aligned as well as that can be. Two controls average nothing inside those
layers: "endpoint experts" (one endpoint's, on the averaged rest, mean of both) and "pick" (of every unaligned pair of
units the larger one). "aligned, pick below 0.5" averages aligned units only from a cosine of 0.5 on.

Figures are the loss of the midpoint above the mean of its endpoints, not clipped at 0, in per cent of naive, with 95 %
intervals of a bootstrap over endpoints, which pairs share; then the number of pairs that are below "aligned". No
setting was chosen on these seeds, backbones and splits: those of the demo and the repairs were chosen on seeds 1 to 4
and backbone 0. An empty field was not run.
Rows go to `results/repair.jsonl`, one per pair; the table to `results/repair.md`.
"""

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from itertools import combinations, product
from pathlib import Path
from pydoc_data.topics import topics
from statistics import fmean

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset
from transformers import (
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    set_seed,
)

from hf_moe_lmc.alignment import (
    Alignment,
    AlignmentConfig,
    CheckedModels,
    Weights,
    align_pair,
    open_models,
    temporarily_loaded,
)
from hf_moe_lmc.connectivity import (
    Calibrated,
    CalibrationData,
    choose_repairs,
    evaluate,
    variant_weights,
)
from hf_moe_lmc.connectivity.controls import endpoint_experts, picked_units, shuffled_layers
from hf_moe_lmc.connectivity.data import Blocks
from hf_moe_lmc.demo.digits import TEST_IMAGES, digits_file, load_digits
from hf_moe_lmc.demo.recipe import Recipe
from hf_moe_lmc.demo.training import finetune, pretrain, train
from hf_moe_lmc.names import Repair, Variant

from .intervals import ratio_interval

RESULTS = Path(__file__).parent / "results"
ROWS, TABLE = RESULTS / "repair.jsonl", RESULTS / "repair.md"
BACKBONES, SEEDS = (3, 4), (61, 62, 63)
HALF = (0.5, 0.5)
TIE = 1e-6  # nats; of two orders that are one
SINGLE: tuple[Repair, ...] = ("norms", "gram", "moments", "rescale")
REPAIRED = ("naive", "aligned")
"""Variants that have every repair; the others "auto" only."""

HIDDEN, EXPERTS, BLOCK, BATCH = 32, 4, 64, 16
STEPS, LR, MOE_LR, DECAY = 300, 1e-3, 1e-2, 1.0
HELD_OUT, CALIBRATION = 128, 64

Endpoints = tuple[dict[int, PreTrainedModel], DataLoader, DataLoader]
"""Seed -> copy; the data to evaluate on; the data to calibrate on."""


def vits(recipe: Recipe, backbone: int) -> Endpoints:
    """Small ViTs, on another backbone and split of the digits; every process trains the same ones."""
    recipe, accelerator = replace(recipe, pretrain_seed=backbone), Accelerator(cpu=True)
    digits: Dataset = ConcatDataset(load_digits(digits_file()))
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(backbone)).tolist()
    test, training = Subset(digits, order[:TEST_IMAGES]), Subset(digits, order[TEST_IMAGES:])
    with tempfile.TemporaryDirectory() as folder:
        dense = pretrain(Path(folder) / "dense", recipe, training, accelerator)
        copies = {
            seed: finetune(Path(folder) / str(seed), dense, seed, recipe, training, accelerator) for seed in SEEDS
        }
    calibration = Subset(training, range(recipe.calibration_images))
    return copies, DataLoader(test, batch_size=500), DataLoader(calibration, batch_size=64)


def language_models(family: str, decay: float, backbone: int) -> Endpoints:
    """Mixtral, or Qwen2-MoE with its shared expert: width 32, 2 layers, top-2 of 4 experts of 256 units."""
    # The test blocks are one passage of the manual, another one for every backbone.
    blocks = manual()
    blocks = blocks.roll(backbone * len(blocks) // 3, dims=0)
    # One page is about one thing; repairs that fit it do not fit the rest.
    spread = torch.linspace(0, len(blocks) - HELD_OUT - 1, CALIBRATION).long()
    trained = torch.ones(len(blocks) - HELD_OUT, dtype=torch.bool).index_fill(0, spread, False)
    training = Blocks(blocks[:-HELD_OUT][trained])
    set_seed(backbone)
    dense = _train(_language_model(family), training, backbone, DECAY)
    copies = {}
    for seed in SEEDS:
        set_seed(seed)
        copy, fresh = deepcopy(dense), _language_model(family)
        copy.model.layers[0].mlp.load_state_dict(fresh.model.layers[0].mlp.state_dict())
        copies[seed] = _train(copy, training, seed, decay)
    calibration, test = Blocks(blocks[spread]), Blocks(blocks[-HELD_OUT:])
    return copies, DataLoader(test, batch_size=32), DataLoader(calibration, batch_size=8)


_DIGITS = Recipe(hidden_size=32, pretrain_epochs=12, shift=0, epochs=5)


CELLS: dict[str, Callable[[int], Endpoints]] = {
    "ViT dense": partial(vits, replace(_DIGITS, variant="dense")),
    "ViT sparse": partial(vits, replace(_DIGITS, variant="sparse")),
    "ViT shared": partial(vits, replace(_DIGITS, variant="shared")),
    "ViT sparse, 2 epochs": partial(vits, replace(_DIGITS, variant="sparse", epochs=2)),
    "Mixtral": partial(language_models, "mixtral", DECAY),
    "Mixtral, decay 0.05": partial(language_models, "mixtral", 0.05),
    "Qwen2-MoE": partial(language_models, "qwen2_moe", DECAY),
}
"""Name -> seed of the backbone -> its copies and data."""


def manual() -> torch.Tensor:
    """The manual that ships with Python in blocks of characters, `[N, BLOCK]`."""
    text = "\n\n".join(topics[name] for name in sorted(topics))
    tokens = torch.tensor([1 if c == "\n" else ord(c) - 30 for c in text if c == "\n" or 32 <= ord(c) < 127])
    return tokens[: len(tokens) // BLOCK * BLOCK].reshape(-1, BLOCK)


def _language_model(family: str) -> PreTrainedModel:
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
        model = MixtralForCausalLM(MixtralConfig(**sizes, intermediate_size=8 * HIDDEN, num_local_experts=EXPERTS))
    else:
        widths = {"moe_intermediate_size": 8 * HIDDEN, "shared_expert_intermediate_size": 8 * HIDDEN}
        model = Qwen2MoeForCausalLM(Qwen2MoeConfig(**sizes, **widths, num_experts=EXPERTS, norm_topk_prob=True))
    model.set_experts_implementation("eager")
    return model


def _train(model: PreTrainedModel, blocks: Blocks, seed: int, decay: float) -> PreTrainedModel:
    first: nn.Module = model.model.layers[0].mlp
    members = {id(parameter) for parameter in first.parameters()}
    groups = [
        {"params": list(first.parameters()), "lr": MOE_LR, "weight_decay": decay},
        {"params": [p for p in model.parameters() if id(p) not in members], "lr": LR, "weight_decay": decay},
    ]
    order = torch.randperm(len(blocks), generator=torch.Generator().manual_seed(seed))
    drawn = Subset(blocks, order.repeat(-(-STEPS * BATCH // len(blocks)))[: STEPS * BATCH].tolist())
    options = {"epochs": 1, "batch_size": BATCH, "seed": seed, "description": f"training, seed {seed}"}
    return train(model, drawn, groups, accelerator=Accelerator(cpu=True), **options).eval()


def rows(cell: str, backbone: int, done: set[tuple[int, int]]) -> Iterator[dict[str, object]]:
    """One row per pair of copies of a backbone that is not done yet."""
    missing = [pair for pair in combinations(SEEDS, 2) if pair not in done]
    if not missing:
        return
    copies, data, calibration = CELLS[cell](backbone)
    for a, b in missing:
        started = time.process_time()
        row = {"cell": cell, "backbone": backbone, "pair": (a, b)} | measured(copies[a], copies[b], data, calibration)
        yield row | {"cpu_seconds": round(time.process_time() - started, 1)}


def measured(
    reference: PreTrainedModel, other: PreTrainedModel, data: DataLoader, calibration: DataLoader
) -> dict[str, object]:
    """Loss of every midpoint above the mean of its endpoints, that mean, and the repairs that each variant chose."""
    accelerator, pair = Accelerator(cpu=True), open_models([reference, other])
    specs, endpoints = pair.reference.layers, [evaluate(model, data, accelerator).loss for model in (reference, other)]
    losses, chosen = {}, {}
    with temporarily_loaded(reference) as saved:
        pair = CheckedModels((replace(pair.reference, tensors=saved), *pair.others))

        def loss(weights: Weights) -> float:
            saved.load(weights)
            return evaluate(reference, data, accelerator).loss

        alignment = align_pair(pair, AlignmentConfig())
        for variant, weights in variants(pair, alignment).items():
            models, gauge = [saved, weights], variant not in ("naive", "random")
            calibrated = Calibrated(saved, models, specs, CalibrationData(list(calibration)), accelerator, gauge)
            chosen[variant] = choose_repairs(calibrated, HALF, variant).repairs
            chains = {"": ()} | {f" + {repair}": (repair,) for repair in SINGLE if variant in REPAIRED}
            chains |= {" + auto": chosen[variant]}
            losses |= {f"{variant}{name}": loss(calibrated.weights(HALF, chain)) for name, chain in chains.items()}
        both = [saved, pair.others[0].tensors]
        losses["endpoint experts"] = fmean(loss(endpoint_experts(both, HALF, specs, endpoint)) for endpoint in (0, 1))
        losses["pick"] = loss(picked_units(both, HALF, specs))
        aligned = variant_weights("aligned", pair, alignment, seed=0)
        losses["aligned, pick below 0.5"] = loss(picked_units([saved, aligned], HALF, specs, agreement=0.5))
    above = {name: loss - fmean(endpoints) for name, loss in losses.items()}
    # The first layer is the re-initialised one.
    evidence = next(layer.evidence for layer in alignment.layers.values() if layer.evidence)
    verdict = {"label": evidence.label, "order_z": evidence.order_z, "z": [expert.z for expert in evidence.experts]}
    return {"endpoint_loss": fmean(endpoints), "verdict": verdict, "chosen": chosen, "above": above}


def variants(pair: CheckedModels, alignment: Alignment) -> dict[str, Weights]:
    """The other model as it is, aligned, and under controls."""
    (other,) = pair.others
    shuffled = CheckedModels((pair.reference, replace(other, tensors=shuffled_layers(other.tensors, other.layers))))
    names: tuple[Variant, ...] = ("naive", "random", "units", "aligned")
    return {
        **{variant: variant_weights(variant, pair, alignment, seed=0) for variant in names},
        "shuffled": variant_weights("aligned", shuffled, align_pair(shuffled, AlignmentConfig()), seed=0),
    }


def table(found: Sequence[dict]) -> str:
    """Every path in per cent of naive, its interval, and in how many pairs it is below the plainly aligned one."""
    cells = {cell: [row for row in found if row["cell"] == cell] for cell in CELLS}
    cells = {cell: own for cell, own in cells.items() if own}
    lines = [_line("path", *cells), _line("---", *["---:"] * len(cells))]
    lines.append(
        _line("naive, nats", *(f"{fmean(row['above']['naive'] for row in own):.3f}" for own in cells.values()))
    )
    for path in dict.fromkeys(path for row in found for path in row["above"]):
        lines.append(_line(path, *(_share(own, path) for own in cells.values())))
    for variant in ("naive", "aligned"):
        counts = (sum(bool(row["chosen"][variant]) for row in own) for own in cells.values())
        lines.append(_line(f"auto repaired {variant}", *map(str, counts)))
    lines.append(
        _line("loss of the endpoints", *(f"{fmean(r['endpoint_loss'] for r in own):.3f}" for own in cells.values()))
    )
    labels = (Counter(row["verdict"]["label"] for row in own if row["verdict"]) for own in cells.values())
    lines.append(_line("verdicts", *(", ".join(f"{label} {n}" for label, n in known.items()) for known in labels)))
    scores = ([z for row in own if row["verdict"] for z in row["verdict"]["z"]] for own in cells.values())
    lines.append(_line("least z of an expert", *(f"{min(own):.0f}" if own else "" for own in scores)))
    lines.append(_line("pairs", *(str(len(own)) for own in cells.values())))
    return "\n".join(lines) + "\n"


def _share(own: Sequence[dict], path: str) -> str:
    if not all(path in row["above"] for row in own):
        return ""
    values, naive = ([row["above"][name] for row in own] for name in (path, "naive"))
    ends = [tuple((row["backbone"], seed) for seed in row["pair"]) for row in own]
    low, high = ratio_interval(ends, values, naive)
    wins = sum(row["above"][path] < row["above"]["aligned"] - TIE for row in own)
    return f"{100 * sum(values) / sum(naive):.1f} [{100 * low:.1f}, {100 * high:.1f}], {wins}/{len(own)}"


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Run the cells that are asked for, and renew the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cells", nargs="*", default=list(CELLS), help=f"of {', '.join(CELLS)}")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []
    for backbone, cell in product(BACKBONES, options.cells):
        done = {tuple(row["pair"]) for row in found if (row["cell"], row["backbone"]) == (cell, backbone)}
        for row in rows(cell, backbone, done):
            found.append(row)
            with ROWS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        TABLE.write_text(table(found), encoding="utf-8")
    sys.stdout.write(table(found))


if __name__ == "__main__":
    main()
