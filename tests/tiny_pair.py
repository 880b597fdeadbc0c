"""Two tiny checkpoints in shards: siblings, the second scrambled and with noise on every weight."""

from pathlib import Path

import torch

from hf_moe_lmc import scramble
from tests.models import mixtral


def save_pair(folder: Path) -> None:
    """Write `folder`/a and `folder`/b: one layer of three experts, four shards."""
    torch.manual_seed(0)
    model = mixtral(hidden_size=32, intermediate_size=24, num_hidden_layers=1, num_local_experts=3, vocab_size=67)
    model.save_pretrained(folder / "a", max_shard_size=15_000)
    scramble(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.01)
    model.save_pretrained(folder / "b", max_shard_size=15_000)
