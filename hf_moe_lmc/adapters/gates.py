"""What experts and MLPs do between their projections, and so what their units admit beside their order."""

from typing import Literal, NamedTuple

from torch import nn

from hf_moe_lmc.errors import UnsupportedArchitectureError

from .class_key import class_key

# gated: `act(gate) * up`; odd: odd in `up` but not linear, such as `act(gate) * clamp(up)`; offset: neither, such as
# `act(gate) * (up + 1)`; ungated: `act(up)`.
Gate = Literal["gated", "odd", "offset", "ungated"]


class UnitFreedom(NamedTuple):
    """Whether signs of units are free, and the degree of their free scales; see `SymmetryGroup`."""

    signs: bool
    scale_degree: int


FREEDOM: dict[Gate, UnitFreedom] = {
    "gated": UnitFreedom(True, 1),
    "odd": UnitFreedom(True, 0),
    "offset": UnitFreedom(False, 0),
}

# Activations without gate that are homogeneous, and their degree.
HOMOGENEOUS = {"ReLU": 1, "ReLUSquaredActivation": 2}

# Routed experts with a gate of their own, not the one that Transformers gives to all others.
EXPERTS: dict[str, Gate] = {
    "beam.BeamExperts": "gated",
    "dbrx.DbrxExpertGLU": "gated",
    "doge.DogeCDMoE": "ungated",
    "deepseek_v4.DeepseekV4Experts": "odd",
    "glm5_next.Glm5NextTextExperts": "odd",
    "gpt_oss.GptOssExperts": "offset",
    "hf_moe_lmc.modeling.moe_block.MoeExperts": "ungated",
    "hy_v4.HYV4Experts": "odd",
    "inkling2.Inkling2Experts": "odd",
    "jetmoe.JetMoeMoA": "ungated",
    "jetmoe.JetMoeMoE": "gated",
    "llama4.Llama4TextExperts": "gated",
    "longcat_flash.LongcatFlashExperts": "gated",
    "minimax_m3_vl.MiniMaxM3VLExperts": "offset",
    "nemotron_h.NemotronHExperts": "ungated",
    "openai_privacy_filter.OpenAIPrivacyFilterExperts": "offset",
    "step3p7.Step3p7Experts": "odd",
}

# Dense MLPs, shared experts, and experts that are listed one by one.
MLPS: dict[str, Gate] = {
    "afmoe.AfmoeMLP": "gated",
    "aria.AriaSharedExpertsMLP": "gated",
    "axk1.AXK1MLP": "gated",
    "axk2.AXK2MLP": "gated",
    "bailing_hybrid.BailingHybridMLP": "gated",
    "beam.BeamMLP": "gated",
    "cohere2_moe.Cohere2MoeMLP": "gated",
    "deepseek_ocr2.DeepseekOcr2TextMLP": "gated",
    "deepseek_v2.DeepseekV2MLP": "gated",
    "deepseek_v3.DeepseekV3MLP": "gated",
    "deepseek_v32.DeepseekV32MLP": "gated",
    "deepseek_v4.DeepseekV4MLP": "odd",
    "diffusion_gemma.DiffusionGemmaText4MLP": "gated",
    "doge.DogeCDMoE": "gated",
    "dots1.Dots1MLP": "gated",
    "dots3_note.Dots3NoteTextMLP": "gated",
    "dots3_note.Dots3NoteVisionMLP": "gated",
    "ernie4_5_moe.Ernie4_5_MoeMLP": "gated",
    "ernie4_5_vl_moe.Ernie4_5_VLMoeMLP": "gated",
    "exaone_moe.ExaoneMoeMLP": "gated",
    "flint.FlintMLP": "gated",
    "gemma4.Gemma4TextMLP": "gated",
    "glm4_moe.Glm4MoeMLP": "gated",
    "glm4_moe_lite.Glm4MoeLiteMLP": "gated",
    "glm4v_moe.Glm4vMoeTextMLP": "gated",
    "glm5_next.Glm5NextTextMLP": "odd",
    "glm_moe_dsa.GlmMoeDsaMLP": "gated",
    "gpt2.GPT2MLP": "ungated",
    "granitemoe_swa.GraniteMoeSWAMLP": "gated",
    "granitemoehybrid.GraniteMoeHybridMLP": "gated",
    "granitemoeshared.GraniteMoeSharedMLP": "gated",
    "hf_moe_lmc.modeling.moe_block.MoeSharedExperts": "ungated",
    "hunyuan_v1_moe.HunYuanMoEV1MLP": "gated",
    "hy_v3.HYV3MLP": "gated",
    "hy_v4.HYV4MLP": "gated",
    "inkling.InklingMLP": "gated",
    "inkling.InklingSharedExperts": "gated",
    "jamba.JambaMLP": "gated",
    "kimi_linear.KimiLinearMLP": "gated",
    "kolibri1.Kolibri1MLP": "gated",
    "laguna.LagunaMLP": "gated",
    "lfm2_moe.Lfm2MoeMLP": "gated",
    "llama4.Llama4TextMLP": "gated",
    "longcat_flash.LongcatFlashMLP": "gated",
    "mellum.MellumMLP": "gated",
    "mimo_v2_flash.MiMoV2FlashMLP": "gated",
    "minimax_m3_vl.MiniMaxM3VLDenseMLP": "offset",
    "mistral4.Mistral4MLP": "gated",
    "mistral_large4.MistralLarge4TextMLP": "gated",
    "muse_spark.MuseSparkTextMLP": "gated",
    "nemotron_h.NemotronHMLP": "ungated",
    "nllb_moe.NllbMoeDenseActDense": "ungated",
    "qwen2_moe.Qwen2MoeMLP": "gated",
    "qwen3_5_moe.Qwen3_5MoeMLP": "gated",
    "qwen3_moe.Qwen3MoeMLP": "gated",
    "qwen3_next.Qwen3NextMLP": "gated",
    "qwen3_omni_moe.Qwen3OmniMoeTalkerTextMLP": "gated",
    "qwen3_omni_moe.Qwen3OmniMoeThinkerTextMLP": "gated",
    "qwen3_vl_moe.Qwen3VLMoeTextMLP": "gated",
    "qwen4_exp.Qwen4ExpTextMLP": "gated",
    "solar_open.SolarOpenMLP": "gated",
    "step3p7.Step3p7MLP": "odd",
    "switch_transformers.SwitchTransformersDenseActDense": "ungated",
    "unlimited_ocr.UnlimitedOcrTextMLP": "gated",
    "vit.ViTMLP": "ungated",
    "vitpose_backbone.VitPoseBackboneMoeMLP": "ungated",
}


def expert_units(name: str, experts: nn.Module) -> UnitFreedom:
    """What the units of the routed `experts` (module name `name`) admit.

    Raises:
        UnsupportedArchitectureError: their gate is not known.
    """
    key, gate = class_key(experts), getattr(type(experts), "_apply_gate", None)
    if key not in EXPERTS and getattr(gate, "__module__", None) == "transformers.integrations.moe":
        return FREEDOM["gated"]
    return _freedom(f"experts {name}", EXPERTS.get(key), experts)


def mlp_units(name: str, mlp: nn.Module) -> UnitFreedom:
    """What the units of a dense MLP or of shared experts (module name `name`) admit.

    Raises:
        UnsupportedArchitectureError: their class is not known.
    """
    return _freedom(f"MLP {name}", MLPS.get(class_key(mlp)), mlp)


def _freedom(name: str, gate: Gate | None, module: nn.Module) -> UnitFreedom:
    if gate is None:
        raise UnsupportedArchitectureError(
            f"{name}: a {class_key(module)}, whose gate is not known; see hf_moe_lmc.register_adapter"
        )
    if gate != "ungated":
        return FREEDOM[gate]
    activations = (getattr(module, name, None) for name in ("act_fn", "act", "activation_fn"))
    return UnitFreedom(False, max(HOMOGENEOUS.get(type(activation).__name__, 0) for activation in activations))
