"""Facts of every known family, one record per class; whoever adds or mends a family edits its row in `FAMILIES`."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

from hf_moe_lmc.moe import FurtherRows

# gated: `act(gate) * up`; odd: odd in `up` but not linear, such as `act(gate) * clamp(up)`; offset: neither, such as
# `act(gate) * (up + 1)`; ungated: `act(up)`.
Gate = Literal["gated", "odd", "offset", "ungated"]

# Tensors of routers, and selection biases of blocks, by the field of `Router` that they are.
ROUTER_TENSORS = {
    "weight": "weight",
    "classifier.weight": "weight",
    "gate.weight": "weight",
    "layer.weight": "weight",
    "proj.weight": "weight",
    "router_mlp.out_proj.weight": "weight",
    "wg.weight": "weight",
    "bias": "bias",
    "classifier.bias": "bias",
    "balancing_biases": "selection_bias",
    "e_score_correction_bias": "selection_bias",
    "expert_bias": "selection_bias",
    "moe_statics.e_score_correction_bias": "selection_bias",
    "per_expert_scale": "per_expert_scale",
    "tid2eid": "expert_table",
}


@dataclass(frozen=True)
class RouterFacts:
    """Facts of a router, or of a block whose router is a plain linear.

    Args:
        scores: "softmax" over all scores or over the selected ones, so that a number added to the scores of all experts
            changes nothing; "sigmoid" for all else.
        scores_attribute: attribute of the router that says which of the two, where the configuration chooses.
        renormalises: whether the routing weight of one expert chosen alone is 1; so it is, too, where the attribute
            norm_topk_prob is true.
        selection_bias_constant: whether a number added to all selection biases leaves the choice of experts alone.
        further_rows: owner of the rows that follow those of the routed experts; None if none follow. A shift of the
            routed rows alone then changes the output.
        expert_groups: attribute of the router that holds the number of groups of group-limited routing.
        top_k: K, or the field of its configuration that holds it, where no attribute top_k does.
        common_tensors: names of tensors that belong to no expert, or of modules below the router.
    """

    scores: Literal["softmax", "sigmoid"]
    scores_attribute: str | None = None
    renormalises: bool = False
    selection_bias_constant: bool = True
    further_rows: FurtherRows | None = None
    expert_groups: str = "num_group"
    top_k: int | str | None = None
    common_tensors: tuple[str, ...] = ()


@dataclass(frozen=True)
class ExpertFacts:
    """Facts of a module that holds routed experts.

    Args:
        gate: None for the gate that Transformers gives to experts, and for a list of MLPs, which have their own.
        layout: None where the tensors tell (`detection.py`); else the layout that only this class has.
        fixed_experts, fixed_units: whether their order is no symmetry.
        expert_output_scale: whether the outputs of experts are normalised before they are weighted.
        used_in_parts: whether the block is never called as a whole, but its parts by the module above it.
    """

    gate: Gate | None = None
    layout: Literal["flat", "linears", "product keys"] | None = None
    fixed_experts: bool = False
    fixed_units: bool = False
    expert_output_scale: bool = False
    used_in_parts: bool = False


@dataclass(frozen=True)
class MlpFacts:
    """Facts of an MLP of linears: a dense layer, shared experts, or one expert of a list.

    Args:
        gate: its gate.
        has_heads: whether it has several linears out of its units, called experts, among which the caller chooses.
    """

    gate: Gate
    has_heads: bool = False


@dataclass(frozen=True)
class ClassFacts:
    """All facts of one class, in each of the roles that it has; without any, it has nothing of its own to align."""

    router: RouterFacts | None = None
    experts: ExpertFacts | None = None
    mlp: MlpFacts | None = None


SOFTMAX = ClassFacts(router=RouterFacts("softmax"))
SOFTMAX_TO_ONE = ClassFacts(router=RouterFacts("softmax", renormalises=True))
SIGMOID = ClassFacts(router=RouterFacts("sigmoid"))

GATED_EXPERTS = ClassFacts(experts=ExpertFacts("gated"))
ODD_EXPERTS = ClassFacts(experts=ExpertFacts("odd"))
OFFSET_EXPERTS = ClassFacts(experts=ExpertFacts("offset"))
UNGATED_EXPERTS = ClassFacts(experts=ExpertFacts("ungated"))

GATED = ClassFacts(mlp=MlpFacts("gated"))
ODD = ClassFacts(mlp=MlpFacts("odd"))
OFFSET = ClassFacts(mlp=MlpFacts("offset"))
UNGATED = ClassFacts(mlp=MlpFacts("ungated"))

NOTHING = ClassFacts()

# Folder of `transformers.models`, or module of another package -> class -> its facts. Experts whose gate is that of
# Transformers need no entry.
FAMILIES: dict[str, dict[str, ClassFacts]] = {
    "afmoe": {"AfmoeTokenChoiceRouter": SIGMOID, "AfmoeMLP": GATED},
    "aria": {"AriaTextTopKRouter": SOFTMAX_TO_ONE, "AriaSharedExpertsMLP": GATED},
    "axk1": {"AXK1TopkRouter": SIGMOID, "AXK1MLP": GATED},
    "axk2": {
        # Masks the groups that lose with 0 where a selected score may be negative, so a constant may change the choice.
        "AXK2TopkRouter": ClassFacts(RouterFacts("sigmoid", selection_bias_constant=False)),
        "AXK2MLP": GATED,
    },
    "bailing_hybrid": {"BailingHybridTopkRouter": SIGMOID, "BailingHybridMLP": GATED},
    "beam": {"BeamTopKRouter": SIGMOID, "BeamExperts": GATED_EXPERTS, "BeamMLP": GATED},
    "cohere2_moe": {
        "Cohere2MoeTopKRouter": ClassFacts(
            RouterFacts("softmax", scores_attribute="expert_selection_fn", renormalises=True)
        ),
        "Cohere2MoeMLP": GATED,
    },
    "dbrx": {
        "DbrxRouter": SOFTMAX,
        "DbrxExperts": NOTHING,
        "DbrxExpertGLU": ClassFacts(experts=ExpertFacts("gated", layout="flat")),
    },
    "deepseek_ocr2": {"DeepseekOcr2TextTopkRouter": SOFTMAX, "DeepseekOcr2TextMLP": GATED},
    "deepseek_v2": {"DeepseekV2TopkRouter": SOFTMAX, "DeepseekV2MLP": GATED},
    "deepseek_v3": {"DeepseekV3TopkRouter": SIGMOID, "DeepseekV3MLP": GATED},
    "deepseek_v32": {"DeepseekV32TopkRouter": SIGMOID, "DeepseekV32MLP": GATED},
    "deepseek_v4": {
        "DeepseekV4HashRouter": SIGMOID,
        "DeepseekV4TopKRouter": SIGMOID,
        "DeepseekV4Experts": ODD_EXPERTS,
        "DeepseekV4MLP": ODD,
    },
    "diffusion_gemma": {
        "DiffusionGemmaTextRouter": ClassFacts(
            RouterFacts("softmax", top_k="top_k_experts", common_tensors=("scale",))
        ),
        "DiffusionGemmaText4MLP": GATED,
    },
    "doge": {
        "DogeCDMoE": ClassFacts(
            RouterFacts("softmax", renormalises=True), ExpertFacts("ungated", layout="product keys"), MlpFacts("gated")
        )
    },
    "dots1": {"Dots1TopkRouter": SIGMOID, "Dots1MLP": GATED},
    "dots3_note": {
        "Dots3NoteTextTopkRouter": SIGMOID,
        "Dots3NoteTextMLP": GATED,
        "Dots3NoteVisionTopKRouter": SIGMOID,
        "Dots3NoteVisionMLP": GATED,
    },
    "ernie4_5_moe": {"Ernie4_5_MoeTopKRouter": SOFTMAX, "Ernie4_5_MoeMLP": GATED},
    "ernie4_5_vl_moe": {"Ernie4_5_VLMoeMoeTopKRouter": SOFTMAX, "Ernie4_5_VLMoeMLP": GATED},
    "exaone_moe": {"ExaoneMoeTopkRouter": SIGMOID, "ExaoneMoeMLP": GATED},
    "flex_olmo": {"FlexOlmoTopKRouter": SOFTMAX},
    "flint": {"FlintTopKRouter": SIGMOID, "FlintMLP": GATED},
    "gemma4": {
        "Gemma4TextRouter": ClassFacts(RouterFacts("softmax", top_k="top_k_experts", common_tensors=("scale",))),
        "Gemma4TextMLP": GATED,
    },
    "glm4_moe": {"Glm4MoeTopkRouter": SIGMOID, "Glm4MoeMLP": GATED},
    "glm4_moe_lite": {"Glm4MoeLiteTopkRouter": SIGMOID, "Glm4MoeLiteMLP": GATED},
    "glm4v_moe": {"Glm4vMoeTextTopkRouter": SIGMOID, "Glm4vMoeTextMLP": GATED},
    "glm5_next": {"Glm5NextTextTopkRouter": SIGMOID, "Glm5NextTextExperts": ODD_EXPERTS, "Glm5NextTextMLP": ODD},
    "glm_moe_dsa": {"GlmMoeDsaTopkRouter": SIGMOID, "GlmMoeDsaMLP": GATED},
    "gpt2": {"GPT2MLP": UNGATED},
    "gpt_oss": {"GptOssTopKRouter": SOFTMAX_TO_ONE, "GptOssExperts": OFFSET_EXPERTS},
    "granitemoe": {"GraniteMoeTopKRouter": SOFTMAX_TO_ONE},
    "granitemoe_swa": {"GraniteMoeSWATopKRouter": SOFTMAX_TO_ONE, "GraniteMoeSWAMLP": GATED},
    "granitemoehybrid": {"GraniteMoeHybridTopKRouter": SOFTMAX_TO_ONE, "GraniteMoeHybridMLP": GATED},
    "granitemoeshared": {"GraniteMoeSharedTopKRouter": SOFTMAX_TO_ONE, "GraniteMoeSharedMLP": GATED},
    "hf_moe_lmc.modeling.moe_block": {
        "MoeRouter": SOFTMAX_TO_ONE,
        "MoeExperts": UNGATED_EXPERTS,
        "MoeSharedExperts": UNGATED,
    },
    "hunyuan_v1_moe": {"HunYuanMoEV1Gate": SOFTMAX_TO_ONE, "HunYuanMoEV1MLP": GATED},
    "hy_v3": {"HYV3TopKRouter": SIGMOID, "HYV3MLP": GATED},
    "hy_v4": {"HYV4TopkRouter": SIGMOID, "HYV4Experts": ODD_EXPERTS, "HYV4MLP": GATED},
    "inkling": {
        "InklingTopkRouter": ClassFacts(
            RouterFacts("sigmoid", further_rows="shared experts", common_tensors=("global_scale",))
        ),
        "InklingSharedExperts": GATED,
        "InklingMLP": GATED,
    },
    "inkling2": {"Inkling2TopKRouter": SIGMOID, "Inkling2Experts": ODD_EXPERTS},
    "jamba": {"JambaTopKRouter": SOFTMAX, "JambaMLP": GATED},
    "jetmoe": {
        "JetMoeTopKGating": SOFTMAX_TO_ONE,
        # The units of an attention expert are dimensions of query heads.
        "JetMoeMoA": ClassFacts(experts=ExpertFacts("ungated", layout="linears", fixed_units=True, used_in_parts=True)),
        "JetMoeMoE": ClassFacts(experts=ExpertFacts("gated", layout="linears")),
    },
    "kimi_linear": {"KimiLinearTopkRouter": SIGMOID, "KimiLinearMLP": GATED},
    "kolibri1": {"Kolibri1TopKRouter": SIGMOID, "Kolibri1MLP": GATED},
    "laguna": {"LagunaTopKRouter": SIGMOID, "LagunaMLP": GATED},
    "lfm2_moe": {"Lfm2MoeTopKRouter": SIGMOID, "Lfm2MoeMLP": GATED},
    "llama4": {"Llama4Router": SIGMOID, "Llama4TextExperts": GATED_EXPERTS, "Llama4TextMLP": GATED},
    "longcat_flash": {
        "LongcatFlashTopkRouter": ClassFacts(RouterFacts("softmax", further_rows="zero experts")),
        "LongcatFlashExperts": GATED_EXPERTS,
        "LongcatFlashMLP": GATED,
    },
    "mellum": {"MellumTopKRouter": SOFTMAX, "MellumMLP": GATED},
    "mimo_v2_flash": {"MiMoV2FlashTopkRouter": SIGMOID, "MiMoV2FlashMLP": GATED},
    "minimax": {"MiniMaxTopKRouter": SOFTMAX_TO_ONE},
    "minimax_m2": {"MiniMaxM2TopKRouter": SIGMOID},
    "minimax_m3_vl": {
        "MiniMaxM3VLTopKRouter": SIGMOID,
        "MiniMaxM3VLExperts": OFFSET_EXPERTS,
        "MiniMaxM3VLDenseMLP": OFFSET,
    },
    "mistral4": {"Mistral4TopkRouter": SOFTMAX, "Mistral4MLP": GATED},
    "mistral_large4": {"MistralLarge4TextTopkRouter": SOFTMAX, "MistralLarge4TextMLP": GATED},
    "mixtral": {"MixtralTopKRouter": SOFTMAX_TO_ONE},
    "muse_spark": {
        "MuseSparkTopkRouter": SIGMOID,
        "MuseSparkExperts": ClassFacts(experts=ExpertFacts(expert_output_scale=True)),
        "MuseSparkTextMLP": GATED,
    },
    "nemotron_h": {
        "NemotronHTopkRouter": SIGMOID,
        "NemotronHExperts": UNGATED_EXPERTS,
        "NemotronHMLP": UNGATED,
        "NemotronHAttention": NOTHING,
        "NemotronHMamba2Mixer": NOTHING,
    },
    "nllb_moe": {
        "NllbMoeTop2Router": ClassFacts(RouterFacts("softmax", top_k=2)),
        # Transformers sends all tokens to the experts 0 and 1.
        "NllbMoeExperts": ClassFacts(experts=ExpertFacts(fixed_experts=True)),
        "NllbMoeDenseActDense": UNGATED,
    },
    "olmoe": {"OlmoeTopKRouter": SOFTMAX},
    "openai_privacy_filter": {
        "OpenAIPrivacyFilterTopKRouter": SOFTMAX_TO_ONE,
        "OpenAIPrivacyFilterExperts": OFFSET_EXPERTS,
    },
    "phimoe": {"PhimoeTopKRouter": SIGMOID},
    "qwen2_moe": {"Qwen2MoeTopKRouter": SOFTMAX, "Qwen2MoeMLP": GATED},
    "qwen3_5_moe": {"Qwen3_5MoeTopKRouter": SOFTMAX_TO_ONE, "Qwen3_5MoeMLP": GATED},
    "qwen3_moe": {"Qwen3MoeTopKRouter": SOFTMAX, "Qwen3MoeMLP": GATED},
    "qwen3_next": {"Qwen3NextTopKRouter": SOFTMAX, "Qwen3NextMLP": GATED},
    "qwen3_omni_moe": {
        "Qwen3OmniMoeTalkerTextTopKRouter": SOFTMAX,
        "Qwen3OmniMoeTalkerTextMLP": GATED,
        "Qwen3OmniMoeThinkerTextTopKRouter": SOFTMAX_TO_ONE,
        "Qwen3OmniMoeThinkerTextMLP": GATED,
    },
    "qwen3_vl_moe": {"Qwen3VLMoeTextTopKRouter": SOFTMAX_TO_ONE, "Qwen3VLMoeTextMLP": GATED},
    "qwen4_exp": {"Qwen4ExpTextTopKRouter": SOFTMAX, "Qwen4ExpTextMLP": GATED},
    "solar_open": {"SolarOpenTopkRouter": SIGMOID, "SolarOpenMLP": GATED},
    "step3p7": {"Step3p7TopKRouter": SIGMOID, "Step3p7Experts": ODD_EXPERTS, "Step3p7MLP": ODD},
    "switch_transformers": {
        "SwitchTransformersTop1Router": ClassFacts(RouterFacts("softmax", top_k=1)),
        "SwitchTransformersDenseActDense": UNGATED,
    },
    "unlimited_ocr": {"UnlimitedOcrTextTopkRouter": SOFTMAX, "UnlimitedOcrTextMLP": GATED},
    "vit": {"ViTMLP": UNGATED},
    "vitpose_backbone": {
        "VitPoseBackboneMoeMLP": ClassFacts(mlp=MlpFacts("ungated", has_heads=True)),
        "VitPoseNaiveMoe": NOTHING,
    },
    "zaya": {
        "ZayaRouter": ClassFacts(
            RouterFacts(
                "softmax",
                further_rows="skipped tokens",
                common_tensors=(
                    "router_states_scale",
                    "down_proj",
                    "router_mlp.norm",
                    "router_mlp.fc1",
                    "router_mlp.fc2",
                ),
            )
        )
    },
}

KNOWN = {f"{folder}.{name}": facts for folder, classes in FAMILIES.items() for name, facts in classes.items()}


def class_key(module: nn.Module | type[nn.Module]) -> str:
    """The key of a class in `KNOWN`: `folder.Class` for the models of Transformers, else `module.Class`."""
    cls = module if isinstance(module, type) else type(module)
    parts = cls.__module__.split(".")
    folder = parts[2] if parts[:2] == ["transformers", "models"] else cls.__module__
    return f"{folder}.{cls.__qualname__}"


def facts_of(module: nn.Module | type[nn.Module]) -> ClassFacts:
    """The facts of the class of `module`; none in any role if it is not known."""
    return KNOWN.get(class_key(module), NOTHING)


def holds_nothing(module: nn.Module) -> bool:
    """Whether the class of `module` is known to have nothing of its own to align."""
    return KNOWN.get(class_key(module)) == NOTHING


def register_adapter(
    router: type[nn.Module],
    scores: Literal["softmax", "sigmoid"],
    experts: Mapping[type[nn.Module], Gate] | None = None,
    mlps: Mapping[type[nn.Module], Gate] | None = None,
    expert_groups: str = "num_group",
    top_k: int | str | None = None,
    further_rows: FurtherRows | None = None,
    common_tensors: tuple[str, ...] = (),
) -> None:
    """Make a Mixture-of-Experts architecture known that is not part of Transformers; for remote or private code.

    The facts that you state decide which rewrites are taken for symmetries, and cannot be checked without running the
    model: `verify` compares its outputs before and after. Weights are looked for where Transformers has
    them: in a block with a child `gate` or `router`, and a child `experts` that holds `gate_up_proj` or `up_proj` and
    `down_proj` in 3-D, or one MLP of linears per expert.

    Args:
        router: class of the child `gate` or `router`, whose `weight` is `[E, H]`; of the block, where that child is a
            plain `nn.Linear`.
        scores: "softmax" if a number added to the scores of all experts changes nothing; "sigmoid" for all else.
        experts: class of `experts` with 3-D weights -> what it computes between its projections: "gated" is
            `act(gate) * up`; "odd" changes sign with `up` but is not linear in it, as `act(gate) * clamp(up, -7, 7)`;
            "offset" neither, as `act(gate) * (up + 1)`; "ungated" is `act(up)`.
        mlps: the same for classes of MLPs of linears: one expert of a list, shared experts, dense layers.
        expert_groups: attribute of the router that holds the number of groups, with group-limited routing.
        top_k: number of experts that a token is sent to, or the field of `router.config` that holds it; None where the
            router or its block has an attribute `top_k`.
        further_rows: owner of the rows that follow those of the E experts in the router, if there are any.
        common_tensors: names of tensors of the router that belong to no expert, or of modules below it.

    Example:
        A sigmoid router over a list of SwiGLU experts; docs/adding-a-family.md has a whole model.

        >>> register_adapter(MyRouter, "sigmoid", mlps={MyMLP: "gated"}, top_k=2)
    """
    stated = RouterFacts(
        scores,
        selection_bias_constant=False,  # not said
        further_rows=further_rows,
        expert_groups=expert_groups,
        top_k=top_k,
        common_tensors=common_tensors,
    )
    KNOWN[class_key(router)] = replace(facts_of(router), router=stated)
    for cls, gate in (experts or {}).items():
        KNOWN[class_key(cls)] = replace(facts_of(cls), experts=ExpertFacts(gate))
    for cls, gate in (mlps or {}).items():
        KNOWN[class_key(cls)] = replace(facts_of(cls), mlp=MlpFacts(gate))
