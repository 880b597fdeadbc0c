"""How much an alignment is worth: the verdict of a pair, from the evidence of its layers."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median, median_high
from typing import Literal, get_args

from .evidence import LayerEvidence

Label = Literal["already aligned", "aligned", "ambiguous (experts nearly equal)", "not alignable (weights unrelated)"]
_LABELS: tuple[Label, ...] = get_args(Label)  # from the most to the least that was reached

# Calibrated on layers of known truth (tests/matching/test_verdict.py). Unrelated weights exceeded their control by
# 0.035 at most, scrambled ones of correlation 0.4 by 0.11 at least; nearly equal experts gained 0.05 at most by their
# order, those of correlation 0.4 gained 0.16 at least.
_RELATED = 0.06
_DISTINCT = 0.1
_FIXED = 0.99


@dataclass(frozen=True)
class Verdict:
    """The verdict of a pair, and the medians over its layers that it rests on.

    Args:
        label: that of the median layer, counted from "already aligned" to "not alignable".
        layers: label -> number of layers.
        reduction, null_reduction, order_gain, fixed_units, gate_agreement, gram_agreement: see `LayerEvidence`.
    """

    label: Label
    layers: dict[str, int]
    reduction: float
    null_reduction: float
    order_gain: float
    fixed_units: float
    gate_agreement: float | None
    gram_agreement: float | None

    def text(self) -> str:
        """One line: the label, and the figures that it rests on."""
        agreements = (("router rows", self.gate_agreement), ("Gram matrices", self.gram_agreement))
        agree = "".join(f"; {what} agree on {x:.0%} of the order" for what, x in agreements if x is not None)
        return (
            f"verdict: {self.label} (brought closer by {self.reduction:.0%}, unrelated weights by "
            f"{self.null_reduction:.0%}; a wrong expert order is {self.order_gain:.0%} farther; "
            f"{self.fixed_units:.0%} of the units stay{agree})"
        )


def judge_layer(evidence: LayerEvidence) -> Label:
    """The verdict of one layer.

    Not alignable: matching brings it closer than random rewrites by no more than it does an unrelated expert.
    Ambiguous: matched so, but a wrong order of experts comes nearly as close. Already aligned: all else, where next to
    nothing moved.
    """
    if evidence.reduction - evidence.null_reduction < _RELATED:
        return "not alignable (weights unrelated)"
    if evidence.order_gain < _DISTINCT:
        return "ambiguous (experts nearly equal)"
    if evidence.fixed_experts == 1 and evidence.fixed_units >= _FIXED:
        return "already aligned"
    return "aligned"


def judge(layers: Sequence[LayerEvidence]) -> Verdict:
    """The verdict of a pair of models; `layers` holds the evidence of one layer at least."""
    labels = [judge_layer(evidence) for evidence in layers]
    return Verdict(
        label=_LABELS[median_high(_LABELS.index(label) for label in labels)],
        layers={label: labels.count(label) for label in _LABELS if label in labels},
        reduction=median(evidence.reduction for evidence in layers),
        null_reduction=median(evidence.null_reduction for evidence in layers),
        order_gain=median(evidence.order_gain for evidence in layers),
        fixed_units=median(evidence.fixed_units for evidence in layers),
        gate_agreement=_median(evidence.gate_agreement for evidence in layers),
        gram_agreement=_median(evidence.gram_agreement for evidence in layers),
    )


def _median(figures: Iterable[float | None]) -> float | None:
    known = [figure for figure in figures if figure is not None]
    return median(known) if known else None
