"""Comparing two models: is every expert named right, the cost beside `align`, and how far chance goes.

python -m benchmarks.compare truth [--seed 1] [--json FILE]
python -m benchmarks.compare cost [--layers 2] [--json FILE]
python -m benchmarks.compare chance [--pairs 12] [--json FILE]

`truth`: everything that can be done to an expert, and every two things, in layers of six families; without a symmetry,
with a random one before, after, or on both sides; with nothing, rounding to bfloat16, or noise of 1 % on top (of two
things with noise only).
`cost`: CPU seconds and peak memory of `hf-moe-lmc compare`, `hf-moe-lmc align`, and of reading both checkpoints once,
for checkpoints of two shapes, one process with one thread after the other.
`chance`: how well z tells related pairs of small models from unrelated ones, in six families: each related one is a
model with every expert and unit at another place, and noise of 1, 2 or 4 times the weights. Nothing in the statistic
was fit to them. Beside it the statistics of arXiv:2510.06738 and arXiv:2502.12292, from their descriptions.
"""

import argparse
import copy
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedModel

from hf_moe_lmc import compare, scramble
from hf_moe_lmc.matching import CERTAIN

from .fingerprints import awm, match
from .merge_vs_mergekit import OURS, Cost, measure

READ = """import sys
from hf_moe_lmc.alignment import open_model
for model in map(open_model, sys.argv[1:]):
    for name in model.sizes:
        model.read([name])
"""
SHAPES = {"8 experts of 3584": (8, 3584, 1024), "64 experts of 768": (64, 768, 1024)}
CASES = ("identical", "in place, 1 % noise", "scrambled, 1 % noise", "unrelated")
FAMILIES = ("mixtral", "qwen2_moe", "gpt_oss", "deepseek_v3", "switch_transformers", "nemotron_h")
NOISES = (1.0, 2.0, 4.0)
SYMMETRIES = ("never", "before", "after", "between")
TOPS = ("nothing", "bfloat16", "noise")
EXPERTS = 24


def configuration(experts: int, units: int, hidden: int, layers: int) -> MixtralConfig:
    """Mixtral in bfloat16 with next to nothing but experts."""
    return MixtralConfig(
        vocab_size=256,
        hidden_size=hidden,
        intermediate_size=units,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=2,
        num_local_experts=experts,
        num_experts_per_tok=2,
        dtype=torch.bfloat16,
    )


@torch.no_grad()
def write_cases(folder: Path, config: MixtralConfig) -> dict[str, tuple[Path, Path]]:
    """Case -> the folders of its pair."""
    torch.manual_seed(0)
    model = MixtralForCausalLM(config).to(torch.bfloat16).eval()
    for parameter in model.parameters():
        parameter.normal_(std=0.02)
    model.save_pretrained(folder / "a")
    pairs = {"identical": (folder / "a", folder / "a")}
    for case in CASES[1:]:
        other = copy.deepcopy(model)
        if case.startswith("scrambled"):
            scramble(other)
        for parameter in other.parameters():
            if case == "unrelated":
                parameter.normal_(std=0.02)
            else:
                parameter.add_(torch.randn_like(parameter) * (0.01 * parameter.std()))
        other.save_pretrained(folder / case.split(",")[0])
        pairs[case] = (folder / "a", folder / case.split(",")[0])
    return pairs


def costs(layers: int) -> Iterator[dict[str, object]]:
    """One row for every shape and case."""
    for shape, sizes in SHAPES.items():
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            # A process counts the memory of the one that starts it.
            with ProcessPoolExecutor(1, get_context("spawn")) as own_process:
                pairs = own_process.submit(write_cases, folder, configuration(*sizes, layers)).result()
            for case, pair in pairs.items():
                models = [str(model) for model in pair]
                found: dict[str, Cost] = {
                    "read": measure("read", [sys.executable, "-c", READ, *models]),
                    "compare": measure("compare", [*OURS, "compare", *models]),
                    "align": measure("align", [*OURS, "align", *models, "-o", str(folder / "o"), "--overwrite"]),
                }
                yield {"shape": shape, "case": case} | {key: asdict(cost) for key, cost in found.items()}


def show_cost(rows: list[dict[str, Any]]) -> str:
    """CPU seconds and gigabytes."""
    lines = ["| experts | B | reading both | compare | align |", "|---|---|---|---|---|"]
    for row in rows:
        costs = [row[key] for key in ("read", "compare", "align")]
        cells = [f"{cost['cpu']:.1f} s, {cost['peak_memory'] / 1e9:.2f} GB" for cost in costs]
        lines.append(f"| {row['shape']} | {row['case']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def scores(pairs: int) -> Iterator[dict[str, object]]:
    """One row for every pair: its family, noise in units of the weights (None of unrelated ones), and z of experts."""
    from tests.families import build

    for family in FAMILIES:
        for seed in range(pairs):
            a, noise = build(family, experts=6, seed=1000 + seed), NOISES[seed % len(NOISES)]
            for kind, b in ((None, build(family, experts=6, seed=2000 + seed)), (noise, _noisy(a, noise, seed))):
                yield {"family": family, "noise": kind} | _scores(a, b)


def show_roc(rows: list[dict[str, Any]]) -> str:
    """Of pairs and of their experts: area under the ROC curve, and the shares above the threshold."""
    lines = [
        "| statistic | noise | number | AUC | share with z >= 6 | smallest to largest |",
        "|---|---|---|---|---|---|",
    ]
    for what, z in (
        ("z of pairs", lambda row: [row["z"]]),
        ("z of experts", lambda row: row["experts"]),
        ("MATCH, arXiv:2502.12292: -log10 p of pairs", lambda row: [row["match"]]),
        ("AWM, arXiv:2510.06738: mean CKA of pairs", lambda row: [row["awm"]]),
    ):
        by = {noise: [x for row in rows if row["noise"] == noise for x in z(row)] for noise in (None, *NOISES)}
        for noise, own in by.items():
            wins = [(x > y) + (x == y) / 2 for x in own for y in by[None]]
            auc = "" if noise is None else f"{sum(wins) / len(wins):.4f}"
            share = f"{sum(x >= CERTAIN for x in own) / len(own):.1%}" if what.startswith("z") else ""
            named = "unrelated" if noise is None else f"{noise:g}"
            lines.append(f"| {what} | {named} | {len(own)} | {auc} | {share} | {min(own):.3g} to {max(own):.3g} |")
    return "\n".join(lines) + "\n"


@torch.no_grad()
def _noisy(model: PreTrainedModel, noise: float, seed: int) -> PreTrainedModel:
    other = copy.deepcopy(model)
    scramble(other, seed)
    generator = torch.Generator().manual_seed(seed)
    for parameter in other.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator) * noise * parameter.std())
    return other


def _scores(a: PreTrainedModel, b: PreTrainedModel) -> dict[str, object]:
    comparison = compare(a, b)
    experts = [expert.z for layer in comparison.layers for expert in layer.experts]
    return {
        "z": comparison.z,
        "related": comparison.related,
        "experts": experts,
        "match": match(a, b),
        "awm": awm(a, b),
    }


def truths(seed: int) -> Iterator[dict[str, object]]:
    """One row for every family, symmetry, change on top, and number of things at once: slots by what was done."""
    from tests.comparison.plants import case, pairs, plants
    from tests.families import build

    for family in FAMILIES:
        model = build(family, experts=EXPERTS, seed=seed)
        for number, things in (("alone", [*plants(family)]), ("two", pairs(family))):
            for symmetry, top in product(SYMMETRIES, TOPS if number == "alone" else TOPS[-1:]):
                slots, wrong = Counter[str](), list[str]()
                for start in range(0, len(things), EXPERTS - 1):
                    one = case(model, dict(enumerate(things[start : start + EXPERTS - 1], 1)), symmetry, top, start)
                    slots.update(thing.__name__ if thing else "nothing" for thing in one.things)
                    wrong += one.wrong
                yield {
                    "family": family,
                    "symmetry": symmetry,
                    "top": top,
                    "things": number,
                    "slots": slots,
                    "wrong": wrong,
                }


def show_truth(rows: list[dict[str, Any]]) -> str:
    """Slots named right, by what was done and when the symmetry acted; and all that was named wrong."""
    lines = [f"| what was done | {' | '.join(SYMMETRIES)} |", f"|---{'|---' * len(SYMMETRIES)}|"]
    slots, wrong, examples = Counter[tuple[str, str]](), Counter[tuple[str, str]](), dict[tuple[str, str], str]()
    for row in rows:
        for thing, count in row["slots"].items():
            slots[_kinds(thing), row["symmetry"]] += count
        for text in row["wrong"]:
            thing = text.partition(": ")[0]
            wrong[_kinds(thing), row["symmetry"]] += 1
            examples.setdefault((_kinds(thing), row["symmetry"]), f"{text} ({row['family']}, {row['top']} on top)")
    for thing in dict.fromkeys(thing for thing, _ in slots):
        cells = [f"{slots[thing, when] - wrong[thing, when]} of {slots[thing, when]}" for when in SYMMETRIES]
        lines.append(f"| {thing} | {' | '.join(cells)} |")
    total, right = sum(slots.values()), sum(slots.values()) - sum(wrong.values())
    lines += ["", f"{right} of {total} right.{' The first of each that is not:' if examples else ''}", ""]
    lines += [f"- symmetry {symmetry}: {text}" for (_, symmetry), text in examples.items()]
    return "\n".join(lines) + "\n"


def _kinds(thing: str) -> str:
    """Two at a time, by the kinds that they are of."""
    kinds = {"swap": "swapped", "inte": "interleaved", "join": "interleaved", "tran": "transposed", "scal": "scaled"}
    parts = thing.split(" + ")
    return thing if len(parts) == 1 else " + ".join(kinds.get(part[:4], part) for part in parts)


def main() -> None:
    """Print a table; keep its rows in a file if one is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("truth", "cost", "chance"))
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1, help="of the models whose experts are broken")
    parser.add_argument("--pairs", type=int, default=12, help="related and unrelated ones, each, of every family")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    measured, show = {
        "truth": (lambda: truths(options.seed), show_truth),
        "cost": (lambda: costs(options.layers), show_cost),
        "chance": (lambda: scores(options.pairs), show_roc),
    }[options.what]
    rows = list(measured())
    sys.stdout.write(show(rows))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
