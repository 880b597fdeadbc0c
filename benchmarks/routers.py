"""Routers of merged fine-tunes: naive, aligned, the repair `router`, and the solver that its authors published.

    git clone https://github.com/huangcb01/HARC
    python -m benchmarks.routers --harc HARC        # a killed run goes on

A small language model is trained on the manual that ships with Python, one character per token; two copies of it are
fine-tuned, one on each half of the topics, and their routers move far: either they learn 30 times as fast as the rest
("fast"), or they are re-initialised first ("new"). Figures are the loss of the midpoint on held-out text of both halves
above the mean of the two fine-tunes there, in nats: mean over seeds, and in how many seeds it is below "aligned";
"one router" is one fine-tune's router on the aligned mean (mean of both), "chain" is norms, gram, moments, "published"
is HARC (arXiv:2606.03391): functions of its repository, at the setting of its scripts (0.9), the router of each
fine-tune on tokens of its own half; ours takes all tokens for both. No setting was chosen on any of this.

"agreement" is `|W - W'| / |W - mean|` of our W and the published solver's W' on the same tensors (the same tokens for
both fine-tunes, our ridge and its shrinkage off), the largest of all layers.
"""

import argparse
import ast
import json
import logging
import sys
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, set_seed

from hf_moe_lmc.adapters import MoeLayerSpec
from hf_moe_lmc.alignment import AlignmentConfig, CheckedModels, Weights, align_pair, open_models, temporarily_loaded
from hf_moe_lmc.connectivity import Calibrated, CalibrationData, evaluate, variant_weights
from hf_moe_lmc.connectivity.calibration import gather_statistics
from hf_moe_lmc.connectivity.data import Blocks
from hf_moe_lmc.demo.training import train
from hf_moe_lmc.merging import AUTOMATIC, LayerStatistics, router
from hf_moe_lmc.moe import Router

from .repair import HALF, _language_model, manual

RESULTS = Path(__file__).parent / "results"
ROWS, TABLE = RESULTS / "routers.jsonl", RESULTS / "routers.md"
FAMILIES, MOVES, SEEDS = ("mixtral", "qwen2_moe"), ("fast", "new"), (71, 72, 73)
STEPS, TUNING_STEPS, BATCH, LR, ROUTER_LR = 150, 80, 16, 3e-3, 9e-2
HELD_OUT, CALIBRATION = 64, 32
TIE = 1e-4  # nats
SHRINKAGE = 0.9  # of the published scripts: what is left of the matrix off its diagonal
Solver = Callable[[Sequence[Tensor], Sequence[Router], Router, float], Tensor]


def published_solver(checkout: Path) -> Solver:
    """(tokens of each endpoint, their routers, start, shrinkage) -> the router that HARC's own functions find."""
    module = ast.parse((checkout / "src/merge_method/router_calibration_cg.py").read_text())
    wanted = ("_compute_sigma_w_worker", "_conjugate_gradient")
    code: dict[str, Any] = {"torch": torch, "Tensor": Tensor, "Callable": Callable, "logger": logging.getLogger("HARC")}
    parts = ast.Module([part for part in module.body if isinstance(part, ast.FunctionDef) and part.name in wanted], [])
    exec(compile(parts, "HARC", "exec"), code)

    def solve(tokens: Sequence[Tensor], routers: Sequence[Router], start: Router, shrinkage: float) -> Tensor:
        code["ctx"] = SimpleNamespace(device="cpu", hidden_state_tensors=[[own.double()] for own in tokens])
        rows = [own.weight.double() for own in routers]

        def form(flat: Tensor | None) -> Tensor:
            total = torch.zeros_like(rows[0]).flatten()
            for i, own in enumerate(rows):
                target = own if flat is None else flat.view_as(own)
                product, diagonal = code["_compute_sigma_w_worker"](i, own, target)
                mixed = shrinkage * product + (1 - shrinkage) * diagonal * target.flatten()
                total += mixed / len(tokens[i])
            return total

        found = code["_conjugate_gradient"](form, form(None), start.weight.double().flatten(), None, 1000, 1e-6)
        return found.view_as(rows[0])

    return solve


def halves() -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Blocks to train on, to calibrate on and to evaluate on, of each half of the topics."""
    parts = manual().chunk(2)
    spread = torch.linspace(0, len(parts[1]) - HELD_OUT - 1, CALIBRATION).long()
    return [part[:-HELD_OUT] for part in parts], [part[spread] for part in parts], [part[-HELD_OUT:] for part in parts]


def tuned(model: PreTrainedModel, blocks: Tensor, steps: int, seed: int, router_lr: float = LR) -> PreTrainedModel:
    """The model, trained in place; its routers with a learning rate of their own."""
    routers = [p for name, p in model.named_parameters() if name.endswith("mlp.gate.weight")]
    rest = [p for p in model.parameters() if all(p is not own for own in routers)]
    groups: list[dict[str, object]] = [{"params": routers, "lr": router_lr}, {"params": rest, "lr": LR}]
    drawn = torch.randint(len(blocks), (steps * BATCH,), generator=torch.Generator().manual_seed(seed))
    options = {"epochs": 1, "batch_size": BATCH, "seed": seed, "accelerator": Accelerator(cpu=True)}
    return train(model, Blocks(blocks[drawn]), groups, description=f"seed {seed}", **options).eval()


def fine_tunes(base: PreTrainedModel, move: str, seed: int) -> list[PreTrainedModel]:
    """Two fine-tunes of one base, each on its half, with routers far from the base's."""
    models = []
    for number, blocks in enumerate(halves()[0]):
        model = deepcopy(base)
        if move == "new":
            set_seed(10 * seed + number)
            for layer in model.model.layers:
                torch.nn.init.normal_(layer.mlp.gate.weight, std=layer.mlp.gate.weight.std().item())
        models.append(tuned(model, blocks, TUNING_STEPS, seed + number, ROUTER_LR if move == "fast" else LR))
    return models


def measured(models: Sequence[PreTrainedModel], solver: Solver) -> dict[str, object]:
    """Loss of every midpoint above the mean of the endpoints."""
    accelerator, (_, calibration, held_out) = Accelerator(cpu=True), halves()
    data = DataLoader(Blocks(torch.cat(held_out)), batch_size=32)
    batches = [list(DataLoader(Blocks(blocks), batch_size=8)) for blocks in calibration]
    endpoint = fmean(evaluate(model, data, accelerator).loss for model in models)
    reference, (pair, losses) = models[0], (open_models(models), {})
    with temporarily_loaded(reference) as saved:
        pair = CheckedModels((replace(pair.reference, tensors=saved), *pair.others))
        alignment = align_pair(pair, AlignmentConfig())
        specs = pair.reference.layers

        def note(name: str, weights: Weights) -> None:
            saved.load(weights)
            losses[name] = evaluate(reference, data, accelerator).loss - endpoint

        for variant in ("naive", "aligned"):
            other = variant_weights(variant, pair, alignment, seed=0)
            both = CalibrationData([batch for own in batches for batch in own])
            calibrated = Calibrated(saved, [saved, other], specs, both, accelerator, variant == "aligned")
            chains = {
                "": (),
                " + router": ("router",),
                " + chain": AUTOMATIC,
                " + chain + router": (*AUTOMATIC, "router"),
            }
            for name, chain in chains.items():
                note(f"{variant}{name}", calibrated.weights(HALF, chain))
        mean = dict(calibrated.weights(HALF, ()))
        routers = {spec.name: [spec.read(weights).router for weights in (saved, other)] for spec in specs}
        swapped = []
        for number in range(2):
            note("one router", mean | {_gate(spec): routers[spec.name][number].weight for spec in specs})
            swapped.append(losses["one router"])
        losses["one router"] = fmean(swapped)
        own = [gather_statistics(saved, mean, specs, part) for part in batches]
        solved = {}
        for spec in specs:
            tokens, start = [part[spec.name].experts.tokens for part in own], spec.read(mean).router
            solved[_gate(spec)] = solver(tokens, routers[spec.name], start, SHRINKAGE).float()
        note("aligned + published", mean | solved)
        statistics = calibrated.statistics(HALF)
        agreement = max(
            _agreement(solver, routers[spec.name], spec.read(mean).router, statistics[spec.name]) for spec in specs
        )
    in_place = all(symmetry.experts.is_identity for symmetry in alignment.symmetries.values())
    moved = fmean(_cosine(*routers[spec.name]) for spec in specs)
    return {
        "endpoints": endpoint,
        "above": losses,
        "agreement": agreement,
        "in place": in_place,
        "router cosine": moved,
    }


def _agreement(solver: Solver, routers: Sequence[Router], mean: Router, statistics: LayerStatistics) -> float:
    """`|W - W'| / |W - mean|`, without ridge and shrinkage."""
    tokens = statistics.experts.tokens
    theirs = solver([tokens] * len(routers), routers, mean, 1.0)
    with mock.patch.multiple(router, SHRINKAGE=0.0, ITERATIONS=1000):
        ours = router.solve_router(mean, routers, HALF, True, statistics).weight.double()
    return float((ours - theirs).norm() / (ours - mean.weight).norm())


def _gate(spec: MoeLayerSpec) -> str:
    return dict(spec.router.tensors)["weight"]  # type: ignore[union-attr]


def _cosine(a: Router, b: Router) -> float:
    return float(torch.cosine_similarity(a.weight.flatten(), b.weight.flatten(), dim=0))


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown."""
    cells = [
        (cell, [row for row in rows if [row["family"], row["move"]] == list(cell)]) for cell in product(FAMILIES, MOVES)
    ]
    cells = [(cell, own) for cell, own in cells if own]
    lines = ["| nats above the fine-tunes | " + " | ".join(f"{family}, {move}" for (family, move), _ in cells) + " |"]
    lines.append("| --- |" + " ---: |" * len(cells))
    for path in rows[0]["above"]:
        values = [[row["above"][path] for row in own] for _, own in cells]
        wins = [sum(row["above"][path] < row["above"]["aligned"] - TIE for row in own) for _, own in cells]
        shown = (f"{fmean(own):.4f}, {win}/{len(own)}" for own, win in zip(values, wins, strict=True))
        lines.append(f"| {path} | {' | '.join(shown)} |")
    for name in ("endpoints", "agreement", "router cosine"):
        extreme = max if name == "agreement" else fmean
        form = ".0e" if name == "agreement" else ".3f"
        lines.append(
            f"| {name} | " + " | ".join(format(extreme([row[name] for row in own]), form) for _, own in cells) + " |"
        )
    found = (f"{sum(row['in place'] for row in own)}/{len(own)}" for _, own in cells)
    return "\n".join([*lines, f"| experts found in place | {' | '.join(found)} |"]) + "\n"


def main() -> None:
    """Measure what is missing, and renew the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--harc", type=Path, required=True, help="a clone of its repository")
    options = parser.parse_args()
    torch.set_num_threads(1)
    solver = published_solver(options.harc)
    rows = [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []
    for family, seed in product(FAMILIES, SEEDS):
        missing = [
            move for move in MOVES if not any((r["family"], r["move"], r["seed"]) == (family, move, seed) for r in rows)
        ]
        if not missing:
            continue
        set_seed(seed)
        base = tuned(_language_model(family), torch.cat(halves()[0]), STEPS, seed)
        for move in missing:
            rows.append({"family": family, "move": move, "seed": seed} | measured(fine_tunes(base, move, seed), solver))
            with ROWS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(rows[-1]) + "\n")
            TABLE.write_text(table(rows), encoding="utf-8")
    sys.stdout.write(table(rows))


if __name__ == "__main__":
    main()
