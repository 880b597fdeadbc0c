"""Makes a Mixture of Experts out of a dense checkpoint: every FFN is copied E times, a fresh router stands before them.

A Llama or Mistral becomes a Mixtral. Without noise it computes what the dense model computes, for the weights of the
chosen experts sum to 1; the noise makes the experts different, so that training can specialise them. Of copies with
little noise any expert is as good as any other: alignments of such models keep the experts in their places.

Without arguments, a small Llama is trained on the manual that ships with Python and upcycled, in about a minute on two
CPU cores.

    python examples/upcycle.py --output_dir upcycled
    python examples/upcycle.py --dense_model meta-llama/Llama-3.2-1B --num_experts 8 --output_dir upcycled
    accelerate launch --num_processes 4 examples/upcycle.py --output_dir upcycled ...
    python examples/finetune_moe_lm.py --model_name_or_path upcycled --seed 1 --output_dir copy-1

Source: Komatsuzaki et al., Sparse Upcycling, arXiv:2212.05055.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from example_data import TextArguments, tokenizer_for
from example_parser import ExampleParser
from moe_training import MoeTrainingArguments, train_once
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    set_seed,
)

from hf_moe_lmc.connectivity import evaluate

# What a dense configuration may hold and a Mixtral has no place for.
BIASES = ("attention_bias", "mlp_bias")


@dataclass
class UpcyclingArguments:
    """The dense model and the experts."""

    dense_model: str | None = field(
        default=None, metadata={"help": "a Llama or a Mistral in a folder or on the Hub; default: a small one"}
    )
    num_experts: int = field(default=4, metadata={"help": "E, copies of every FFN"})
    num_experts_per_tok: int = field(default=2, metadata={"help": "K, experts that are active for a token"})
    noise: float = field(
        default=0.1, metadata={"help": "standard deviation added to the copies, in units of that of their weights"}
    )


@torch.no_grad()
def upcycle(
    dense: LlamaForCausalLM | MistralForCausalLM, num_experts: int, num_experts_per_tok: int, noise: float = 0.0
) -> MixtralForCausalLM:
    """`dense` with every FFN replaced by `num_experts` noisy copies and a freshly drawn router.

    Copies are `W + noise * std(W) * N(0, 1)`, drawn from torch's global generator. With `noise` 0 the model computes
    what `dense` computes, up to rounding.

    Raises:
        ValueError: `dense` has biases or another architecture.
    """
    if not isinstance(dense, LlamaForCausalLM | MistralForCausalLM):
        raise ValueError(f"a {type(dense).__name__} cannot be upcycled; give a Llama or a Mistral")
    if biased := [name for name in BIASES if getattr(dense.config, name, False)]:
        raise ValueError(f"the dense model has {biased[0]}, which a Mixtral cannot hold")
    fields = dense.config.to_dict()
    for identity in ("model_type", "architectures", "transformers_version", *BIASES, "pretraining_tp"):
        fields.pop(identity, None)
    experts = {"num_local_experts": num_experts, "num_experts_per_tok": num_experts_per_tok}
    model = MixtralForCausalLM(MixtralConfig(**fields, **experts)).to(dense.device, dense.dtype)

    def copies(weight: Tensor) -> Tensor:
        same = weight.expand(num_experts, *weight.shape)
        return same + noise * weight.float().std().to(weight.dtype) * torch.randn_like(same) if noise else same

    tensors = dense.state_dict()
    for index in range(dense.config.num_hidden_layers):
        layer = f"model.layers.{index}.mlp"
        gate, up, down = (tensors.pop(f"{layer}.{name}_proj.weight") for name in ("gate", "up", "down"))
        tensors[f"{layer}.experts.gate_up_proj"] = copies(torch.cat([gate, up]))
        tensors[f"{layer}.experts.down_proj"] = copies(down)
        tensors[f"{layer}.gate.weight"] = model.state_dict()[f"{layer}.gate.weight"]
    model.load_state_dict(tensors)
    model.generation_config = dense.generation_config
    return model.eval()


def main(arguments: list[str] | None = None) -> None:
    """Pretrain unless there is a dense model, upcycle, and evaluate both."""
    parser = ExampleParser(UpcyclingArguments, TextArguments, MoeTrainingArguments, description=__doc__)
    parser.set_defaults(
        output_dir="upcycled", learning_rate=3e-3, moe_learning_rate_factor=1.0, weight_decay=0.1, num_train_epochs=3.0
    )
    options, text, training = parser.parse_args_into_dataclasses(arguments)
    folder = Path(training.output_dir)
    if options.dense_model is None:
        tokenizer = tokenizer_for(text.texts(), text.vocab_size)
        train, test = text.blocks(tokenizer)
        pretraining = training.changed(output_dir=str(folder / "dense"))
        train_once(lambda: LlamaForCausalLM(small_config(len(tokenizer))), pretraining, train, test, tokenizer)
        options.dense_model = str(folder / "dense")
    tokenizer = AutoTokenizer.from_pretrained(options.dense_model)
    dense = AutoModelForCausalLM.from_pretrained(options.dense_model)
    set_seed(training.seed)
    upcycled = upcycle(dense, options.num_experts, options.num_experts_per_tok, options.noise)
    accelerator = Accelerator()
    if accelerator.is_main_process:
        upcycled.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    batches = accelerator.prepare(DataLoader(text.blocks(tokenizer)[1], training.per_device_eval_batch_size))
    for name, model in {"dense": dense, "upcycled": upcycled}.items():
        found = evaluate(model.to(accelerator.device), batches, accelerator)
        if accelerator.is_main_process:
            sys.stdout.write(f"{name:8}  loss {found.loss:.4f}  accuracy {found.accuracy:.4f}\n")


def small_config(vocab_size: int) -> LlamaConfig:
    """A Llama that learns something about English in a minute."""
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )


if __name__ == "__main__":
    main()
