"""The demo from end to end."""

import json
import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict
from importlib.metadata import version
from itertools import combinations
from pathlib import Path
from typing import cast

import numpy as np
from accelerate import Accelerator
from torch.utils.data import DataLoader, Subset
from transformers import PreTrainedModel

from hf_moe_lmc.aligner import MoeAligner
from hf_moe_lmc.alignment import SavedWeights
from hf_moe_lmc.connectivity import evaluate, plot_barriers
from hf_moe_lmc.errors import BadInputError, OutputError
from hf_moe_lmc.workers import one_thread_per_operation

from .comparison import Bench, compare_methods, scramble_and_recover
from .digits import digits_file, load_digits
from .recipe import Recipe
from .report import MERGE_METHOD, PairResult, Report, demo_card
from .training import finetune, pretrain, save_whole

RECIPE_NAME, REPORT_NAME = "recipe.json", "report.json"
EVALUATION_BATCH = 500
PACKAGES = ("hf_moe_lmc", "torch", "transformers", "accelerate", "scipy")
PLOTTED = {
    "naive": "naive",
    "rescale_control": "naive + rescale",
    "units": "units",
    "gate": "gate",
    "joint": "joint",
}
"""Method -> its path in the plot."""


@one_thread_per_operation()
def run_demo(out: Path, seeds: Sequence[int], recipe: Recipe) -> Report:
    """Train one Mixture-of-Experts ViT per seed on MNIST, align and merge every pair, and measure all paths.

    Writes into `out`: `dense/`, `endpoints/seed-S/`, `alignments/A-B/`, `merged/`, `barrier.png`, `report.json` and
    the card `README.md`. Models that `out` holds already are not trained again, so a killed run goes on; the report of
    a finished run of the same seeds and versions is returned as it is.

    Args:
        out: a new or empty folder, or that of an earlier run of the same recipe.
        seeds: at least two, all different.
        recipe: the settings.

    Raises:
        BadInputError: too few seeds, several processes, or the digits are missing.
        OutputError: `out` is a file, or holds something else.
    """
    started = time.perf_counter()
    if len(seeds) < 2 or len(set(seeds)) < len(seeds):
        raise BadInputError(f"the demo compares pairs: give at least two different seeds, not {list(seeds)}")
    accelerator = Accelerator()
    if accelerator.num_processes > 1:
        raise BadInputError(f"the demo runs in one process, not in {accelerator.num_processes}; start it by itself")
    train, test = load_digits(digits_file())
    _claim(out, recipe)
    versions = {package: version(package) for package in PACKAGES}
    if report := _earlier(out, seeds, versions):
        return report

    batches = accelerator.prepare(DataLoader(test, batch_size=EVALUATION_BATCH))
    calibration = Subset(train, range(recipe.calibration_images))
    dense = pretrain(out / "dense", recipe, train, accelerator)
    models = {
        seed: finetune(out / "endpoints" / f"seed-{seed}", dense, seed, recipe, train, accelerator).to(
            accelerator.device
        )
        for seed in seeds
    }
    endpoints = {seed: evaluate(model, batches, accelerator) for seed, model in models.items()}

    bench = Bench(
        saved=SavedWeights(deepcopy(models[seeds[0]])),
        batches=batches,
        calibration=list(accelerator.prepare(DataLoader(calibration, batch_size=len(calibration)))),
        points=tuple(np.linspace(0, 1, recipe.points).tolist()),
        accelerator=accelerator,
    )
    pairs = []
    for a, b in combinations(seeds, 2):
        methods, alignments = compare_methods(models[a], models[b], bench)
        alignments[MERGE_METHOD].save_pretrained(out / "alignments" / f"{a}-{b}")
        if not pairs:
            merged = MoeAligner.from_pretrained(models[a], models[b]).merge(alignments[MERGE_METHOD], force=True)
            save_whole(cast(PreTrainedModel, merged), out / "merged")
        pairs.append(PairResult((a, b), methods))
    scramble = scramble_and_recover(models[seeds[0]], deepcopy(models[seeds[0]]), seeds[0], bench)

    report = Report(
        recipe.variant,
        tuple(seeds),
        time.perf_counter() - started,
        versions,
        {str(seed): {"loss": endpoint.loss, "accuracy": endpoint.accuracy} for seed, endpoint in endpoints.items()},
        tuple(pairs),
        scramble,
    )
    curves = {path: [pair.methods[method].barrier for pair in report.pairs] for method, path in PLOTTED.items()}
    plot_barriers(
        curves,
        out / "barrier.png",
        f"Paths between MoE ViTs ({recipe.variant}) fine-tuned apart, MNIST; mean and range of {len(pairs)} pair(s)",
    )
    demo_card(report, recipe).save(out / "README.md")
    (out / REPORT_NAME).write_text(json.dumps(report.to_json(), indent=1) + "\n", encoding="utf-8")
    return report


def _earlier(out: Path, seeds: Sequence[int], versions: dict[str, str]) -> Report | None:
    """The report that `out` holds, if it is of these seeds and versions."""
    try:
        report = Report.from_json(json.loads((out / REPORT_NAME).read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        return None  # none, or one of an earlier version of this package
    return report if (report.seeds, report.versions) == (tuple(seeds), versions) else None


def _claim(out: Path, recipe: Recipe) -> None:
    """Make `out` this recipe's folder, or refuse it untouched."""
    wanted, marker = json.loads(json.dumps(asdict(recipe))), out / RECIPE_NAME
    if out.exists() and not out.is_dir():
        raise OutputError(f"the output folder {out} is a file; name a folder with --output")
    if marker.exists():
        try:
            claimed = json.loads(marker.read_text(encoding="utf-8"))
        except ValueError:
            claimed = {}
        if different := [name for name in wanted if claimed.get(name) != wanted[name]]:
            name = different[0]
            raise OutputError(
                f"{out} holds a demo run with {name} = {claimed.get(name)}, not {wanted[name]}; choose another --output"
            )
        return
    if out.exists() and any(out.iterdir()):
        raise OutputError(f"{out} is not empty and no demo run; choose another --output")
    try:
        out.mkdir(parents=True, exist_ok=True)
        marker.write_text(json.dumps(wanted, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{out} cannot be written: {error.strerror}; choose another --output") from error
