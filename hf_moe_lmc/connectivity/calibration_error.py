"""Expected calibration error as a metric of Hugging Face `evaluate`, which is slow to import."""

from typing import Any

import evaluate
import numpy as np
from datasets import Features, Value

BINS = 15


class ExpectedCalibrationError(evaluate.Metric):
    """`sum_b n_b / n |accuracy_b - confidence_b|` over 15 bins of equal width of the confidence.

    Source: Guo et al., arXiv:1706.04599, equation 3.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Expected calibration error",
            citation="arXiv:1706.04599",
            inputs_description="predictions: classes or tokens; references: the right ones; confidences: "
            "probabilities of the predictions",
            features=Features(
                {"predictions": Value("int64"), "references": Value("int64"), "confidences": Value("float64")}
            ),
        )

    def _compute(
        self, *, predictions: Any = None, references: Any = None, confidences: Any = None, **kwargs: Any
    ) -> dict[str, Any]:
        confidence, right = np.asarray(confidences), np.asarray(predictions) == np.asarray(references)
        bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
        gaps = np.bincount(bins, weights=right.astype(np.float64) - confidence, minlength=BINS)
        return {"expected_calibration_error": float(np.abs(gaps).sum() / len(right))}
