import evaluate
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import Features, Value

from hf_moe_lmc import MoeAligner
from hf_moe_lmc.connectivity.calibration_error import ExpectedCalibrationError
from hf_moe_lmc.connectivity.metrics import load_metric
from hf_moe_lmc.errors import BadInputError, HubError
from tests.connectivity import siblings


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("evaluate.config.HF_METRICS_CACHE", str(tmp_path))


def test_calibration_error_equals_the_loop():
    generator = np.random.default_rng(0)
    probabilities, labels = generator.dirichlet(np.ones(3), size=500), generator.integers(3, size=500)
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    expected = 0.0
    for b in range(15):
        inside = (confidence >= b / 15) & (confidence < (b + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    found = ExpectedCalibrationError().compute(
        predictions=probabilities.argmax(1), references=labels, confidences=confidence
    )
    assert found["expected_calibration_error"] == pytest.approx(expected)
    sure = ExpectedCalibrationError().compute(predictions=[1] * 4, references=[1, 1, 1, 0], confidences=[1.0] * 4)
    assert sure["expected_calibration_error"] == pytest.approx(0.25)


class Columns(evaluate.Metric):
    """A metric as a user would write it, over whatever columns are named."""

    def __init__(self, *columns: str):
        self._columns = columns
        super().__init__(keep_in_memory=True)

    def _info(self):
        features = Features({name: Value("float64") for name in self._columns})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, **columns):
        return {f"mean {name}": np.mean(column) for name, column in columns.items()} | {"number": len(self.data)}


def evaluated(*metrics):
    return MoeAligner.from_pretrained(*siblings.pair("mixtral")).evaluate(
        None,
        siblings.loader(0, 11),
        3,
        variants=("aligned",),
        repairs=("norms",),
        metrics=metrics,
        accelerator=Accelerator(cpu=True),
    )


def test_along_a_path():
    """At every point of every path, over the predictions that the losses are means of."""
    report = evaluated(ExpectedCalibrationError(), Columns("losses", "confidences"))
    for curve in report.curves.values():
        for point in curve.evaluations:
            assert point.metrics["mean losses"] == pytest.approx(point.loss, rel=1e-5)
            assert point.metrics["number"] == point.count == 11 * 31
            gap = abs(point.metrics["mean confidences"] - point.accuracy)
            assert point.metrics["expected_calibration_error"] >= gap - 1e-6
    naive = report.curves["naive"].evaluations
    assert report.to_json()["paths"]["naive"]["metrics"]["mean losses"] == [p.metrics["mean losses"] for p in naive]
    assert "| path: reference, least, most, other | expected_calibration_error | mean losses |" in report.markdown()


def test_calibration_error_of_a_model():
    a, _ = siblings.pair("mixtral")
    (batch,) = siblings.loader(0, 11, batch_size=11)
    with torch.no_grad():
        logits = a(input_ids=batch["input_ids"]).logits[:, :-1]
    confidence, predicted = logits.softmax(-1).flatten(0, 1).max(dim=-1)
    expected = ExpectedCalibrationError().compute(
        predictions=predicted, references=batch["labels"][:, 1:].flatten(), confidences=confidence
    )
    found = evaluated(ExpectedCalibrationError()).curves["naive"].evaluations[0]
    assert found.metrics == pytest.approx(expected, abs=1e-5)


def test_a_metric_that_asks_for_more():
    with pytest.raises(BadInputError, match="metric columns asks for sources; there are predictions, references"):
        evaluated(Columns("losses", "sources"))


def test_metrics_by_name(monkeypatch):
    assert isinstance(load_metric("expected_calibration_error"), ExpectedCalibrationError)

    def missing(name):
        raise FileNotFoundError(f"Couldn't find a module script for {name}.\nMore.")

    monkeypatch.setattr(evaluate, "load", missing)
    with pytest.raises(HubError, match=r"metric f2: Couldn't find .* without the network there is expected"):
        load_metric("f2")
