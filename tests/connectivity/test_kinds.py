"""Every kind of model that Transformers has with a Mixture of Experts; the others: test_path_evaluation."""

import pytest
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, StackDataset
from transformers import (
    MixtralForQuestionAnswering,
    MixtralForSequenceClassification,
    MixtralForTokenClassification,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from hf_moe_lmc import MoeAligner
from hf_moe_lmc.errors import BadInputError
from tests import families
from tests.models import build

ROWS, LENGTH, CLASSES = 6, 5, 3


def mixtral(model_class: type[PreTrainedModel], seed: int) -> PreTrainedModel:
    config = build("mixtral").config
    config.num_labels, config.pad_token_id = CLASSES, 0
    torch.manual_seed(seed)
    return model_class(config).eval()


def encoder_decoder(family: str, seed: int) -> PreTrainedModel:
    model = families.build(family, seed=seed)
    model.config.decoder_start_token_id = 0
    return model


def tokens(number: int, *shape: int) -> torch.Tensor:
    """From 1 on, for 0 is padding."""
    return torch.randint(1, number, shape, generator=torch.Generator().manual_seed(number))


KINDS = {
    "classes of sequences": (lambda seed: mixtral(MixtralForSequenceClassification, seed), tokens(CLASSES, ROWS)),
    "classes of tokens": (lambda seed: mixtral(MixtralForTokenClassification, seed), tokens(CLASSES, ROWS, LENGTH)),
    "encoder-decoder, Switch": (lambda seed: encoder_decoder("switch_transformers", seed), tokens(29, ROWS, LENGTH)),
    "encoder-decoder, NLLB": (lambda seed: encoder_decoder("nllb_moe", seed), tokens(29, ROWS, LENGTH)),
}


def batches(labels: torch.Tensor) -> DataLoader:
    inputs = {"input_ids": tokens(30, ROWS, LENGTH), "attention_mask": torch.ones(ROWS, LENGTH, dtype=torch.long)}
    return DataLoader(StackDataset(**inputs, labels=labels), batch_size=ROWS)


def evaluate(a: PreTrainedModel, b: PreTrainedModel, data: DataLoader) -> None:
    MoeAligner.from_pretrained(a, b).evaluate(None, data, 3, accelerator=Accelerator(cpu=True))


@pytest.mark.parametrize("kind", KINDS)
def test_the_points_are_the_models_own_losses(kind):
    """At both endpoints and of the merge; what a model adds for balance is no part of them."""
    make, labels = KINDS[kind]
    if labels.ndim == 2:
        labels[0, -1] = -100
    (a, b), data = (make(0), make(1)), batches(labels)
    aligner = MoeAligner.from_pretrained(a, b)
    report = aligner.evaluate(None, data, 3, variants=("aligned",), repairs=(), accelerator=Accelerator(cpu=True))
    (batch,) = data
    for point, model in zip(report.curves["aligned"].evaluations, (a, aligner.merge(force=True), b), strict=True):
        with torch.no_grad():
            logits = model(**batch).logits
        expected = torch.nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten())
        assert point.count == int((labels >= 0).sum())
        assert point.loss == pytest.approx(expected.item(), rel=1e-4)


def test_outputs_without_logits():
    a, b = (mixtral(MixtralForQuestionAnswering, seed) for seed in (0, 1))
    with pytest.raises(BadInputError, match="a MixtralForQuestionAnswering gives no logits"):
        evaluate(a, b, batches(tokens(CLASSES, ROWS)))


def test_batches_without_labels():
    a, b = (mixtral(MixtralForSequenceClassification, seed) for seed in (0, 1))
    data = DataLoader(StackDataset(input_ids=tokens(30, ROWS, LENGTH)), batch_size=ROWS)
    with pytest.raises(BadInputError, match="a batch holds input_ids and no labels"):
        evaluate(a, b, data)


def test_no_masked_language_model_has_experts():
    """Once one does, it belongs among `KINDS`."""
    assert not set(families.supported()) & set(MODEL_FOR_MASKED_LM_MAPPING_NAMES)
