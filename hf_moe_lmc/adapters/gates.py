"""What gated experts do between their projections: whether the sign of a unit is free."""

from torch import nn

from hf_moe_lmc.errors import UnsupportedArchitectureError

from .routers import class_key

# Expert classes with a gate of their own. True: odd in `up`, so up_proj row and down_proj column may change sign
# together; False: `(up + 1)` breaks it.
OWN_GATES = {
    "beam.BeamExperts": True,
    "dbrx.DbrxExpertGLU": True,
    "deepseek_v4.DeepseekV4Experts": True,
    "glm5_next.Glm5NextTextExperts": True,
    "gpt_oss.GptOssExperts": False,
    "hy_v4.HYV4Experts": True,
    "inkling2.Inkling2Experts": True,
    "jetmoe.JetMoeMoE": True,
    "llama4.Llama4TextExperts": True,
    "longcat_flash.LongcatFlashExperts": True,
    "minimax_m3_vl.MiniMaxM3VLExperts": False,
    "openai_privacy_filter.OpenAIPrivacyFilterExperts": False,
    "step3p7.Step3p7Experts": True,
}


def admits_unit_signs(name: str, experts: nn.Module, is_gated: bool) -> bool:
    """Whether the sign of a unit of `experts` (module name `name`) is free.

    Free with the gate that Transformers gives to experts without their own, `act(gate) * up`.

    Raises:
        UnsupportedArchitectureError: the experts have a gate that is not known.
    """
    if not is_gated:
        return False
    key = class_key(experts)
    if key in OWN_GATES:
        return OWN_GATES[key]
    gate = getattr(type(experts), "_apply_gate", None)
    if getattr(gate, "__module__", None) == "transformers.integrations.moe":
        return True
    raise UnsupportedArchitectureError(f"experts {name}: a {key}, whose gate is not known")
