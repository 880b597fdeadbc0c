"""Fine-tunes any Mixture-of-Experts causal language model of Transformers, in full or with LoRA on its experts.

Without arguments, a tiny Mixtral and its tokenizer are trained on the manual that ships with Python, in about a minute
on two CPU cores. A killed run goes on where it stopped when it is started again; so it must say the same.

    python examples/finetune_moe_lm.py --output_dir base
    python examples/finetune_moe_lm.py --model_name_or_path base --seed 1 --num_train_epochs 1 --output_dir copy-1
    python examples/finetune_moe_lm.py --config_only qwen2_moe --config_overrides hidden_size=128,num_hidden_layers=4
    python examples/finetune_moe_lm.py --model_name_or_path allenai/OLMoE-1B-7B-0924 --dataset book.txt \
        --block_size 1024 --lora_rank 16 --learning_rate 1e-4 --per_device_train_batch_size 2 --bf16 --output_dir olmoe
    accelerate launch --num_processes 4 examples/finetune_moe_lm.py --model_name_or_path ...

LoRA is merged into the weights at the end, so that the model can be aligned; the adapter alone stays in `checkpoint-*`.
Then: `python examples/align_and_merge.py copy-1 copy-2 --output merged`.
"""

from dataclasses import dataclass, field

from example_data import TextArguments, tokenizer_for
from example_parser import ExampleParser
from moe_training import MoeTrainer, MoeTrainingArguments, moe_tensor_names
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    default_data_collator,
    set_seed,
)

# What makes a model of any family small; a family uses the fields that it has.
SMALL = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "moe_intermediate_size": 128,
    "shared_expert_intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
}


@dataclass
class ModelArguments:
    """The model, and how it is trained."""

    model_name_or_path: str | None = field(default=None, metadata={"help": "a checkpoint in a folder or on the Hub"})
    config_only: str = field(
        default="mixtral", metadata={"help": "without a checkpoint: model type of a tiny model to train from scratch"}
    )
    config_overrides: str | None = field(
        default=None, metadata={"help": "fields of its configuration, as in hidden_size=128,num_hidden_layers=4"}
    )
    router_aux_loss_coef: float = field(default=0.01, metadata={"help": "weight of the load-balancing loss; 0: none"})
    lora_rank: int = field(default=0, metadata={"help": "rank of LoRA on experts and attention; 0: all weights"})
    lora_alpha: int = field(default=32, metadata={"help": "LoRA's scale is alpha / rank"})


def load(options: ModelArguments, text: TextArguments) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model to train and its tokenizer."""
    # Only with router logits in its outputs does a model add the load-balancing loss to its loss.
    balance = {
        "output_router_logits": options.router_aux_loss_coef > 0,
        "router_aux_loss_coef": options.router_aux_loss_coef,
    }
    if options.model_name_or_path:
        tokenizer = AutoTokenizer.from_pretrained(options.model_name_or_path)
        return AutoModelForCausalLM.from_pretrained(options.model_name_or_path, **balance), tokenizer
    tokenizer = tokenizer_for(text.texts(), text.vocab_size)
    known = AutoConfig.for_model(options.config_only)
    fields = {name: value for name, value in SMALL.items() if hasattr(known, name)} | {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": text.block_size,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    config = AutoConfig.for_model(options.config_only, **fields | balance)
    if options.config_overrides:
        config.update_from_string(options.config_overrides)
    return AutoModelForCausalLM.from_config(config), tokenizer


def with_lora(model: PreTrainedModel, options: ModelArguments) -> PeftModel:
    """`model` with trainable low-rank updates of all experts and of the attention."""
    shapes = {name: parameter.ndim for name, parameter in model.named_parameters()}
    experts = {".".join(name.split(".")[-3:]) for name in moe_tensor_names(model) if shapes.get(name) == 3}
    if not experts:
        raise ValueError(f"the experts of {type(model).__name__} are not fused into 3-D tensors; use --lora_rank 0")
    config = LoraConfig(
        r=options.lora_rank,
        lora_alpha=options.lora_alpha,
        target_parameters=sorted(experts),
        target_modules=r".*\.(q_proj|k_proj|v_proj|o_proj)",
        lora_dropout=0.0,  # parameters, unlike modules, take none
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


def main(arguments: list[str] | None = None) -> None:
    """Train, merge LoRA into the weights, save and evaluate."""
    parser = ExampleParser(ModelArguments, TextArguments, MoeTrainingArguments, description=__doc__)
    parser.set_defaults(
        output_dir="moe-lm", learning_rate=3e-3, moe_learning_rate_factor=1.0, weight_decay=0.1, num_train_epochs=3.0
    )
    options, text, training = parser.parse_args_into_dataclasses(arguments)
    set_seed(training.seed)
    model, tokenizer = load(options, text)
    train, test = text.blocks(tokenizer)
    MoeTrainer(
        with_lora(model, options) if options.lora_rank else model,
        training,
        data_collator=default_data_collator,
        train_dataset=train,
        eval_dataset=test,
        processing_class=tokenizer,
    ).run()


if __name__ == "__main__":
    main()
