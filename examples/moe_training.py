"""Fine-tuning of Mixture-of-Experts models with the Trainer of Transformers: what the examples share."""

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from torch.utils.data import Dataset
from transformers import (
    BaseImageProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput

from hf_moe_lmc import moe_layers
from hf_moe_lmc.checkpoints import Checkpoint, meta_model, read_config
from hf_moe_lmc.connectivity import evaluate
from hf_moe_lmc.demo.training import sums_in_fixed_order
from hf_moe_lmc.modeling import MoeVariant


@dataclass
class MoeArguments:
    """The Mixtures of Experts that replace FFNs of a dense model."""

    moe_variant: MoeVariant = field(
        default="sparse", metadata={"help": "dense: all experts are active; shared: sparse plus always-active experts"}
    )
    num_experts: int = field(default=4, metadata={"help": "E, routed experts per layer"})
    num_experts_per_tok: int = field(default=2, metadata={"help": "K, experts that are active for a token"})
    moe_intermediate_size: int = field(default=256, metadata={"help": "F, units of an expert"})
    moe_layers: list[int] = field(default_factory=lambda: [0], metadata={"help": "layers whose FFN is replaced"})
    freeze_backbone: bool = field(default=False, metadata={"help": "train the Mixtures of Experts only"})
    seeds: list[int] = field(default_factory=lambda: [1, 2], metadata={"help": "one fine-tuned copy each"})

    def add_experts(self, model_class: Any, dense: PreTrainedModel) -> PreTrainedModel:
        """A copy of `dense` with freshly drawn experts, as a `model_class` of this package."""
        model = model_class.from_dense(
            dense,
            layers=self.moe_layers,
            moe_variant=self.moe_variant,
            num_experts=self.num_experts,
            num_experts_per_tok=self.num_experts_per_tok,
            moe_intermediate_size=self.moe_intermediate_size,
        )
        if self.freeze_backbone:
            trained = moe_tensor_names(model)
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(name in trained)
        return model


@dataclass
class MoeTrainingArguments(TrainingArguments):
    """`TrainingArguments` whose defaults make experts learn enough to be aligned.

    Learning must outweigh the experts' random start, or there is nothing to align: hence the large learning rate and
    weight decay. The losses are those of a small model on a CPU; for a large one, lower the learning rate.
    """

    learning_rate: float = 1e-3
    moe_learning_rate_factor: float = field(
        default=10.0, metadata={"help": "learning rate of routers and experts, in units of --learning_rate"}
    )
    weight_decay: float = 1.0
    adam_beta2: float = 0.98
    lr_scheduler_type: str = "cosine"
    warmup_steps: float = 0.1
    num_train_epochs: float = 5.0
    per_device_train_batch_size: int = 64
    per_device_eval_batch_size: int = 64
    save_strategy: str = "epoch"
    save_total_limit: int | None = 1
    logging_steps: float = 20
    report_to: None | str | list[str] = field(  # noqa: RUF036  (HfArgumentParser minds the order)
        default_factory=lambda: [name for name in ("trackio", "tensorboard") if find_spec(name)],
        metadata={"help": "where figures are reported; those of trackio and tensorboard that are installed"},
    )
    dataloader_pin_memory: bool = field(default_factory=torch.accelerator.is_available)

    def of_the_dense_model(self, epochs: float) -> "MoeTrainingArguments":
        """For the model that all copies start from, in `dense/`: it has no random start of experts to outweigh."""
        return self.changed(
            output_dir=str(Path(self.output_dir) / "dense"),
            seed=0,
            num_train_epochs=epochs,
            learning_rate=3e-3,
            moe_learning_rate_factor=1,
            weight_decay=0.05,
        )

    def changed(self, **fields: Any) -> "MoeTrainingArguments":
        """A copy with other values in `fields`."""
        arguments = copy(self)
        for name, value in fields.items():
            setattr(arguments, name, value)
        return arguments


class MoeTrainer(Trainer):
    """`Trainer` that goes on where a killed run stopped, routers and experts included.

    The Trainer of Transformers 5 stores a model under the keys of its checkpoints and loads those keys into the model
    as they are. For most Mixtures of Experts they are not the names of its tensors: routers and experts then keep what
    they were built with, which is only logged.
    """

    def run(self) -> None:
        """Train, or go on with what `output_dir` holds, save the model (adapters merged), and evaluate it."""
        checkpoint = last_checkpoint(Path(self.args.output_dir))
        # By default, sums over gathered tokens are taken in any order on a CPU; on a GPU, ask for --full_determinism.
        with sums_in_fixed_order():
            result: TrainOutput = self.train(resume_from_checkpoint=checkpoint and str(checkpoint))
        if isinstance(self.model, PeftModel):
            self.model = self.model.merge_and_unload()
        self.save_model()
        self.save_metrics("train", result.metrics)
        self.save_metrics("eval", self.evaluate())

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Loss and accuracy of the task: without the load-balancing loss, summed over examples and divided once."""
        found = evaluate(self.model, self.get_eval_dataloader(eval_dataset), self.accelerator)
        metrics = {f"{metric_key_prefix}_loss": found.loss, f"{metric_key_prefix}_accuracy": found.accuracy}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """As of the Trainer, with routers and experts in groups of their own, at their own learning rate."""
        if self.optimizer is not None or self.args.moe_learning_rate_factor == 1:
            return super().create_optimizer(model)
        names = moe_tensor_names(self.model)
        inside = {id(parameter) for name, parameter in self.model.named_parameters() if name in names}
        optimizer = super().create_optimizer(model)
        for group in list(optimizer.param_groups):
            moe = [parameter for parameter in group["params"] if id(parameter) in inside]
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in inside]
            if moe:
                lr = self.args.learning_rate * self.args.moe_learning_rate_factor
                optimizer.add_param_group({**group, "params": moe, "lr": lr})
        return optimizer

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if model is None and isinstance(self.model, PreTrainedModel):
            load_weights(self.model, Path(resume_from_checkpoint))
        else:  # adapters, and models that FSDP or DeepSpeed has wrapped: their checkpoints hold module names
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if isinstance(self.model, PreTrainedModel) and not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            load_weights(self.model, Path(self.state.best_model_checkpoint))
        else:
            super()._load_best_model()


@torch.no_grad()
def load_weights(model: PreTrainedModel, folder: Path) -> None:
    """Overwrite the weights of `model` with those of the checkpoint in `folder`.

    Raises:
        BadInputError: a tensor of the model is missing there, or has another shape.
    """
    checkpoint, state = Checkpoint.open(folder, meta_model(read_config(folder))), model.state_dict()
    for group in checkpoint.groups:
        for name, tensor in checkpoint.read(group.names).items():
            state[name].copy_(tensor)


def moe_tensor_names(model: PreTrainedModel) -> set[str]:
    """Names of all routers, experts and shared experts of `model`."""
    return {name for spec in moe_layers(model) for name in spec.tensor_names}


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint of the Trainer in `folder` that was written to its end."""
    # The Trainer's state is what it writes last.
    complete = [state.parent for state in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*/trainer_state.json")]
    return max(complete, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def train_once(
    make: Callable[[], PreTrainedModel],
    arguments: MoeTrainingArguments,
    train: Dataset,
    test: Dataset,
    processor: BaseImageProcessor | PreTrainedTokenizerBase,
) -> None:
    """Train `make()` and save it in `arguments.output_dir`, unless that was done already; a killed run goes on."""
    if (Path(arguments.output_dir) / "eval_results.json").exists():
        return
    set_seed(arguments.seed)
    MoeTrainer(
        make(),
        arguments,
        data_collator=default_data_collator,
        train_dataset=train,
        eval_dataset=test,
        processing_class=processor,
    ).run()


def finetune_copies(
    moe: MoeArguments,
    model_class: Any,
    dense: PreTrainedModel,
    arguments: MoeTrainingArguments,
    train: Dataset,
    test: Dataset,
    processor: BaseImageProcessor | PreTrainedTokenizerBase,
) -> None:
    """Give copies of `dense` freshly drawn experts and fine-tune them apart, each with a seed, into `seed-...`."""
    for seed in moe.seeds:
        finetuning = arguments.changed(output_dir=str(Path(arguments.output_dir) / f"seed-{seed}"), seed=seed)
        train_once(lambda: moe.add_experts(model_class, dense), finetuning, train, test, processor)
