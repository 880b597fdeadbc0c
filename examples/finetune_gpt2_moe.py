"""The paper's setting on text: a dense pretrained GPT-2, Mixtures of Experts in place of FFNs, fine-tuned per seed.

Without arguments, a small GPT-2 and its tokenizer are trained on the manual that ships with Python, and two copies are
fine-tuned, in a few minutes on two CPU cores. A killed run goes on where it stopped when it is started again.

    python examples/finetune_gpt2_moe.py --output_dir gpt2-moe --seeds 1 2 3
    python examples/finetune_gpt2_moe.py --output_dir gpt2-moe-wikitext --dense_model openai-community/gpt2 \
        --dataset Salesforce/wikitext --dataset_config wikitext-103-raw-v1 --block_size 512 --max_train_samples 20000 \
        --moe_intermediate_size 3072 --learning_rate 5e-5 --num_train_epochs 1 --per_device_train_batch_size 8 --bf16
    accelerate launch --num_processes 4 examples/finetune_gpt2_moe.py --output_dir gpt2-moe ...

Then: `python examples/align_and_merge.py gpt2-moe/seed-1 gpt2-moe/seed-2 --output gpt2-merged`.
"""

from dataclasses import dataclass, field

from example_data import TextArguments, tokenizer_for
from example_parser import ExampleParser
from moe_training import MoeArguments, MoeTrainingArguments, finetune_copies, train_once
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from hf_moe_lmc.modeling import MoeGPT2LMHeadModel


@dataclass
class DenseArguments:
    """The dense model."""

    dense_model: str | None = field(
        default=None, metadata={"help": "a GPT-2 in a folder or on the Hub; default: a small one, pretrained now"}
    )
    dense_epochs: float = field(default=3.0, metadata={"help": "of that pretraining"})


def main(arguments: list[str] | None = None) -> None:
    """Pretrain unless there is a dense model, and fine-tune one copy per seed."""
    parser = ExampleParser(DenseArguments, TextArguments, MoeArguments, MoeTrainingArguments, description=__doc__)
    parser.set_defaults(output_dir="gpt2-moe", num_train_epochs=2.0, per_device_train_batch_size=32)
    options, text, moe, training = parser.parse_args_into_dataclasses(arguments)

    if options.dense_model:
        tokenizer = AutoTokenizer.from_pretrained(options.dense_model)
        train, test = text.blocks(tokenizer)
        dense = GPT2LMHeadModel.from_pretrained(options.dense_model)
    else:
        tokenizer = tokenizer_for(text.texts(), text.vocab_size)
        train, test = text.blocks(tokenizer)
        pretraining = training.of_the_dense_model(options.dense_epochs)
        config = small_config(tokenizer, text.block_size)
        train_once(lambda: GPT2LMHeadModel(config), pretraining, train, test, tokenizer)
        dense = GPT2LMHeadModel.from_pretrained(pretraining.output_dir)

    finetune_copies(moe, MoeGPT2LMHeadModel, dense, training, train, test, tokenizer)


def small_config(tokenizer: PreTrainedTokenizerFast, positions: int) -> GPT2Config:
    """A GPT-2 that learns something about English in a minute."""
    return GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=positions,
        n_embd=64,
        n_layer=2,
        n_head=4,
        initializer_range=0.05,  # the default, 0.02, suits widths near 768
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


if __name__ == "__main__":
    main()
