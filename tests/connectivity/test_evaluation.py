import pytest
import torch
from accelerate import Accelerator
from scipy.optimize import minimize_scalar
from torch.nn import functional as F
from torch.utils.data import DataLoader, StackDataset

from hf_moe_lmc.connectivity import evaluate
from hf_moe_lmc.connectivity.evaluation import best_temperature, score
from hf_moe_lmc.errors import BadInputError
from tests.models import build, inputs


def batches(model, accelerator, examples: int = 13, batch_size: int = 4):
    """A loader of random data, and the data."""
    data = inputs(model, examples)
    generator = torch.Generator().manual_seed(2)
    if "input_ids" in data:
        data["labels"] = data["input_ids"].clone()
        data["labels"][::3, 4:] = -100
    else:
        data["labels"] = torch.randint(5, (examples,), generator=generator)
    return accelerator.prepare(DataLoader(StackDataset(**data), batch_size=batch_size)), data


@pytest.fixture
def accelerator():
    return Accelerator(cpu=True)


def test_classification_equals_the_whole_set_at_once(accelerator):
    """13 examples in batches of 4: a mean of batch means would be wrong."""
    model = build("moe_vit sparse", dtype=torch.float32)
    loader, data = batches(model, accelerator)
    found = evaluate(model, loader, accelerator)
    with torch.no_grad():
        logits = model(pixel_values=data["pixel_values"]).logits
    assert found.count == 13
    assert found.loss == pytest.approx(F.cross_entropy(logits, data["labels"]).item(), rel=1e-5)
    assert found.accuracy == (logits.argmax(-1) == data["labels"]).double().mean().item()


@pytest.mark.parametrize("name", ["moe_gpt2 shared", "mixtral", "qwen2_moe"])
def test_language_models_equal_their_own_loss(accelerator, name):
    """Tokens are counted, not sequences; padding labels are not."""
    model = build(name, dtype=torch.float32)
    loader, data = batches(model, accelerator)
    found = evaluate(model, loader, accelerator)
    with torch.no_grad():
        expected = model(**data)
    shifted = data["labels"][:, 1:]
    right = (expected.logits[:, :-1].argmax(-1) == shifted)[shifted != -100]
    assert found.count == int((shifted != -100).sum())
    assert found.loss == pytest.approx(expected.loss.item(), rel=1e-5)
    assert found.accuracy == pytest.approx(right.float().mean().item())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_of_equal_logits_the_first_is_predicted(dtype):
    """Half precision ties often; argmax takes the first, and so does what counts as right."""
    logits = torch.randint(-2, 3, (4, 50, 9), generator=torch.Generator().manual_seed(0)).to(dtype)
    labels = torch.randint(9, (4, 50), generator=torch.Generator().manual_seed(1))
    labels[:, ::7] = -100
    likely = logits.gather(-1, labels.clamp(min=0)[..., None])[..., 0] == logits.amax(-1)
    expected = (logits.argmax(-1) == labels).float()
    assert 0 < expected.sum() < (likely & (labels != -100)).sum()
    torch.testing.assert_close(score(logits, labels)[..., 1], expected, rtol=0, atol=0)


def test_the_load_balancing_loss_does_not_count(accelerator):
    model = build("moe_vit sparse", dtype=torch.float32)
    loader, _ = batches(model, accelerator)
    plain = evaluate(model, loader, accelerator)
    model.config.output_router_logits = True
    assert evaluate(model, loader, accelerator) == plain


def test_nothing_to_predict(accelerator):
    model = build("moe_gpt2 sparse", dtype=torch.float32)
    loader, data = batches(model, accelerator)
    data["labels"].fill_(-100)
    with pytest.raises(BadInputError, match="nothing to predict"):
        evaluate(model, loader, accelerator)


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
def test_the_temperature_against_a_solver(scale):
    """Scaled logits want the scale back."""
    model, batches, logits, labels = classifier(scale)
    found = best_temperature(model, batches, Accelerator(cpu=True))
    solver = minimize_scalar(lambda x: F.cross_entropy(logits / 2**x, labels).item(), bounds=(-2, 2), method="bounded")
    assert found == pytest.approx(2**solver.x, rel=0.02)
    assert found == pytest.approx(scale, rel=0.3)


def test_the_calibrated_loss_is_that_of_divided_logits():
    model, batches, logits, labels = classifier(2.5)
    found = evaluate(model, batches, Accelerator(cpu=True), temperature=2.0)
    assert found.calibrated_loss == pytest.approx(F.cross_entropy(logits / 2, labels).item(), rel=1e-5)
    assert found.loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    assert found.calibrated_loss < found.loss


def test_no_more_than_four():
    model, batches, _, _ = classifier(100.0)
    assert best_temperature(model, batches, Accelerator(cpu=True)) == 4.0


def test_nan_keeps_temperature_1():
    model, batches, _, _ = classifier(float("nan"))
    assert best_temperature(model, batches, Accelerator(cpu=True)) == 1.0
