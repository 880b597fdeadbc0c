"""hf_moe_lmc: align, merge and evaluate Mixture-of-Experts checkpoints (linear mode connectivity)."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .adapters import moe_layers
    from .alignment import Alignment, align, merge, scramble
    from .modeling import MoeGPT2Config, MoeGPT2LMHeadModel, MoeViTConfig, MoeViTForImageClassification
    from .verification import Verification, verify

__all__ = [
    "Alignment",
    "MoeGPT2Config",
    "MoeGPT2LMHeadModel",
    "MoeViTConfig",
    "MoeViTForImageClassification",
    "Verification",
    "align",
    "merge",
    "moe_layers",
    "scramble",
    "verify",
]

# Name -> module that it is imported from when first used (PEP 562): the command line answers before torch is loaded.
_HOMES = {
    "moe_layers": "adapters",
    **dict.fromkeys(("Alignment", "align", "merge", "scramble"), "alignment"),
    **dict.fromkeys(
        ("MoeGPT2Config", "MoeGPT2LMHeadModel", "MoeViTConfig", "MoeViTForImageClassification"), "modeling"
    ),
    **dict.fromkeys(("Verification", "verify"), "verification"),
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
