"""Metrics of Hugging Face `evaluate`, in the package: nothing is downloaded.

Imported by name only (`from hf_moe_lmc.connectivity.metrics import Perplexity`), since `evaluate` is heavy.
"""

from typing import Any

import evaluate
import numpy as np
from datasets import Features, Sequence, Value

from .barrier import Barrier

ECE_BINS = 15


def _info(description: str, features: dict[str, Any], formula: str) -> evaluate.MetricInfo:
    return evaluate.MetricInfo(
        description=description, citation="", inputs_description=formula, features=Features(features)
    )


class Perplexity(evaluate.Metric):
    """`exp(mean loss)` of cross-entropies in nats, one per token."""

    def _info(self) -> evaluate.MetricInfo:
        return _info("Perplexity", {"predictions": Value("float64")}, "predictions: cross-entropy of every token, nats")

    def _compute(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> dict[str, Any]:
        return {"perplexity": float(np.exp(np.mean(predictions)))}


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
            {"predictions": Sequence(Value("float64")), "references": Value("int64")},
            "predictions: probabilities of all classes; references: the right class",
        )

    def _compute(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> dict[str, Any]:
        probabilities, labels = np.asarray(predictions, dtype=np.float64), np.asarray(references)
        confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
        bins = np.minimum((confidence * ECE_BINS).astype(int), ECE_BINS - 1)
        gaps = np.bincount(bins, weights=right.astype(np.float64) - confidence, minlength=ECE_BINS)
        return {"expected_calibration_error": float(np.abs(gaps).sum() / len(labels))}


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
