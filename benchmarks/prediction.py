"""Seconds that `--dry-run` predicts: for models of every size, and beside runs that fit here.

python -m benchmarks.prediction              # a table for large models, from their configurations alone
python -m benchmarks.prediction --check [--layers 10] [--sparse 55] [--folder FOLDER]

Both measure this machine first. The table is of aligning and merging two models in bfloat16, by processes that each
have the cores that this one has, and share its disk. `--check` runs `align` and `merge` on a pair of `benchmarks.pair`
(10 layers: 2 GB a model, 6 GB of disk), by one process and by two with one thread each, and a merge by a given
alignment of sparse files (55 layers: 10 GB a model, 10 GB of disk); what starting and opening takes is measured, and
subtracted.
"""

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from transformers import DeepseekV3Config, MixtralConfig, OlmoeConfig, PreTrainedConfig, Qwen3MoeConfig

from hf_moe_lmc import MoeAligner
from hf_moe_lmc.adapters import alignable_layers
from hf_moe_lmc.aligner import plan_align, plan_merge
from hf_moe_lmc.alignment import AlignmentConfig, CheckedModels, Machine, OpenedModel, Plan, Resources, WriteOptions
from hf_moe_lmc.alignment.plan import both, plan_alignment, plan_writing
from hf_moe_lmc.checkpoints import meta_model
from hf_moe_lmc.progress import duration

from .memory import write_sparse
from .merge_vs_mergekit import OURS, measure
from .pair import configuration, write_pair

PROCESSES = (1, 8, 64)
MODELS: dict[str, PreTrainedConfig] = {
    "OLMoE-1B-7B": OlmoeConfig(intermediate_size=1024),
    "Qwen3-30B-A3B": Qwen3MoeConfig(num_hidden_layers=48, head_dim=128, intermediate_size=6144),
    "Mixtral-8x7B": MixtralConfig(),
    "DeepSeek-V3": DeepseekV3Config(),
    "2 T: DeepSeek-V3 with 768 experts": DeepseekV3Config(n_routed_experts=768),
}
ARCHITECTURES = {"olmoe": "OlmoeForCausalLM", "qwen3_moe": "Qwen3MoeForCausalLM", "mixtral": "MixtralForCausalLM"}
OPEN = "import sys; from hf_moe_lmc import MoeAligner; MoeAligner.from_pretrained(*sys.argv[1:])"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--no-python"]


def plan_of(config: PreTrainedConfig) -> Plan:
    """Needs of aligning and merging two models of a configuration, in bfloat16."""
    config.architectures = [ARCHITECTURES.get(config.model_type, "DeepseekV3ForCausalLM")]
    skeleton = meta_model(config).to(torch.bfloat16)
    opened = OpenedModel("model", skeleton, {}, alignable_layers(skeleton))
    models = CheckedModels((opened, opened), ())
    return both(
        plan_alignment(models, AlignmentConfig(), Resources("cpu")),
        plan_writing(models, [opened], Path(), WriteOptions()),
    )


def table(machine: Machine) -> str:
    """Markdown: a row per model."""
    head = ("model", "parameters", "read", "written", "memory of a process", *map(str, PROCESSES), "disk alone")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, config in MODELS.items():
        plan = plan_of(config)
        sizes = [f"{size / 1e9:,.0f} GB" for size in (plan.read, plan.written, plan.memory)]
        disk = replace(machine, matched=0, unit_pairs=0, experts=0, averaged=0).seconds(plan)
        times = [duration(seconds) for seconds in (*(machine.seconds(plan, number) for number in PROCESSES), disk)]
        lines.append(f"| {' | '.join([name, f'{plan.written / 2e9:,.0f} B', *sizes, *times])} |")
    return "\n".join(lines) + "\n"


def check(pair: Path, commands: dict[str, list[str]], plans: dict[str, Plan], processes: int) -> None:
    """Run commands, and write a line for each: predicted and measured seconds."""
    sides, launcher = [str(pair / "a"), str(pair / "b")], TORCHRUN if processes > 1 else []
    start = measure("start", [*launcher, sys.executable, "-c", OPEN, *sides]).wall
    for name, command in commands.items():
        machine = Machine.measured(plans[name].source, pair)
        predicted = machine.seconds(plans[name], processes)
        taken = measure(name, [*launcher, *OURS, name.partition(",")[0], *sides, *command, "--overwrite"]).wall - start
        size = plans[name].written / 1e9 or plans[name].read / 2e9
        row = f"| {name} | {size:.1f} | {processes} | {predicted:.1f} | {taken:.1f} | {predicted / taken:.2f} |\n"
        sys.stdout.write(row)
        sys.stdout.flush()


def check_all(folder: Path, layers: int, sparse: int) -> None:
    """The table of `--check`."""
    head = "| | GB | processes | predicted, s | measured, s | predicted / measured |"
    sys.stdout.write(f"{head}\n|---|---|---|---|---|---|\n")
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        pair = Path(temporary)
        aligner = MoeAligner.from_pretrained(*write_pair(pair, configuration(layers)))
        alignment, out = str(pair / "alignment"), str(pair / "out")
        plans = {
            "align": plan_align(aligner),
            "merge, by an alignment": plan_merge(aligner, "none", output=out),
            "merge, aligning first": plan_merge(aligner, "auto", output=out),
        }
        commands = {
            "align": ["-o", alignment],
            "merge, by an alignment": ["--alignment", alignment, "-o", out],
            "merge, aligning first": ["-o", out],
        }
        for processes in (1, 2):
            check(pair, commands, plans, processes)
    if sparse:
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            pair = Path(temporary)
            write_sparse(pair, sparse)
            out = str(pair / "out")
            plan = plan_merge(MoeAligner.from_pretrained(pair / "a", pair / "b"), "none", output=out)
            name = "merge, by an alignment"
            check(pair, {name: ["--alignment", str(pair / "alignment"), "-o", out]}, {name: plan}, 1)


def main() -> None:
    """Print one of the two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="run what fits here")
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--sparse", type=int, default=55, help="layers of the sparse files; 0 for none")
    parser.add_argument("--folder", type=Path, help="where the disk has room")
    options = parser.parse_args()
    if options.check:
        torch.set_num_threads(1)
        check_all(options.folder, options.layers, options.sparse)
    else:
        machine = Machine.measured(__file__, options.folder or tempfile.gettempdir())
        sys.stdout.write(f"{machine}\n\n{table(machine)}")


if __name__ == "__main__":
    main()
