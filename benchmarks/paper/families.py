"""The models: a backbone, and copies of it whose FFNs are Mixtures of Experts of their own."""

from collections.abc import Mapping
from copy import deepcopy

import torch
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    ViTConfig,
    ViTForImageClassification,
)

from hf_moe_lmc.modeling import MoeGPT2LMHeadModel, MoeViTForImageClassification

from .cells import ACTIVE, UPCYCLING_NOISE, Cell
from .data import BLOCK
from .smollm2 import mixtral_of

PAPER = {"vit": MoeViTForImageClassification, "gpt2": MoeGPT2LMHeadModel}
BLOCK_NAMES = {"vit": "vit.layers.{}.mlp", "gpt2": "transformer.h.{}.mlp"}


def fresh_backbone(cell: Cell, sizes: Mapping[str, int]) -> PreTrainedModel:
    """An untrained backbone; a Mixtral or Qwen2-MoE that will be upcycled has one expert, which is a dense FFN."""
    std = cell.hidden**-0.5  # the default, 0.02, suits widths near 768
    match cell.model:
        case "vit":
            config = ViTConfig(
                hidden_size=cell.hidden,
                num_hidden_layers=cell.depth,
                num_attention_heads=cell.heads,
                intermediate_size=cell.ffn,
                patch_size=sizes["image_size"] // 4,
                initializer_range=std,
                **sizes,
            )
            return ViTForImageClassification(config)
        case "gpt2":
            return GPT2LMHeadModel(
                GPT2Config(
                    n_embd=cell.hidden,
                    n_layer=cell.depth,
                    n_head=cell.heads,
                    n_inner=cell.ffn,
                    n_positions=BLOCK,
                    initializer_range=std,
                    **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
                    **dict.fromkeys(("bos_token_id", "eos_token_id"), 0),
                    **sizes,
                )
            )
        case "mixtral" | "qwen2_moe":
            return _swiglu(cell, sizes, cell.experts if cell.pretrains_experts else 1)


def make_copy(cell: Cell, backbone: PreTrainedModel) -> PreTrainedModel:
    """A copy of `backbone` with the experts of `cell.start`; whatever is drawn comes from torch's global generator."""
    if cell.start == "checkpoint":
        return deepcopy(backbone)
    if cell.model in PAPER:
        copy = PAPER[cell.model].from_dense(
            backbone,
            layers=cell.layers,
            moe_variant=cell.variant,
            num_experts=cell.experts,
            num_experts_per_tok=min(ACTIVE, cell.experts),
            moe_intermediate_size=cell.expert_width,
            output_router_logits=cell.balance > 0,
            router_aux_loss_coef=cell.balance,
        )
        if cell.model == "vit":
            copy.vit.embeddings = deepcopy(backbone.vit.embeddings)  # of a cut backbone, they pass hidden states on
    elif cell.model == "smollm2":
        copy = mixtral_of(cell, backbone)
    else:
        copy = _swiglu_copy(cell, backbone)
    copy.set_experts_implementation("eager")  # at this size the fastest on a CPU
    if cell.init_scale != 1:
        with torch.no_grad():
            for name, parameter in copy.named_parameters():
                if _is_replaced(name, cell) and "experts" in name:
                    parameter.mul_(cell.init_scale)
    return copy


def replaced_parameters(cell: Cell, model: PreTrainedModel) -> list[torch.nn.Parameter]:
    """The parameters of the replaced layers; none where the copies start from a whole checkpoint."""
    if cell.start == "checkpoint":
        return []
    return [parameter for name, parameter in model.named_parameters() if _is_replaced(name, cell)]


def _is_replaced(name: str, cell: Cell) -> bool:
    block = BLOCK_NAMES.get(cell.model, "model.layers.{}.mlp")
    return any(name.startswith(f"{block.format(layer)}.") for layer in cell.layers)


def _swiglu_copy(cell: Cell, backbone: PreTrainedModel) -> PreTrainedModel:
    copy = _swiglu(cell, {"vocab_size": backbone.config.vocab_size}, cell.experts)
    drawn, tensors = copy.state_dict(), backbone.state_dict()
    if cell.start == "upcycled":
        copy.load_state_dict({name: _upcycled(tensors[name], drawn[name]) for name in drawn})
    else:
        copy.load_state_dict({name: drawn[name] if _is_replaced(name, cell) else tensors[name] for name in drawn})
    return copy


def _upcycled(dense: Tensor, drawn: Tensor) -> Tensor:
    """E noisy copies of the one expert; of a router, whose rows grow in number, the drawn one; the rest as it is."""
    if dense.shape == drawn.shape:
        return dense
    return drawn if dense.ndim == 2 else dense + UPCYCLING_NOISE * dense.std() * torch.randn_like(drawn)


def _swiglu(cell: Cell, sizes: Mapping[str, int], experts: int) -> PreTrainedModel:
    fields = {
        "hidden_size": cell.hidden,
        "num_hidden_layers": cell.depth,
        "num_attention_heads": cell.heads,
        "num_key_value_heads": cell.heads // 2,
        "num_experts_per_tok": min(ACTIVE, experts),
        "max_position_embeddings": BLOCK,
        "initializer_range": cell.hidden**-0.5,
        **sizes,
    }
    if cell.model == "mixtral":
        model = MixtralForCausalLM(
            MixtralConfig(**fields, intermediate_size=cell.expert_width, num_local_experts=experts)
        )
    else:
        widths = dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), cell.expert_width)
        model = Qwen2MoeForCausalLM(Qwen2MoeConfig(**fields, **widths, num_experts=experts, norm_topk_prob=True))
    model.set_experts_implementation("eager")
    return model
