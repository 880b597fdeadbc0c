"""The loss along the path between two fine-tunes of one Mixture-of-Experts language model, under every control.

Without arguments, everything is made on the spot, in about two minutes on one CPU core: a byte-level tokenizer and a
small Mixtral are trained on the manual that ships with Python, two copies are fine-tuned apart, and one of them is
scrambled (it computes the same, but its experts and units have other places). The report shows what averaging does to
the pair as it is, aligned, repaired and under controls.

    python examples/evaluate_path.py --output_dir path
    python examples/evaluate_path.py --dataset Salesforce/wikitext --dataset_config wikitext-2-raw-v1 --block_size 256 \
        --hidden_size 512 --max_steps 5000 --per_device_train_batch_size 32 --bf16 --output_dir path-wikitext
    accelerate launch --num_processes 4 examples/evaluate_path.py --output_dir path ...

For two checkpoints of your own, use the command: `hf-moe-lmc evaluate A B --dataset book.txt -o report`.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from accelerate import Accelerator
from example_data import TextArguments, tokenizer_for
from example_parser import ExampleParser
from moe_training import MoeTrainingArguments, train_once
from torch.utils.data import DataLoader, Subset
from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedTokenizerFast

from hf_moe_lmc import MoeAligner, scramble
from hf_moe_lmc.connectivity import VARIANTS


@dataclass
class PathArguments:
    """The model and the path."""

    hidden_size: int = field(default=64, metadata={"help": "of the Mixtral"})
    points: int = field(default=11, metadata={"help": "of the path"})


def small_config(tokenizer: PreTrainedTokenizerFast, hidden_size: int, positions: int) -> MixtralConfig:
    """Two layers of four experts."""
    return MixtralConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        max_position_embeddings=positions,
    )


def main(arguments: list[str] | None = None) -> None:
    """Train, fine-tune twice, scramble, align, evaluate, report."""
    parser = ExampleParser(PathArguments, TextArguments, MoeTrainingArguments, description=__doc__)
    parser.set_defaults(
        output_dir="path",
        max_eval_samples=192,
        max_steps=300,
        per_device_train_batch_size=16,
        learning_rate=3e-3,
        moe_learning_rate_factor=1.0,
        weight_decay=0.01,
        save_strategy="no",
    )
    options, text, training = parser.parse_args_into_dataclasses(arguments)
    folder = Path(training.output_dir)
    tokenizer = tokenizer_for(text.texts(), text.vocab_size)
    train, test = text.blocks(tokenizer)

    base, copies = str(folder / "base"), [str(folder / f"copy-{seed}") for seed in (1, 2)]
    config = small_config(tokenizer, options.hidden_size, text.block_size)
    train_once(lambda: MixtralForCausalLM(config), training.changed(output_dir=base), train, test, tokenizer)
    for seed, copy in enumerate(copies, start=1):
        finetuning = training.changed(
            output_dir=copy,
            seed=seed,
            max_steps=training.max_steps // 4,
            learning_rate=training.learning_rate / 3,
        )
        train_once(lambda: MixtralForCausalLM.from_pretrained(base), finetuning, train, test, tokenizer)

    reference, other = (MixtralForCausalLM.from_pretrained(copy) for copy in copies)
    scramble(other, seed=3)
    accelerator, apart = Accelerator(), len(test) // 3  # blocks that calibrate
    aligner = MoeAligner.from_pretrained(reference, other)
    report = aligner.evaluate(
        aligner.align(),
        DataLoader(Subset(test, range(apart, len(test))), training.per_device_eval_batch_size),
        options.points,
        calibration=DataLoader(Subset(test, range(apart)), (apart + 1) // 2),
        variants=tuple(VARIANTS),
        accelerator=accelerator,
    )
    if accelerator.is_main_process:
        report.save(folder / "report")
        sys.stdout.write(f"{report.markdown()}\nWritten to {folder / 'report'}\n")


if __name__ == "__main__":
    main()
