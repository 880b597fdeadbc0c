"""Two Mixtral-shaped checkpoints: siblings, the second scrambled and with noise on every weight.

python -m benchmarks.pair FOLDER [--layers 10]
"""

import argparse
from pathlib import Path

import torch
from transformers import MixtralConfig, MixtralForCausalLM

from hf_moe_lmc import scramble

SEED = 0
NOISE = 0.01  # standard deviation, relative to that of the tensor


def configuration(layers: int = 10) -> MixtralConfig:
    """Mixtral, small: bfloat16, 0.18 GB a layer."""
    return MixtralConfig(
        vocab_size=32_000,
        hidden_size=1024,
        intermediate_size=3584,
        num_hidden_layers=layers,
        num_attention_heads=16,
        num_key_value_heads=8,
        num_local_experts=8,
        num_experts_per_tok=2,
        dtype=torch.bfloat16,
    )


def write_pair(folder: Path, config: MixtralConfig | None = None) -> tuple[Path, Path]:
    """Write `folder`/a and `folder`/b; returns the two folders."""
    torch.manual_seed(SEED)
    with torch.device("meta"):
        model = MixtralForCausalLM(config or configuration())
    model = model.to(torch.bfloat16).to_empty(device="cpu").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.02)
        model.save_pretrained(folder / "a")
        scramble(model, SEED)
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (NOISE * parameter.std()))
        model.save_pretrained(folder / "b")
    return folder / "a", folder / "b"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=10)
    options = parser.parse_args()
    write_pair(options.folder, configuration(options.layers))
