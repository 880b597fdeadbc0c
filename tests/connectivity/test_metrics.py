import numpy as np
import pytest

from hf_moe_lmc.connectivity.metrics import Accuracy, ExpectedCalibrationError, LossBarrier, Perplexity


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("evaluate.config.HF_METRICS_CACHE", str(tmp_path))


def test_perplexity():
    assert Perplexity().compute(predictions=[0.5, 1.5])["perplexity"] == pytest.approx(np.e)


def test_accuracy_in_batches():
    metric = Accuracy()
    metric.add_batch(predictions=[1, 2, 3], references=[1, 0, 3])
    metric.add_batch(predictions=[4], references=[0])
    assert metric.compute()["accuracy"] == 0.5


def test_calibration_error_equals_the_loop():
    generator = np.random.default_rng(0)
    probabilities, labels = generator.dirichlet(np.ones(3), size=500), generator.integers(3, size=500)
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    expected = 0.0
    for b in range(15):
        inside = (confidence >= b / 15) & (confidence < (b + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    found = ExpectedCalibrationError().compute(predictions=probabilities.tolist(), references=labels.tolist())
    assert found["expected_calibration_error"] == pytest.approx(expected)
    sure = ExpectedCalibrationError().compute(predictions=[[0.0, 1.0]] * 4, references=[1, 1, 1, 0])
    assert sure["expected_calibration_error"] == pytest.approx(0.25)


def test_loss_barrier():
    assert LossBarrier().compute(predictions=[1.0, 4.0, 3.0], references=[0.0, 0.5, 1.0])["loss_barrier"] == 2.0
