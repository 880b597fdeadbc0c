"""What the known routers do: one row per router class, or per class of the block that uses a plain linear.

A router that is not listed is refused: nothing in its tensors tells a softmax from a sigmoid.
"""

from torch import nn

from hf_moe_lmc.errors import UnsupportedArchitectureError

from .class_key import class_key

# Softmax over all scores or over the selected ones, whose answer ignores a shift common to all experts.
SOFTMAX = {
    "hf_moe_lmc.modeling.moe_block.MoeRouter",
    "aria.AriaTextTopKRouter",
    "dbrx.DbrxRouter",
    "deepseek_ocr2.DeepseekOcr2TextTopkRouter",
    "deepseek_v2.DeepseekV2TopkRouter",
    "diffusion_gemma.DiffusionGemmaTextRouter",
    "doge.DogeCDMoE",
    "ernie4_5_vl_moe.Ernie4_5_VLMoeMoeTopKRouter",
    "ernie4_5_moe.Ernie4_5_MoeTopKRouter",
    "flex_olmo.FlexOlmoTopKRouter",
    "gemma4.Gemma4TextRouter",
    "gpt_oss.GptOssTopKRouter",
    "granitemoe.GraniteMoeTopKRouter",
    "granitemoe_swa.GraniteMoeSWATopKRouter",
    "granitemoehybrid.GraniteMoeHybridTopKRouter",
    "granitemoeshared.GraniteMoeSharedTopKRouter",
    "hunyuan_v1_moe.HunYuanMoEV1Gate",
    "jetmoe.JetMoeTopKGating",
    "jamba.JambaTopKRouter",
    "mellum.MellumTopKRouter",
    "minimax.MiniMaxTopKRouter",
    "mistral4.Mistral4TopkRouter",
    "mistral_large4.MistralLarge4TextTopkRouter",
    "mixtral.MixtralTopKRouter",
    "olmoe.OlmoeTopKRouter",
    "openai_privacy_filter.OpenAIPrivacyFilterTopKRouter",
    "qwen2_moe.Qwen2MoeTopKRouter",
    "qwen3_5_moe.Qwen3_5MoeTopKRouter",
    "qwen3_moe.Qwen3MoeTopKRouter",
    "qwen3_next.Qwen3NextTopKRouter",
    "qwen3_omni_moe.Qwen3OmniMoeTalkerTextTopKRouter",
    "qwen3_omni_moe.Qwen3OmniMoeThinkerTextTopKRouter",
    "qwen3_vl_moe.Qwen3VLMoeTextTopKRouter",
    "qwen4_exp.Qwen4ExpTextTopKRouter",
    "nllb_moe.NllbMoeTop2Router",
    "switch_transformers.SwitchTransformersTop1Router",
    "unlimited_ocr.UnlimitedOcrTextTopkRouter",
}

# Sigmoids and other functions of the score itself; a shift changes their answer.
SHIFT_SENSITIVE = frozenset(
    {
        "afmoe.AfmoeTokenChoiceRouter",
        "axk1.AXK1TopkRouter",
        "bailing_hybrid.BailingHybridTopkRouter",
        "beam.BeamTopKRouter",
        "deepseek_v3.DeepseekV3TopkRouter",
        "deepseek_v4.DeepseekV4HashRouter",
        "deepseek_v4.DeepseekV4TopKRouter",
        "deepseek_v32.DeepseekV32TopkRouter",
        "dots1.Dots1TopkRouter",
        "dots3_note.Dots3NoteTextTopkRouter",
        "dots3_note.Dots3NoteVisionTopKRouter",
        "exaone_moe.ExaoneMoeTopkRouter",
        "flint.FlintTopKRouter",
        "glm4_moe.Glm4MoeTopkRouter",
        "glm4_moe_lite.Glm4MoeLiteTopkRouter",
        "glm4v_moe.Glm4vMoeTextTopkRouter",
        "glm5_next.Glm5NextTextTopkRouter",
        "glm_moe_dsa.GlmMoeDsaTopkRouter",
        "hy_v3.HYV3TopKRouter",
        "hy_v4.HYV4TopkRouter",
        "inkling2.Inkling2TopKRouter",
        "kimi_linear.KimiLinearTopkRouter",
        "kolibri1.Kolibri1TopKRouter",
        "laguna.LagunaTopKRouter",
        "lfm2_moe.Lfm2MoeTopKRouter",
        "llama4.Llama4Router",
        "mimo_v2_flash.MiMoV2FlashTopkRouter",
        "minimax_m2.MiniMaxM2TopKRouter",
        "minimax_m3_vl.MiniMaxM3VLTopKRouter",
        "muse_spark.MuseSparkTopkRouter",
        "nemotron_h.NemotronHTopkRouter",
        "phimoe.PhimoeTopKRouter",
        "solar_open.SolarOpenTopkRouter",
        "step3p7.Step3p7TopKRouter",
    }
)

# Softmax or sigmoid, as the attribute named here says.
CONFIGURED = {"cohere2_moe.Cohere2MoeTopKRouter": "expert_selection_fn"}

# Masks the groups that lose with 0 where a selected score may be negative, so a common constant may change the choice.
CONSTANT_SENSITIVE = {"axk2.AXK2TopkRouter"}

# With rows beyond those of the routed experts: zero experts, skipped tokens, shared experts. A shift of the routed rows
# alone changes the answer of all of these.
WITH_FURTHER_ROWS = frozenset({"inkling.InklingTopkRouter", "longcat_flash.LongcatFlashTopkRouter", "zaya.ZayaRouter"})

# Whose weight is 1 where one expert is chosen; so are the routers whose attribute norm_topk_prob says so.
RENORMALISING = frozenset(
    {
        "hf_moe_lmc.modeling.moe_block.MoeRouter",
        "aria.AriaTextTopKRouter",
        "doge.DogeCDMoE",
        "gpt_oss.GptOssTopKRouter",
        "granitemoe.GraniteMoeTopKRouter",
        "granitemoe_swa.GraniteMoeSWATopKRouter",
        "granitemoehybrid.GraniteMoeHybridTopKRouter",
        "granitemoeshared.GraniteMoeSharedTopKRouter",
        "hunyuan_v1_moe.HunYuanMoEV1Gate",
        "jetmoe.JetMoeTopKGating",
        "minimax.MiniMaxTopKRouter",
        "mixtral.MixtralTopKRouter",
        "openai_privacy_filter.OpenAIPrivacyFilterTopKRouter",
        "qwen3_5_moe.Qwen3_5MoeTopKRouter",
        "qwen3_omni_moe.Qwen3OmniMoeThinkerTextTopKRouter",
        "qwen3_vl_moe.Qwen3VLMoeTextTopKRouter",
    }
)

# Attribute of the router that holds the number of expert groups, where it is not num_group.
GROUPS: dict[str, str] = {}


def admits_translation(name: str, router: nn.Module) -> bool:
    """Whether adding one vector to all rows of `router` (module name `name`) leaves its answer alone.

    Raises:
        UnsupportedArchitectureError: the router class is not known.
    """
    key = class_key(router)
    if key in CONFIGURED:
        return getattr(router, CONFIGURED[key]) == "softmax"
    if key not in SOFTMAX | SHIFT_SENSITIVE | CONSTANT_SENSITIVE | WITH_FURTHER_ROWS:
        raise UnsupportedArchitectureError(
            f"router {name}: a {key}, whose symmetries are not known; see hf_moe_lmc.register_adapter"
        )
    return key in SOFTMAX


def admits_scale(router: nn.Module) -> bool:
    """Whether a positive factor of all rows of `router` leaves its answer alone: one expert, with weight 1."""
    key = class_key(router)
    renormalises = key in RENORMALISING or bool(getattr(router, "norm_topk_prob", False))
    return key in SOFTMAX and renormalises and getattr(router, "top_k", None) == 1 and expert_groups(router) == 1


def admits_selection_bias_constant(router: nn.Module) -> bool:
    """Whether a constant added to all selection biases leaves the choice of experts alone."""
    return class_key(router) not in CONSTANT_SENSITIVE | WITH_FURTHER_ROWS


def expert_groups(router: nn.Module) -> int:
    """How many groups of neighbouring experts group-limited routing tells apart; 1 where it does not limit."""
    groups = getattr(router, GROUPS.get(class_key(router), "num_group"), None) or 1
    chosen = getattr(router, "topk_group", None) or 1
    return 1 if getattr(router, "topk_method", None) == "greedy" or chosen >= groups else groups
