"""Tiny random models of the MoE families of the installed Transformers, one row of `FAMILIES` per family."""

import dataclasses
import importlib
import importlib.util
import inspect
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from packaging.version import Version
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

VOCABULARY, HIDDEN, TOP_K = 97, 32, 3

# Sizes by name of the configuration field; a family gets those of its fields that stand here.
SIZES: dict[str, object] = {
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_size": HIDDEN,
    "d_model": HIDDEN,
    "num_hidden_layers": 3,
    "max_position_embeddings": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "sliding_window": 5,
    "sliding_window_size": 5,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2,
    "swa_head_dim": 8,
    "d_rel": 4,
    "rel_extent": 16,
    # multiples of 8: the rows of grouped_mm begin at multiples of 16 bytes
    "intermediate_size": 48,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 40,
    "shared_intermediate_size": 40,
    "n_shared_experts": 2,
    "num_shared_experts": 2,
    "moe_num_shared_experts": 2,
    "first_k_dense_replace": 1,
    "num_dense_layers": 1,
    "mlp_only_layers": [0],
    "mlp_layer_types": ["dense", "sparse", "sparse"],
    "n_group": lambda experts: 3 if experts % 3 == 0 else 4,
    "topk_group": 2,
    # multi-head latent attention and its sparse indexer
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "index_n_heads": 2,
    "index_head_dim": 8,
    "index_topk": 6,
    # linear attention and state spaces
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_head_dim": 8,
    "linear_num_heads": 2,
    "mamba_d_state": 4,
    "mamba_dt_rank": 5,
    "swiglu_limit": 0.5,  # low enough to clamp
}
SIZES |= dict.fromkeys(
    ["num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"], lambda experts: experts
)
EXPERTS_PER_TOKEN = ("num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts")
SIZES |= dict.fromkeys(EXPERTS_PER_TOKEN, TOP_K)


@dataclass(frozen=True)
class Family:
    """A model class of the folder `transformers.models.<folder>`, and what it needs beside or instead of `SIZES`.

    A function in `fields` is called with the number of experts.
    """

    folder: str
    model: str
    fields: dict[str, object] = field(default_factory=dict)
    float32: tuple[str, ...] = ()  # ends of parameter names that the forward pass multiplies with float32 activations
    embeds: bool = False  # the model takes embeddings, not tokens
    since: str = "5"  # the first Transformers known to run it

    def model_class(self) -> type[PreTrainedModel]:
        return getattr(importlib.import_module(f"transformers.models.{self.folder}.modeling_{self.folder}"), self.model)


def row(
    folder: str,
    model: str,
    *,
    float32: tuple[str, ...] = (),
    embeds: bool = False,
    since: str = "5",
    **fields: object,
) -> Family:
    return Family(folder, model, fields, float32, embeds, since)


FAMILIES: dict[str, Family] = {
    "mixtral": row("mixtral", "MixtralForCausalLM"),
    "minimax": row("minimax", "MiniMaxForCausalLM", block_size=4),
    "minimax_m2": row("minimax_m2", "MiniMaxM2ForCausalLM"),
    "minimax_m3_vl": row("minimax_m3_vl", "MiniMaxM3VLForCausalLM", dense_intermediate_size=48),
    "qwen2_moe": row("qwen2_moe", "Qwen2MoeForCausalLM"),
    "qwen3_moe": row("qwen3_moe", "Qwen3MoeForCausalLM"),
    "qwen3_next": row("qwen3_next", "Qwen3NextForCausalLM"),
    "qwen3_5_moe": row("qwen3_5_moe", "Qwen3_5MoeForCausalLM"),
    "qwen4_exp": row("qwen4_exp", "Qwen4ExpForCausalLM", hc_lowrank=8),
    "qwen3_vl_moe": row("qwen3_vl_moe", "Qwen3VLMoeTextModel"),
    "qwen3_omni_moe.thinker": row("qwen3_omni_moe", "Qwen3OmniMoeThinkerTextModel"),
    "qwen3_omni_moe.talker": row(
        "qwen3_omni_moe", "Qwen3OmniMoeTalkerModel", embeds=True, shared_expert_intermediate_size=40
    ),
    "olmoe": row("olmoe", "OlmoeForCausalLM"),
    "flex_olmo": row("flex_olmo", "FlexOlmoForCausalLM"),
    "mellum": row("mellum", "MellumForCausalLM"),
    "deepseek_v2": row("deepseek_v2", "DeepseekV2ForCausalLM", topk_method="group_limited_greedy"),
    "deepseek_v2.greedy": row("deepseek_v2", "DeepseekV2ForCausalLM", topk_method="greedy"),
    "deepseek_v3": row("deepseek_v3", "DeepseekV3ForCausalLM"),
    "deepseek_v3.ng1": row("deepseek_v3", "DeepseekV3ForCausalLM", n_group=1, topk_group=1),
    "deepseek_v32": row("deepseek_v32", "DeepseekV32ForCausalLM"),
    "deepseek_v4": row(
        "deepseek_v4",
        "DeepseekV4ForCausalLM",
        num_key_value_heads=1,
        o_groups=2,
        o_lora_rank=8,
        mlp_layer_types=["hash_moe", "moe", "moe"],
    ),
    "deepseek_ocr2": row("deepseek_ocr2", "DeepseekOcr2TextModel"),
    "unlimited_ocr": row("unlimited_ocr", "UnlimitedOcrTextModel"),
    "glm4_moe": row("glm4_moe", "Glm4MoeForCausalLM"),
    "glm4_moe_lite": row("glm4_moe_lite", "Glm4MoeLiteForCausalLM"),
    "glm4v_moe": row(
        "glm4v_moe",
        "Glm4vMoeTextModel",
        rope_parameters={"rope_theta": 10000.0, "partial_rotary_factor": 0.5, "mrope_section": [1, 1, 0]},
    ),
    "glm_moe_dsa": row("glm_moe_dsa", "GlmMoeDsaForCausalLM"),
    "glm5_next": row("glm5_next", "Glm5NextTextModel", qk_rope_head_dim=0, index_kpool=3),
    "gpt_oss": row("gpt_oss", "GptOssForCausalLM"),
    "openai_privacy_filter": row("openai_privacy_filter", "OpenAIPrivacyFilterForTokenClassification"),
    "granitemoe": row("granitemoe", "GraniteMoeForCausalLM"),
    "granitemoe_swa": row("granitemoe_swa", "GraniteMoeSWAForCausalLM"),
    "granitemoeshared": row("granitemoeshared", "GraniteMoeSharedForCausalLM"),
    "granitemoehybrid": row(
        "granitemoehybrid",
        "GraniteMoeHybridForCausalLM",
        mamba_n_heads=4,
        layer_types=["linear_attention", "full_attention", "linear_attention"],
    ),
    "phimoe": row("phimoe", "PhimoeForCausalLM", num_experts_per_tok=2),
    "jamba": row("jamba", "JambaForCausalLM", num_hidden_layers=4, attn_layer_period=2, attn_layer_offset=1),
    "dbrx": row(
        "dbrx",
        "DbrxForCausalLM",
        n_heads=4,
        n_layers=2,
        attn_config={"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        ffn_config=lambda experts: {"ffn_hidden_size": 24, "moe_num_experts": experts, "moe_top_k": TOP_K},
    ),
    "llama4": row("llama4", "Llama4ForCausalLM", moe_layers=[1, 2], intermediate_size_mlp=48),
    "ernie4_5_moe": row("ernie4_5_moe", "Ernie4_5_MoeForCausalLM"),
    "ernie4_5_vl_moe": row(
        "ernie4_5_vl_moe",
        "Ernie4_5_VLMoeTextModel",
        moe_intermediate_size=[24, 16],
        rope_parameters={"rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
    ),
    "hunyuan_v1_moe": row("hunyuan_v1_moe", "HunYuanMoEV1ForCausalLM"),
    "hy_v3": row("hy_v3", "HYV3ForCausalLM"),
    "hy_v4": row("hy_v4", "HYV4ForCausalLM"),
    "dots1": row("dots1", "Dots1ForCausalLM"),
    "dots3_note": row(
        "dots3_note", "Dots3NoteForCausalLM", use_sliding_window=False, shared_experts_intermediate_size=40
    ),
    "dots3_note.vision": row(
        "dots3_note",
        "Dots3NoteVisionModel",
        patch_size=2,
        adapter_in_dim=HIDDEN,
        adapter_out_dim=HIDDEN,
        pyramid_num_routed=lambda experts: [-1, experts, experts],
    ),
    "lfm2_moe": row("lfm2_moe", "Lfm2MoeForCausalLM", layer_types=["conv", "full_attention", "conv"]),
    "switch_transformers": row(
        "switch_transformers",
        "SwitchTransformersForConditionalGeneration",
        d_kv=8,
        d_ff=48,
        num_heads=4,
        num_layers=2,
        num_decoder_layers=2,
        num_sparse_encoder_layers=1,
        num_sparse_decoder_layers=1,
    ),
    "nllb_moe": row(
        "nllb_moe",
        "NllbMoeForConditionalGeneration",
        encoder_layers=2,
        decoder_layers=2,
        encoder_sparse_step=2,
        decoder_sparse_step=2,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
    ),
    "jetmoe": row("jetmoe", "JetMoeForCausalLM", kv_channels=8),
    "aria": row("aria", "AriaTextForCausalLM"),
    "afmoe": row("afmoe", "AfmoeForCausalLM"),
    "axk1": row("axk1", "AXK1ForCausalLM"),
    "axk2": row("axk2", "AXK2ForCausalLM"),
    "bailing_hybrid": row("bailing_hybrid", "BailingHybridForCausalLM"),
    "beam": row("beam", "BeamForCausalLM"),
    "cohere2_moe": row("cohere2_moe", "Cohere2MoeForCausalLM"),
    "diffusion_gemma": row("diffusion_gemma", "DiffusionGemmaEncoderTextModel", global_head_dim=8),
    # before "since", the layer took the (hidden states, router logits) of its experts for a tensor: transformers#40079
    "doge": row(
        "doge",
        "DogeForCausalLM",
        since="5.23",
        is_moe=True,
        num_experts=lambda experts: (math.isqrt(experts - 1) + 1) ** 2,
    ),
    "exaone_moe": row("exaone_moe", "ExaoneMoeForCausalLM"),
    "flint": row("flint", "FlintForCausalLM"),
    "gemma4": row(
        "gemma4",
        "Gemma4ForCausalLM",
        enable_moe_block=True,
        global_head_dim=8,
        vocab_size_per_layer_input=VOCABULARY,
        hidden_size_per_layer_input=8,
    ),
    "inkling": row("inkling", "InklingForCausalLM"),
    "inkling2": row("inkling2", "Inkling2ForCausalLM", float32=("mlp.gate.weight",)),
    "kimi_linear": row("kimi_linear", "KimiLinearForCausalLM"),
    "kolibri1": row("kolibri1", "Kolibri1ForCausalLM"),
    "laguna": row("laguna", "LagunaForCausalLM"),
    "longcat_flash": row(
        "longcat_flash",
        "LongcatFlashForCausalLM",
        num_layers=2,
        head_dim=4,
        ffn_hidden_size=48,
        expert_ffn_hidden_size=24,
        zero_expert_num=4,
    ),
    "mimo_v2_flash": row("mimo_v2_flash", "MiMoV2FlashForCausalLM"),
    "mistral4": row("mistral4", "Mistral4ForCausalLM"),
    "mistral_large4": row("mistral_large4", "MistralLarge4TextModel"),
    "muse_spark": row("muse_spark", "MuseSparkTextModel", moe_hidden_size=24),
    "nemotron_h": row(
        "nemotron_h",
        "NemotronHForCausalLM",
        hybrid_override_pattern="ME*E-",
        ssm_state_size=4,
        mamba_num_heads=4,
        mamba_head_dim=16,
        n_groups=2,
        chunk_size=4,
        moe_shared_expert_intermediate_size=40,
    ),
    "solar_open": row("solar_open", "SolarOpenForCausalLM"),
    "step3p7": row(
        "step3p7",
        "Step3p7TextModel",
        share_expert_dim=40,
        swiglu_limits=[0.5] * 3,
        swiglu_limits_shared=[0.5] * 3,
    ),
    "vitpose_backbone": row(
        "vitpose_backbone", "VitPoseBackbone", image_size=[16, 16], patch_size=[8, 8], mlp_ratio=2, part_features=8
    ),
    "zaya": row("zaya", "ZayaForCausalLM", num_experts_per_tok=1, router_hidden_size=24),
}

NOT_COVERED: dict[str, str] = {
    "bamba": "num_experts = 1 is written into the layer: every layer is dense",
    "vitpose": "the head on vitpose_backbone; it mentions experts in a docstring only",
}

# Refused by name; each entry is what the refusal must say.
REFUSED: dict[str, str] = {}
if Version(transformers.__version__) < Version("5.23"):
    REFUSED |= {"aria": "AriaExperts is not known", "jamba": "JambaSparseMoeBlock, whose symmetries"}


HOLDERS = ["dbrx", "doge", "gpt_oss", "inkling", "jetmoe", "mixtral", "switch_transformers"]
"""One family of each way to hold experts."""


def supported() -> list[str]:
    """Names of the rows that are not refused here."""
    return [name for name in available() if name not in REFUSED]


def available() -> list[str]:
    """Names of the rows whose model class the installed Transformers has and runs."""
    return [name for name, family in FAMILIES.items() if _exists(family)]


def _exists(family: Family) -> bool:
    package = f"transformers.models.{family.folder}"
    if Version(transformers.__version__) < Version(family.since) or importlib.util.find_spec(package) is None:
        return False
    return family.model in dir(importlib.import_module(package))  # lazy: does not import the modeling file


def discover() -> set[str]:
    """Model folders of the installed Transformers whose modeling code says "experts", in a name or in words."""
    models = Path(transformers.__file__).parent / "models"
    files = models.glob("*/modeling_*.py")
    return {file.parent.name for file in files if re.search("experts", file.read_text("utf-8"), re.IGNORECASE)}


def configuration(name: str, experts: int, sizes: dict[str, object] | None = None) -> PreTrainedConfig:
    family = FAMILIES[name]
    cls = family.model_class().config_class
    fields = fields_of(cls, SIZES)
    if "kv_lora_rank" in fields:  # latent attention has no groups of heads
        fields["num_key_value_heads"] = fields["num_attention_heads"]
    fields |= family.fields | fields_of(cls, sizes or {})
    return cls(**{key: value(experts) if callable(value) else value for key, value in fields.items()})


def fields_of(cls: type[PreTrainedConfig], sizes: dict[str, object]) -> dict[str, object]:
    """Those of `sizes` that the configuration class has."""
    return {field.name: sizes[field.name] for field in dataclasses.fields(cls) if field.name in sizes}


def build(
    name: str,
    *,
    experts: int = 12,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    implementation: str = "eager",
    sizes: dict[str, object] | None = None,
) -> PreTrainedModel:
    """The family `name` with all that `state_dict` holds drawn anew from `seed`: nothing stays at its default.

    `implementation` is that of the experts, where their class leaves the choice; only "eager" takes float64. `sizes`
    are taken in the place of the family's own, those that its configuration has.
    """
    family = FAMILIES[name]
    model = family.model_class()(configuration(name, experts, sizes)).eval()
    for module in model.modules():  # dots3_note's layers have configurations of their own
        if hasattr(module, "config"):
            module.config._experts_implementation = implementation
    draw_weights(model, experts, seed)
    model.to(dtype)
    for key, parameter in model.named_parameters():
        if key.endswith(family.float32):
            parameter.data = parameter.data.float()
    return model


def draw_weights(model: PreTrainedModel, experts: int, seed: int = 0) -> PreTrainedModel:
    """The model with all that `state_dict` holds drawn anew: weights of order 1."""
    generator = torch.Generator().manual_seed(seed)
    for key, value in model.state_dict().items():
        if key.endswith("tid2eid"):  # the experts of each token, where a table routes
            value.copy_(torch.rand(len(value), experts, generator=generator).topk(value.shape[1]).indices)
        elif value.is_floating_point():
            noise = torch.randn(value.shape, generator=generator)
            value.copy_(
                1 + 0.1 * noise if "norm" in key and key.endswith("weight") and value.ndim == 1 else 0.5 * noise
            )
    return model


def inputs(model: PreTrainedModel, name: str) -> dict[str, Tensor]:
    """Two random sequences of seven tokens, or two random images."""
    generator = torch.Generator().manual_seed(1)
    if "grid_thw" in inspect.signature(model.forward).parameters:  # two images of 4 x 4 patches
        pixels = model.config.num_channels * model.config.patch_size**2
        patches = torch.randn(32, pixels, generator=generator)
        return {"pixel_values": patches.to(model.dtype), "grid_thw": torch.tensor([[1, 4, 4], [1, 4, 4]])}
    if "dataset_index" in inspect.signature(model.forward).parameters:
        pixels = torch.randn(2, model.config.num_channels, *model.config.image_size, generator=generator)
        return {"pixel_values": pixels.to(model.dtype), "dataset_index": torch.tensor([1, 4])}
    if FAMILIES[name].embeds:
        return {"inputs_embeds": torch.randn(2, 7, HIDDEN, generator=generator).to(model.dtype)}
    batch = {"input_ids": torch.randint(3, VOCABULARY, (2, 7), generator=generator)}
    if "moe_mm_token_type_ids" in inspect.signature(model.forward).parameters:  # else the vision experts idle
        batch["moe_mm_token_type_ids"] = torch.tensor([[0, 1, 1, 0, 1, 0, 0], [1, 0, 0, 1, 0, 1, 1]])
    if model.config.is_encoder_decoder:
        batch["decoder_input_ids"] = torch.randint(3, VOCABULARY, (2, 7), generator=generator)
    return batch


def outputs(model: PreTrainedModel, name: str) -> Tensor:
    """What `output` is for the inputs of the family."""
    return output(model, inputs(model, name))


@torch.no_grad()
def output(model: PreTrainedModel, batch: dict[str, Any]) -> Tensor:
    """The logits, or the last hidden state of a model without a head, which a backbone calls a feature map."""
    result = model(**batch) if "pixel_values" in batch else model(**({"use_cache": False} | batch))
    if "feature_maps" in result:
        return result["feature_maps"][-1]
    return result["logits"] if "logits" in result else result["last_hidden_state"]
