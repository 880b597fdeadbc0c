"""Training that was interrupted and resumed equals training undisturbed, bit for bit."""

import os
import signal

import finetune_moe_lm
import pytest
import torch
import transformers.trainer
from moe_training import MoeTrainer
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, set_seed

from hf_moe_lmc import align, moe_layers
from tests import forked

# Three steps are an epoch; a checkpoint every two; the end strikes in the second epoch, between two checkpoints.
STEPS = ["--max_train_samples", "48", "--max_steps", "6", "--save_strategy", "steps", "--save_steps", "2"]
LAST_STEP = 5
SMALL = ["--config_overrides", "hidden_size=16,intermediate_size=16,head_dim=4"]
LORA = ["--lora_rank", "2", "--lora_alpha", "2"]


class Kill(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == LAST_STEP:
            os.kill(os.getpid(), signal.SIGKILL)


def killed(arguments):
    transformers.trainer.DEFAULT_CALLBACKS.append(Kill)
    finetune_moe_lm.main(arguments)


class Interrupt(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == LAST_STEP:
            raise InterruptedError


def interrupt(arguments, monkeypatch):
    """Run until the last step, within this process."""
    callbacks = [*transformers.trainer.DEFAULT_CALLBACKS, Interrupt]
    with monkeypatch.context() as patch:
        patch.setattr(transformers.trainer, "DEFAULT_CALLBACKS", callbacks)
        with pytest.raises(InterruptedError):
            finetune_moe_lm.main(arguments)


@pytest.fixture(scope="module")
def full(tiny_text) -> list[str]:
    return [*tiny_text, *STEPS, *SMALL, "--moe_learning_rate_factor", "3"]


@pytest.fixture(scope="module")
def undisturbed(full, tmp_path_factory):
    """The weights of a run that nothing interrupts."""
    folder = tmp_path_factory.mktemp("undisturbed")
    finetune_moe_lm.main([*full, "--output_dir", str(folder)])
    return load_file(folder / "model.safetensors")


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


def test_a_killed_run_resumed_equals_one_undisturbed(full, undisturbed, tmp_path):
    arguments = [*full, "--output_dir", str(tmp_path)]
    process = forked.start(killed, arguments)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-4"]
    set_seed(99)  # what the new process happens to draw must not matter
    finetune_moe_lm.main(arguments)
    found = load_file(tmp_path / "model.safetensors")
    assert any("experts" in name for name in found)
    assert any(name.endswith("block_sparse_moe.gate.weight") for name in found)
    assert_equal(found, undisturbed)


def test_the_trainer_of_transformers_would_lose_routers_and_experts(full, undisturbed, tmp_path, monkeypatch):
    arguments = [*full, "--output_dir", str(tmp_path)]
    interrupt(arguments, monkeypatch)
    monkeypatch.setattr(MoeTrainer, "_load_from_checkpoint", Trainer._load_from_checkpoint)
    finetune_moe_lm.main(arguments)
    found = load_file(tmp_path / "model.safetensors")
    assert any(not torch.equal(found[name], undisturbed[name]) for name in found)


def test_an_unfinished_checkpoint_is_passed_over(full, undisturbed, tmp_path, monkeypatch):
    arguments = [*full, "--save_total_limit", "2", "--output_dir", str(tmp_path)]
    interrupt(arguments, monkeypatch)
    (tmp_path / "checkpoint-4/trainer_state.json").unlink()
    finetune_moe_lm.main(arguments)
    assert_equal(load_file(tmp_path / "model.safetensors"), undisturbed)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT reads it
def test_lora_resumes_and_ends_in_a_model_that_can_be_aligned(tiny_text, tmp_path, monkeypatch):
    base = tmp_path / "base"
    finetune_moe_lm.main([*tiny_text, *SMALL, "--max_steps", "1", "--output_dir", str(base)])
    lora = [*tiny_text, *STEPS, *LORA, "--model_name_or_path", str(base)]
    finetune_moe_lm.main([*lora, "--output_dir", str(tmp_path / "whole")])
    halted = [*lora, "--output_dir", str(tmp_path / "halted")]
    interrupt(halted, monkeypatch)
    finetune_moe_lm.main(halted)
    whole, halted, start = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "halted", "base"))
    assert_equal(halted, whole)
    moved = {name for name in start if not torch.equal(start[name], whole[name])}
    assert {name.split(".")[-2] for name in moved} == {"w1", "w2", "w3", "q_proj", "k_proj", "v_proj", "o_proj"}
    assert all(layer.symmetry.is_identity for layer in align(base, tmp_path / "whole").layers.values())


def test_any_family_is_built_from_its_model_type(tiny_text, tmp_path):
    arguments = ["--config_only", "olmoe", "--config_overrides", "hidden_size=16,intermediate_size=16"]
    finetune_moe_lm.main([*tiny_text, *arguments, "--max_steps", "1", "--output_dir", str(tmp_path)])
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert len(moe_layers(model)) == 2
    assert model.config.num_experts == 4
    assert model.config.output_router_logits
