"""A recipe that takes seconds; `python -m tests.demo.tiny OUT` runs it, for tests that kill it."""

import sys
from pathlib import Path

from hf_moe_lmc.demo import Recipe, run_demo

SEEDS = (5, 6)
TINY = Recipe(
    hidden_size=16,
    heads=2,
    layers=1,
    ffn_width=16,
    num_experts=3,
    expert_width=16,
    pretrain_epochs=1,
    epochs=1,
    batch_size=250,
    calibration_images=16,
    points=3,
)

if __name__ == "__main__":
    run_demo(Path(sys.argv[1]), SEEDS, TINY)
