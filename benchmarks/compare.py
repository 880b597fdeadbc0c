"""Comparing two models: what it costs beside `align`, and how far chance goes.

python -m benchmarks.compare cost [--layers 2] [--json FILE]
python -m benchmarks.compare chance [--pairs 12] [--json FILE]

`cost`: CPU seconds and peak memory of `hf-moe-lmc compare`, `hf-moe-lmc align`, and of reading both checkpoints once,
for checkpoints of two shapes, one process with one thread after the other.
`chance`: how well z tells related pairs of small models from unrelated ones, in six families: each related one is a
model with every expert and unit at another place, and noise of 1, 2 or 4 times the weights. Nothing in the statistic
was fit to them. The statistics of arXiv:2510.06738 and arXiv:2502.12292 are not beside it: no code could be had here.
"""

import argparse
import copy
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedModel

from hf_moe_lmc import compare, scramble
from hf_moe_lmc.matching import CERTAIN

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
            for case, pair in write_cases(folder, configuration(*sizes, layers)).items():
                models = [str(model) for model in pair]
                found: dict[str, Cost] = {
                    "read": measure("read", [sys.executable, "-c", READ, *models]),
                    "compare": measure("compare", [*OURS, "compare", *models]),
                    "align": measure("align", [*OURS, "align", *models, "-o", str(folder / "o"), "--overwrite"]),
                }
                yield {"shape": shape, "case": case} | {key: asdict(cost) for key, cost in found.items()}


def show_cost(row: dict[str, object]) -> str:
    """CPU seconds and gigabytes."""
    cells = [f"{row[key]['cpu']:.1f} s, {row[key]['peak_memory'] / 1e9:.2f} GB" for key in ("read", "compare", "align")]
    return f"| {row['shape']} | {row['case']} | {' | '.join(cells)} |"


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
    lines = ["| z of | noise | number | AUC | share with z >= 6 | smallest to largest z |", "|---|---|---|---|---|---|"]
    for what, z in (("pairs", lambda row: [row["z"]]), ("experts", lambda row: row["experts"])):
        by = {noise: [x for row in rows if row["noise"] == noise for x in z(row)] for noise in (None, *NOISES)}
        for noise, own in by.items():
            wins = [(x > y) + (x == y) / 2 for x in own for y in by[None]]
            auc = "" if noise is None else f"{sum(wins) / len(wins):.4f}"
            share = f"{sum(x >= CERTAIN for x in own) / len(own):.1%}"
            named = "unrelated" if noise is None else f"{noise:g}"
            lines.append(f"| {what} | {named} | {len(own)} | {auc} | {share} | {min(own):.1f} to {max(own):.1f} |")
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
    return {"z": comparison.z, "related": comparison.related, "experts": experts}


def main() -> None:
    """Print rows as they come; keep all of them in a file if one is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("cost", "chance"))
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=12, help="related and unrelated ones, each, of every family")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    for row in costs(options.layers) if options.what == "cost" else scores(options.pairs):
        rows.append(row)
        if options.what == "cost":
            sys.stdout.write(show_cost(row) + "\n")
            sys.stdout.flush()
    if options.what == "chance":
        sys.stdout.write(show_roc(rows))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
