"""What a path of T points costs, in plain evaluations: CPU seconds on one thread, loading of both models left out.

python -m benchmarks.path_cost [--points 25] [--blocks 64]
"""

import argparse
import sys
import time
from collections.abc import Callable
from copy import deepcopy

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from transformers import MixtralConfig, MixtralForCausalLM

from hf_moe_lmc import align, scramble
from hf_moe_lmc.adapters import moe_layers
from hf_moe_lmc.alignment import aligned, merged, temporarily_loaded
from hf_moe_lmc.connectivity import evaluate, linear_path, measure, points_of
from hf_moe_lmc.connectivity.data import Blocks


def main() -> None:
    """Time plain evaluations and paths over a random Mixtral of 23 M parameters."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=25)
    parser.add_argument("--blocks", type=int, default=64, help="of 256 tokens")
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = MixtralConfig(
        vocab_size=8192,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        num_local_experts=8,
    )
    model = MixtralForCausalLM(config).eval()
    other, _ = scramble(deepcopy(model))
    tokens = torch.randint(config.vocab_size, (options.blocks, 256), generator=torch.Generator().manual_seed(0))
    data, accelerator = DataLoader(Blocks(tokens), batch_size=8), Accelerator(cpu=True)
    loader, points, specs = accelerator.prepare(data), points_of(options.points), moe_layers(model)
    evaluate(model, loader, accelerator)  # the first one allocates

    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    sys.stdout.write(f"{millions:.0f} M parameters, {tokens.numel()} tokens, {len(points)} points\n")
    with temporarily_loaded(model) as saved:
        rewritten = aligned(other.state_dict(), specs, align(model, other).symmetries)
        for name, path in (
            ("naive", linear_path(saved, other.state_dict())),
            ("aligned", linear_path(saved, rewritten)),
            ("aligned + norms", lambda t: merged([saved, rewritten], (1 - t, t), specs, ["norms"])),
        ):
            along, plain = 0.0, 0.0
            for t in points:  # in turns: the speed of a shared machine drifts
                along += seconds(lambda path=path, t=t: measure(saved, path, (t,), loader, accelerator))
                plain += seconds(lambda: evaluate(model, loader, accelerator))
            sys.stdout.write(f"{name}: {along:.1f} s, plain evaluations {plain:.1f} s, {along / plain:.3f}\n")


def seconds(run: Callable[[], object]) -> float:
    """CPU seconds of one call."""
    started = time.process_time()
    run()
    return time.process_time() - started


if __name__ == "__main__":
    main()
