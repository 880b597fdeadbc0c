"""What became of a model: every expert, router and tensor of B in terms of A, and what that means in words."""

from dataclasses import dataclass
from typing import Any

from hf_moe_lmc.short_help import ShortHelp

from .layers import LayerComparison
from .tensors import TensorComparison

SUMMARY_LINES = 15


@dataclass(frozen=True)
class Comparison(metaclass=ShortHelp):
    """B in terms of A.

    `kind` of an expert: "identical" (bit for bit), "rounded" (to another dtype), "changed", all three in its slot;
    "moved" (from another slot), "copied" (of an expert that an earlier slot holds), "gate_up_swapped", "interleaving"
    (halves of gate and up interleaved instead of joined, or the reverse), "transposed", "scaled" (by a factor that
    changes its function), "zero", "not_finite", "unrelated" (no nearer than chance). Whether its units stand at their
    places is said beside it.

    Args:
        a, b: names of the models.
        sentences: what it means, most important first, each with the figures that it rests on.
        layers: the Mixture-of-Experts layers of B.
        tensors: all other tensors.
        related: whether anything in B is nearer to A than chance.
        same_function: whether B computes what A computes, up to rounding of float32.
        z: of all experts at once, in standard deviations above chance; None where none could be compared.
    """

    a: str
    b: str
    sentences: tuple[str, ...]
    layers: tuple[LayerComparison, ...]
    tensors: tuple[TensorComparison, ...]
    related: bool
    same_function: bool
    z: float | None

    def to_dict(self) -> dict[str, Any]:
        """JSON values; docs/compare.md describes them."""
        return {
            "sentences": list(self.sentences),
            "related": self.related,
            "same_function": self.same_function,
            "layers": [layer.to_dict() for layer in self.layers],
            "tensors": [tensor.to_dict() for tensor in self.tensors],
        }

    def summary(self) -> str:
        """At most 15 lines."""
        shown = list(self.sentences)
        if len(shown) > SUMMARY_LINES - 2:
            more = len(shown) - (SUMMARY_LINES - 3)
            shown = [*shown[: SUMMARY_LINES - 3], f"... and {more} more; see --json"]
        score = f" (z = {self.z:.0f})" if self.z is not None else ""
        related = f"related {'beyond' if self.related else 'no more than by'} chance{score}"
        function = f"computes {'the same' if self.same_function else 'another'} function"
        return "\n".join([*shown, f"B is {related} and {function}"]) + "\n"

    def rows(self) -> list[tuple[str, str, str, str, str, str, str, str]]:
        """Per expert and per tensor: layer or tensor, slot, kind, source, change, units, signs and scales, z."""
        rows = []
        for layer in self.layers:
            rows.append((layer.name, "router", layer.router, "", _percent(layer.router_change), "", "", ""))
            for prefix, experts in (("", layer.experts), ("shared ", layer.shared_experts)):
                for expert in experts:
                    gauge = [word for word, holds in (("signs", expert.signs), ("scales", expert.scales)) if holds]
                    rows.append(
                        (
                            layer.name,
                            f"{prefix}{expert.slot}",
                            expert.kind,
                            "" if expert.source is None else str(expert.source),
                            _percent(expert.change),
                            expert.units or "",
                            ", ".join(gauge),
                            "" if expert.z is None else f"{expert.z:.1f}",
                        )
                    )
            rows += [(layer.name, "-", "missing", str(i), "", "", "", "") for i in layer.missing]
        rows += [(tensor.name, "", tensor.kind, "", _percent(tensor.change), "", "", "") for tensor in self.tensors]
        return rows


def _percent(change: float | None) -> str:
    return "" if change is None else f"{change:.3g}" if change < 1e-6 else f"{change:.2%}"
