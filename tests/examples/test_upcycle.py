import pytest
import torch
import upcycle
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

SIZES = {
    "vocab_size": 31,
    "hidden_size": 12,
    "intermediate_size": 7,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 6,
}
SCALED = {"rope_type": "linear", "factor": 3.0, "rope_theta": 500.0}
DENSE = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "llama, tied, scaled positions": lambda: LlamaForCausalLM(
        LlamaConfig(**SIZES, tie_word_embeddings=True, rope_parameters=SCALED)
    ),
    "mistral, sliding window": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=4)),
}


def weights_of_order_one(model):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return model.double().eval()


@torch.no_grad()
def logits(model):
    model.set_experts_implementation("eager")
    return model(torch.arange(24).reshape(2, 12)).logits


@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("active", [1, 2, 5])
def test_identical_experts_compute_what_the_dense_model_computes(name, active):
    dense = weights_of_order_one(DENSE[name]())
    model = upcycle.upcycle(dense, 5, active)
    router = model.model.layers[0].mlp.gate.weight
    assert router.std() > 0
    # Routers weigh in float32, so the weights of several experts sum to 1 within its rounding.
    torch.testing.assert_close(logits(model), dense(torch.arange(24).reshape(2, 12)).logits, rtol=1e-5, atol=1e-5)


def test_noise_makes_experts_different_and_keeps_the_rest():
    dense = weights_of_order_one(DENSE["llama"]())
    torch.manual_seed(1)
    model = upcycle.upcycle(dense, 5, 2, noise=0.5)
    assert (logits(model) - dense(torch.arange(24).reshape(2, 12)).logits).abs().max() > 0.1
    ups = model.model.layers[1].mlp.experts.gate_up_proj[:, 7:].detach()
    original = dense.model.layers[1].mlp.up_proj.weight.detach()
    assert (ups - original).std() / original.std() == pytest.approx(0.5, rel=0.15)
    assert not torch.equal(ups[0], ups[1])
    assert torch.equal(model.model.layers[1].self_attn.q_proj.weight, dense.model.layers[1].self_attn.q_proj.weight)


@pytest.mark.parametrize(
    ("dense", "reason"),
    [
        (lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)), "a Qwen2ForCausalLM cannot be upcycled"),
        (lambda: LlamaForCausalLM(LlamaConfig(**SIZES, attention_bias=True)), "attention_bias"),
    ],
)
def test_what_a_mixtral_cannot_hold_is_refused(dense, reason):
    with pytest.raises(ValueError, match=reason):
        upcycle.upcycle(dense(), 4, 2)


def test_it_runs_at_a_tiny_size(tiny_text, tmp_path, capsys):
    upcycle.main([*tiny_text, "--max_steps", "2", "--noise", "0", "--output_dir", str(tmp_path)])
    dense, upcycled = capsys.readouterr().out.splitlines()[-2:]
    assert dense.split()[1:] == upcycled.split()[1:]
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config.num_local_experts == 4
    assert len(AutoTokenizer.from_pretrained(tmp_path)) == 300
