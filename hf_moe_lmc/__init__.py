"""hf_moe_lmc: align, merge and evaluate Mixture-of-Experts checkpoints (linear mode connectivity)."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .adapters import moe_layers, register_adapter
    from .aligner import MoeAligner, align, apply, from_aligned_pretrained, merge, push_to_hub
    from .alignment import Alignment, AlignmentConfig, MutualAlignment, Pretrained, scramble
    from .comparison import Comparison, compare
    from .verification import Verification, verify

__all__ = [
    "Alignment",
    "AlignmentConfig",
    "Comparison",
    "MoeAligner",
    "MutualAlignment",
    "Pretrained",
    "Verification",
    "align",
    "apply",
    "compare",
    "from_aligned_pretrained",
    "merge",
    "moe_layers",
    "push_to_hub",
    "register_adapter",
    "scramble",
    "verify",
]

# Module -> names that are imported from it when first used (PEP 562): the command line answers before torch is loaded.
_HOMES = {
    "adapters": ("moe_layers", "register_adapter"),
    "aligner": ("MoeAligner", "align", "apply", "from_aligned_pretrained", "merge", "push_to_hub"),
    "alignment": ("Alignment", "AlignmentConfig", "MutualAlignment", "Pretrained", "scramble"),
    "comparison": ("Comparison", "compare"),
    "verification": ("Verification", "verify"),
}


def __getattr__(name: str) -> object:
    for module, names in _HOMES.items():
        if name in names:
            value = getattr(import_module(f".{module}", __name__), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
