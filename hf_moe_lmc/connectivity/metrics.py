"""Metrics of Hugging Face `evaluate`, in the package: nothing is downloaded.

Imported by name only (`from hf_moe_lmc.connectivity.metrics import Perplexity`), since `evaluate` is heavy.
"""

from typing import Any

import evaluate
import numpy as np
from datasets import Features, Value

from hf_moe_lmc.errors import BadInputError, HubError

from .barrier import Barrier

ECE_BINS = 15


def _info(description: str, features: dict[str, Any], formula: str) -> evaluate.MetricInfo:
    return evaluate.MetricInfo(
        description=description, citation="", inputs_description=formula, features=Features(features)
    )


class Perplexity(evaluate.Metric):
    """`exp(mean loss)` of cross-entropies in nats, one per token."""

    def _info(self) -> evaluate.MetricInfo:
        return _info("Perplexity", {"losses": Value("float64")}, "losses: cross-entropy of every token, nats")

    def _compute(self, *, losses: Any = None, **kwargs: Any) -> dict[str, Any]:
        return {"perplexity": float(np.exp(np.mean(losses)))}


class Accuracy(evaluate.Metric):
    """Share of predictions that equal their reference."""

    def _info(self) -> evaluate.MetricInfo:
        return _info(
            "Accuracy",
            {"predictions": Value("int64"), "references": Value("int64")},
            "predictions: classes or tokens; references: the right ones",
        )

    def _compute(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> dict[str, Any]:
        return {"accuracy": float(np.mean(np.asarray(predictions) == np.asarray(references)))}


class ExpectedCalibrationError(evaluate.Metric):
    """`sum_b n_b / n |accuracy_b - confidence_b|` over 15 bins of equal width of the confidence.

    Source: Guo et al., arXiv:1706.04599, equation 3.
    """

    def _info(self) -> evaluate.MetricInfo:
        return _info(
            "Expected calibration error",
            {"predictions": Value("int64"), "references": Value("int64"), "confidences": Value("float64")},
            "predictions: classes or tokens; references: the right ones; confidences: probabilities of the predictions",
        )

    def _compute(
        self, *, predictions: Any = None, references: Any = None, confidences: Any = None, **kwargs: Any
    ) -> dict[str, Any]:
        confidence, right = np.asarray(confidences), np.asarray(predictions) == np.asarray(references)
        bins = np.minimum((confidence * ECE_BINS).astype(int), ECE_BINS - 1)
        gaps = np.bincount(bins, weights=right.astype(np.float64) - confidence, minlength=ECE_BINS)
        return {"expected_calibration_error": float(np.abs(gaps).sum() / len(right))}


class LossBarrier(evaluate.Metric):
    """`max_t [L(t) - ((1 - t) L(0) + t L(1))]` over losses at ascending t (arXiv:2509.11348, section 2)."""

    def _info(self) -> evaluate.MetricInfo:
        return _info(
            "Loss barrier",
            {"predictions": Value("float64"), "references": Value("float64")},
            "predictions: loss at every point of the path; references: its t, from 0 to 1",
        )

    def _compute(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> dict[str, Any]:
        barrier = Barrier(tuple(references), tuple(predictions), (0.0,) * len(references))
        return {"loss_barrier": barrier.loss_barrier}


OWN = {
    "accuracy": Accuracy,
    "expected_calibration_error": ExpectedCalibrationError,
    "perplexity": Perplexity,
}


def load_metric(name: str) -> evaluate.EvaluationModule:
    """The metric of this name for `evaluate_path`: one of `OWN`, or else what `evaluate.load` finds.

    Raises:
        HubError: the Hub does not give it.
        BadInputError: it needs what is not installed.
    """
    if name in OWN:
        return OWN[name]()
    try:
        return evaluate.load(name)
    except (OSError, ImportError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        kind = HubError if isinstance(error, OSError) else BadInputError
        raise kind(f"metric {name}: {reason}; without the network there are {', '.join(OWN)}") from error
