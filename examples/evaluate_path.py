"""The loss along the path between two fine-tunes of one Mixture-of-Experts language model, on local text.

Without arguments, everything is made on the spot, in about a minute on one CPU core: a byte-level tokenizer and a small
Mixtral are trained on the manual that ships with Python, two copies are fine-tuned apart, and one of them is scrambled
(it computes the same, but its experts and units have other places). The report shows what averaging does to the pair as
it is, aligned, repaired and under controls.

    python examples/evaluate_path.py --output report
    python examples/evaluate_path.py --text book.txt --steps 2000 --hidden-size 256 --output report

For two checkpoints of your own, use the command: `hf-moe-lmc evaluate A B --dataset book.txt -o report`.
"""

import argparse
import sys
from copy import deepcopy
from pathlib import Path
from pydoc_data.topics import topics

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from example_data import tokenizer_for
from torch.utils.data import DataLoader, Dataset, Subset
from transformers import MixtralConfig, MixtralForCausalLM

from hf_moe_lmc import align, scramble
from hf_moe_lmc.connectivity import evaluate_path
from hf_moe_lmc.connectivity.data import packed_blocks


def train(model: MixtralForCausalLM, blocks: Dataset, *, steps: int, lr: float, seed: int) -> MixtralForCausalLM:
    """AdamW on random batches, the learning rate falling to zero."""
    order = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    loader = DataLoader(blocks, batch_size=16, shuffle=True, generator=order, drop_last=True)
    model.train()
    done = 0
    while done < steps:
        for batch in loader:
            model(**batch, use_cache=False).loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            done += 1
            if done == steps:
                break
    return model.eval()


def main(arguments: list[str] | None = None) -> None:
    """Train, scramble, align, evaluate, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, nargs="+", help="text files (default: the manual of this Python)")
    parser.add_argument("--output", type=Path, default=Path("path-report"))
    parser.add_argument("--steps", type=int, default=300, help="of pretraining; each copy is fine-tuned for a quarter")
    parser.add_argument("--hidden-size", type=int, default=64)
    parser.add_argument("--vocabulary", type=int, default=1000)
    parser.add_argument("--block", type=int, default=64, help="tokens per block")
    parser.add_argument("--points", type=int, default=11)
    parser.add_argument("--evaluate-blocks", type=int, default=128)
    options = parser.parse_args(arguments)

    texts = [file.read_text("utf-8") for file in options.text] if options.text else [topics[t] for t in sorted(topics)]
    tokenizer = tokenizer_for(texts, options.vocabulary)
    blocks = packed_blocks(texts, tokenizer, options.block)
    held_out = 2 * options.evaluate_blocks  # one half is evaluated on, the other calibrates
    training = Subset(blocks, range(len(blocks) - held_out))
    calibration = Subset(blocks, range(len(blocks) - held_out, len(blocks) - options.evaluate_blocks))
    evaluation = Subset(blocks, range(len(blocks) - options.evaluate_blocks, len(blocks)))

    set_seed(0)
    base = MixtralForCausalLM(
        MixtralConfig(
            vocab_size=len(tokenizer),
            hidden_size=options.hidden_size,
            intermediate_size=2 * options.hidden_size,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            num_local_experts=4,
            max_position_embeddings=options.block,
        )
    )
    train(base, training, steps=options.steps, lr=3e-3, seed=0)
    reference, other = (
        train(deepcopy(base), training, steps=options.steps // 4, lr=1e-3, seed=seed) for seed in (1, 2)
    )
    scramble(other, seed=3)

    report = evaluate_path(
        reference,
        other,
        align(reference, other),
        DataLoader(evaluation, batch_size=16),
        options.points,
        calibration=DataLoader(calibration, batch_size=16),
        accelerator=Accelerator(),
    )
    report.save(options.output)
    sys.stdout.write(report.markdown())


if __name__ == "__main__":
    main()
