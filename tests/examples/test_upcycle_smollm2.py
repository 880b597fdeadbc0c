"""At a tiny size, with a random Llama in the place of SmolLM2; commands run in this process."""

import contextlib
from pathlib import Path

import pytest
import torch
import upcycle_smollm2
from example_data import tokenizer_for
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from hf_moe_lmc.cli.run import main
from tests.examples.test_upcycle import DENSE, logits, weights_of_order_one


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_without_noise_it_computes_what_the_dense_model_computes(noise):
    dense = weights_of_order_one(DENSE["llama, tied, scaled positions"]())
    model = upcycle_smollm2.upcycle_last_layers(dense, 2, 3, noise)
    assert sorted({int(name.split(".")[2]) for name in upcycle_smollm2.moe_tensor_names(model)}) == [1, 2]
    close = torch.allclose(logits(model), dense(torch.arange(24).reshape(2, 12)).logits, rtol=1e-5, atol=1e-5)
    assert close == (noise == 0)


def test_the_commands_take_the_shuffling_back(tmp_path, manual, monkeypatch, capsys):
    """The merge is the mean of A and of B as it was before it was shuffled, up to the free scales of B's units."""
    tokenizer = tokenizer_for([Path(manual).read_text("utf-8")], 300)
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, tie_word_embeddings=True)).save_pretrained(
        tmp_path / "llama"
    )
    tokenizer.save_pretrained(tmp_path / "llama")

    def in_this_process(command, folder):
        # PyTorch's fast kernel asks the processor for AMX, and fails where ATen may not use AVX-512.
        with contextlib.chdir(folder), sdpa_kernel(SDPBackend.MATH):
            assert main(command) == 0
        return capsys.readouterr().out, ""

    monkeypatch.setattr(upcycle_smollm2, "measured", in_this_process)
    arguments = ["--moe_layers", "1", "--max_steps", "2", "--block_size", "64", "--disable_tqdm", "True"]
    upcycle_smollm2.main([str(tmp_path / "llama"), *arguments, "--output_dir", str(tmp_path)])
    assert "Would go to me/smollm2-moe, license apache-2.0:" in capsys.readouterr().out
    a, b, merged, shuffled = (
        AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype=torch.bfloat16).state_dict()
        for name in ("A", "trained/B", "merged", "B")
    )
    for name, tensor in merged.items():
        assert close(tensor, (a[name].float() + b[name].float()) / 2)
        unmoved = ".mlp." not in name or "shared_expert_gate" in name
        assert close(tensor, (a[name].float() + shuffled[name].float()) / 2) == unmoved


def close(tensor, other):
    """Up to free scales, which training changes and merging takes back where it changed them by more than rounding."""
    return (tensor.float() - other).norm() <= 0.01 * other.norm()
