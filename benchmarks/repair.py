"""Barriers with and without repair, beside every control, on copies whose first FFN was trained anew from another seed.

    python -m benchmarks.repair                      # all cells; a killed run goes on
    python -m benchmarks.repair mixtral "vit shared"

ViTs on MNIST are those of the demo. Language models: a backbone is pretrained on the manual that ships with Python,
one character per token; in every copy the first Mixture of Experts starts anew, and everything is trained.
Beside every repair stands the same repair without alignment, on a random symmetric rewrite, and on random features: an
other end whose Mixtures of Experts have their entries shuffled, aligned as well as it can be.
"auto" is chosen on held-out calibration data.
No setting was chosen on the reported seeds: the demo's were chosen on 1 to 4, and so were the repairs "gram" and
"moments" and that "auto" chooses among them and "norms"; those of calibration on 1 to 3; the rest is an untuned guess.
The kept rows of the shuffled end come from a second pass, over copies that were trained again.
Barriers are those of t = 0, 1/2 and 1.
Rows go to `results/repair.jsonl`, one per pair; the table to `results/repair.md`.
"""

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from functools import cache
from itertools import combinations
from pathlib import Path
from pydoc_data.topics import topics
from statistics import fmean

import torch
from accelerate import Accelerator
from hf_moe_lmc.connectivity.arrangements import ARRANGEMENTS, Arrangement
from hf_moe_lmc.connectivity.path import moved
from hf_moe_lmc.connectivity.repairs import Repair, repaired_name
from hf_moe_lmc.demo.endpoints import finetune, pretrain
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from transformers import (
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    set_seed,
)

from hf_moe_lmc import Alignment, align
from hf_moe_lmc.adapters import alignable_layers
from hf_moe_lmc.connectivity import PathReport, borrow, evaluate, evaluate_path, repaired_path
from hf_moe_lmc.connectivity.controls import shuffled_layers
from hf_moe_lmc.connectivity.data import Blocks
from hf_moe_lmc.demo import Recipe
from hf_moe_lmc.demo.digits import digits_file, load_digits
from hf_moe_lmc.demo.training import train
from hf_moe_lmc.matching import ExpertOrder

RESULTS = Path(__file__).parent / "results"
ROWS, TABLE = RESULTS / "repair.jsonl", RESULTS / "repair.md"
SEEDS = (41, 42, 43, 44)
POINTS = 3
TIE = 1e-6  # nats; of two orders that are one
REPAIRS = ("norms", "gram", "moments", "rescale", "router", "auto")
ORDERS: tuple[ExpertOrder, ...] = ("gate", "joint")
CELLS = ("vit dense", "vit sparse", "vit shared", "mixtral", "qwen2_moe")

HIDDEN, EXPERTS, BLOCK, BATCH = 32, 4, 64, 16
STEPS, LR, MOE_LR, DECAY = 300, 1e-3, 1e-2, 1.0
HELD_OUT, CALIBRATION = 128, 64

Endpoints = tuple[dict[int, PreTrainedModel], DataLoader, DataLoader]
"""Seed -> copy; the data to evaluate on; the data to calibrate on."""


@cache
def manual(block: int) -> torch.Tensor:
    """The manual that ships with Python in blocks of characters, `[N, block]`."""
    text = "\n\n".join(topics[name] for name in sorted(topics))
    tokens = torch.tensor([1 if c == "\n" else ord(c) - 30 for c in text if c == "\n" or 32 <= ord(c) < 127])
    return tokens[: len(tokens) // block * block].reshape(-1, block)


def endpoints(cell: str) -> Endpoints:
    """The copies of one cell, trained now."""
    return vits(cell.removeprefix("vit ")) if cell.startswith("vit") else language_models(cell)


def vits(variant: str) -> Endpoints:
    """The demo's ViTs under other seeds; every process trains the same ones."""
    recipe, accelerator = Recipe(variant=variant), Accelerator(cpu=True)
    training, test = load_digits(digits_file())
    with tempfile.TemporaryDirectory() as folder:
        dense = pretrain(Path(folder) / "dense", recipe, training, accelerator)
        copies = {
            seed: finetune(Path(folder) / str(seed), dense, seed, recipe, training, accelerator) for seed in SEEDS
        }
    calibration = Subset(training, range(recipe.calibration_images))
    return copies, DataLoader(test, batch_size=500), DataLoader(calibration, batch_size=64)


def language_models(family: str) -> Endpoints:
    """Mixtral, or Qwen2-MoE with its shared expert: width 32, 2 layers, top-2 of 4 experts of 256 units."""
    blocks = manual(BLOCK)
    # One page is about one thing; repairs that fit it do not fit the rest.
    spread = torch.linspace(0, len(blocks) - HELD_OUT - 1, CALIBRATION).long()
    trained = torch.ones(len(blocks) - HELD_OUT, dtype=torch.bool).index_fill(0, spread, False)
    training = Blocks(blocks[:-HELD_OUT][trained])
    set_seed(0)
    backbone = _train(_language_model(family), training, seed=0)
    copies = {}
    for seed in SEEDS:
        set_seed(seed)
        copy, fresh = deepcopy(backbone), _language_model(family)
        copy.model.layers[0].mlp.load_state_dict(fresh.model.layers[0].mlp.state_dict())
        copies[seed] = _train(copy, training, seed=seed)
    calibration, test = Blocks(blocks[spread]), Blocks(blocks[-HELD_OUT:])
    return copies, DataLoader(test, batch_size=32), DataLoader(calibration, batch_size=8)


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


def _train(model: PreTrainedModel, blocks: Blocks, seed: int) -> PreTrainedModel:
    first: nn.Module = model.model.layers[0].mlp
    members = {id(parameter) for parameter in first.parameters()}
    groups = [
        {"params": list(first.parameters()), "lr": MOE_LR, "weight_decay": DECAY},
        {"params": [p for p in model.parameters() if id(p) not in members], "lr": LR, "weight_decay": DECAY},
    ]
    order = torch.randperm(len(blocks), generator=torch.Generator().manual_seed(seed))
    drawn = Subset(blocks, order.repeat(-(-STEPS * BATCH // len(blocks)))[: STEPS * BATCH].tolist())
    options = {"epochs": 1, "batch_size": BATCH, "seed": seed, "description": f"training, seed {seed}"}
    return train(model, drawn, groups, accelerator=Accelerator(cpu=True), **options).eval()


def rows(cell: str, done: set[tuple[int, int]]) -> Iterator[dict[str, object]]:
    """One row per pair of copies that is not done yet."""
    missing = [pair for pair in combinations(SEEDS, 2) if pair not in done]
    if not missing:
        return
    copies, data, calibration = endpoints(cell)
    for a, b in missing:
        started = time.process_time()
        new = row(cell, (a, b), measured(copies[a], copies[b], data, calibration))
        midpoints = midpoints_by_order(copies[a], copies[b], data)
        midpoints |= midpoints_shuffled(copies[a], copies[b], data, calibration)
        new["barrier"] |= {name: loss - new["endpoint_loss"] for name, loss in midpoints.items()}
        yield new | {"cpu_seconds": round(time.process_time() - started, 1)}


def measured(
    reference: PreTrainedModel,
    other: PreTrainedModel,
    data: DataLoader,
    calibration: DataLoader,
    arrangements: Sequence[Arrangement] = tuple(ARRANGEMENTS),
) -> PathReport:
    """Every repair of every arrangement."""
    return evaluate_path(
        reference,
        other,
        align(reference, other),
        data,
        POINTS,
        calibration=calibration,
        arrangements=arrangements,
        repairs=REPAIRS,
        routing_tokens=0,
        resamples=200,
        accelerator=Accelerator(cpu=True),
    )


def midpoints_by_order(reference: PreTrainedModel, other: PreTrainedModel, data: DataLoader) -> dict[str, float]:
    """The loss of the midpoint, plain and with norms kept, under the orders of experts that "aligned" chooses from."""
    found = {}
    for order in ORDERS:
        alignment = align(reference, other, order)
        found[order] = midpoint(reference, other.state_dict(), alignment, data, ())
        found[f"{order} + norms"] = midpoint(reference, other.state_dict(), alignment, data, ("norms",))
    return found


def midpoints_shuffled(
    reference: PreTrainedModel, other: PreTrainedModel, data: DataLoader, calibration: DataLoader
) -> dict[str, float]:
    """The loss of the midpoint to the shuffled end, aligned, under every repair."""
    report = measured(reference, shuffled(other), data, calibration, ("aligned",))
    chosen = report.repair.repairs if report.repair else ()
    chains = {"": ()} | {f" + {repair}": (repair,) for repair in REPAIRS} | {" + auto": chosen}
    curves = {name: report.curves[repaired_name("aligned", chain)] for name, chain in chains.items()}
    return {f"shuffled{name}": curve.evaluations[1].loss for name, curve in curves.items()}


def shuffled(model: PreTrainedModel) -> PreTrainedModel:
    """`model` with the entries of every tensor of its Mixtures of Experts shuffled."""
    copy = deepcopy(model)
    copy.load_state_dict(dict(shuffled_layers(model.state_dict(), alignable_layers(model))))
    return copy


def midpoint(
    reference: PreTrainedModel,
    other: Mapping[str, Tensor],
    alignment: Alignment,
    data: DataLoader,
    repairs: Sequence[Repair],
) -> float:
    """The loss of the aligned midpoint."""
    specs = alignable_layers(reference)
    with borrow(reference) as weights:
        weights.load(repaired_path(weights, moved(other, specs, alignment.symmetries), specs, repairs)(0.5))
        return evaluate(reference, data, Accelerator(cpu=True)).loss


def row(cell: str, pair: tuple[int, int], report: PathReport) -> dict[str, object]:
    """What is kept of one pair."""
    assert report.repair is not None
    ends = report.curves["naive"].evaluations
    barrier = {name: curve.barrier.loss_barrier for name, curve in report.curves.items()}
    single = {
        f"{arrangement}{repair}" for arrangement in ARRANGEMENTS for repair in ("", *(f" + {r}" for r in REPAIRS))
    }
    auto = {f"{name} + auto": barrier[repaired_name(name, report.repair.repairs)] for name in ARRANGEMENTS}
    return {
        "cell": cell,
        "pair": pair,
        "endpoint_loss": (ends[0].loss + ends[-1].loss) / 2,
        "chosen": report.repair.repairs,
        "barrier": {name: found for name, found in (barrier | auto).items() if name in single},
    }


def table(found: list[dict]) -> str:
    """Mean barrier per cell in per cent of naive, and in how many pairs a path is below the aligned one."""
    cells = [cell for cell in CELLS if any(row["cell"] == cell for row in found)]
    lines = ["| path | " + " | ".join(cells) + " |", "| --- |" + " ---: |" * len(cells)]
    for path in dict.fromkeys(path for row in found for path in row["barrier"]):
        line = []
        for cell in cells:
            pairs = [row for row in found if row["cell"] == cell]
            if any(path not in row["barrier"] for row in pairs):
                line.append("")
                continue
            naive = fmean(row["barrier"]["naive"] for row in pairs)
            values = [row["barrier"][path] for row in pairs]
            wins = sum(value < row["barrier"]["aligned"] - TIE for value, row in zip(values, pairs, strict=True))
            line.append(f"{fmean(values):.4f}, {100 * fmean(values) / naive:.1f} %, {wins}/{len(pairs)}")
        lines.append(f"| {path} | " + " | ".join(line) + " |")
    losses = [fmean(row["endpoint_loss"] for row in found if row["cell"] == cell) for cell in cells]
    kept = (Counter(repair for row in found if row["cell"] == cell for repair in row["chosen"]) for cell in cells)
    lines.append("| kept by auto | " + " | ".join(", ".join(f"{r} {n}" for r, n in one.items()) for one in kept) + " |")
    lines.append("| endpoints' loss | " + " | ".join(f"{loss:.3f}" for loss in losses) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the cells that are asked for, and renew the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cells", nargs="*", default=CELLS, help=f"of {', '.join(CELLS)}")
    options = parser.parse_args()
    torch.set_num_threads(1)
    RESULTS.mkdir(exist_ok=True)
    found = [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []
    for cell in options.cells:
        done = {tuple(row["pair"]) for row in found if row["cell"] == cell}
        for new in rows(cell, done):
            found.append(new)
            with ROWS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(new) + "\n")
    TABLE.write_text(table(found), encoding="utf-8")
    sys.stdout.write(table(found))


if __name__ == "__main__":
    main()
