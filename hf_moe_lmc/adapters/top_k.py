"""How many experts answer a token."""

from torch import nn

from hf_moe_lmc.errors import UnsupportedArchitectureError

from .class_key import class_key
from .spec import MoeLayerSpec

# Routers that keep no number: the field of their configuration that holds it, or the number written into their code.
CONFIGURED = {"gemma4.Gemma4TextRouter": "top_k_experts", "diffusion_gemma.DiffusionGemmaTextRouter": "top_k_experts"}
FIXED = {"nllb_moe.NllbMoeTop2Router": 2, "switch_transformers.SwitchTransformersTop1Router": 1}


def router_of(model: nn.Module, spec: MoeLayerSpec) -> nn.Module:
    """The router module of a layer of `model`: the child of the block that holds the router's weight."""
    weight = dict(spec.router.tensors if spec.router else ())["weight"]
    child = weight.removeprefix(f"{spec.name}.").partition(".")[0]
    return model.get_submodule(f"{spec.name}.{child}")


def experts_per_token(model: nn.Module, spec: MoeLayerSpec) -> int:
    """K, from the router, else from the block around it (DBRX).

    Raises:
        UnsupportedArchitectureError: neither says.
    """
    router = router_of(model, spec)
    key = class_key(router)
    if key in FIXED:
        return FIXED[key]
    if key in CONFIGURED:
        return getattr(router.config, CONFIGURED[key])
    for module in (router, model.get_submodule(spec.name)):
        if isinstance(top_k := getattr(module, "top_k", None), int):
            return top_k
    raise UnsupportedArchitectureError(f"layer {spec.name}: a {key} does not say how many experts answer a token")
