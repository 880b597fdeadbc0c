import pytest
import torch
from accelerate import Accelerator
from scipy.optimize import minimize_scalar
from torch.nn import functional as F
from torch.utils.data import DataLoader, StackDataset

from hf_moe_lmc.connectivity import evaluate
from hf_moe_lmc.connectivity.temperature import best_temperature
from tests.models import build, inputs


def classifier(scale: float):
    """A model, batches whose labels are drawn from its own probabilities, and its logits times `scale`."""
    model = build("moe_vit sparse", dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.classifier.parameters():
            parameter *= 0.3  # far from certain
        data = inputs(model, 400)
        labels = torch.multinomial(model(**data).logits.softmax(-1), 1, generator=torch.Generator().manual_seed(0))[
            :, 0
        ]
        for parameter in model.classifier.parameters():
            parameter *= scale
        logits = model(**data).logits
    return model, DataLoader(StackDataset(**data, labels=labels), batch_size=64), logits, labels


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.5])
def test_against_a_solver(scale):
    """Scaled logits want the scale back."""
    model, batches, logits, labels = classifier(scale)
    found = best_temperature(model, batches, Accelerator(cpu=True))
    solver = minimize_scalar(lambda x: F.cross_entropy(logits / 2**x, labels).item(), bounds=(-2, 2), method="bounded")
    assert found == pytest.approx(2**solver.x, rel=0.02)
    assert found == pytest.approx(scale, rel=0.3)


def test_the_calibrated_loss_is_that_of_cooler_logits():
    model, batches, logits, labels = classifier(2.5)
    found = evaluate(model, batches, Accelerator(cpu=True), temperature=2.0)
    assert found.calibrated_loss == pytest.approx(F.cross_entropy(logits / 2, labels).item(), rel=1e-5)
    assert found.loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    assert found.calibrated_loss < found.loss


def test_no_more_than_fourfold():
    model, batches, _, _ = classifier(100.0)
    assert best_temperature(model, batches, Accelerator(cpu=True)) == 4.0


def test_a_model_that_answers_nan_keeps_its_temperature():
    model, batches, _, _ = classifier(float("nan"))
    assert best_temperature(model, batches, Accelerator(cpu=True)) == 1.0
