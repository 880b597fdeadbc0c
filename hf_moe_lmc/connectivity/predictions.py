"""What a model predicts for a batch, and how well."""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from hf_moe_lmc.errors import BadInputError

IGNORED_LABEL = -100


def answer(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> tuple[Float[Tensor, "B S C"], Int[Tensor, "B S"]]:
    """The logits of every prediction in `batch`, and its label; -100 where there is nothing to predict.

    Labels without a sequence axis are classes, with S = 1. Those of a causal language model are its own tokens:
    position s predicts label s + 1, and the last position nothing. Those of an encoder-decoder, a token classifier or a
    masked language model stand at their position.

    Raises:
        BadInputError: the batch has no labels, or the model answers no logits.
    """
    if "labels" not in batch:
        raise BadInputError(f"a batch holds {', '.join(sorted(batch))} and no labels; give the labels, too")
    labels, causal = batch["labels"], model.can_generate() and not model.config.is_encoder_decoder
    # Given labels, a model would compute its loss too; only a decoder needs them, as its input.
    given = batch if model.config.is_encoder_decoder else {k: v for k, v in batch.items() if k != "labels"}
    logits = getattr(model(**given, **({"use_cache": False} if model.can_generate() else {})), "logits", None)
    if logits is None:
        raise BadInputError(
            f"a {type(model).__name__} answers no logits; evaluated are language models, encoder-decoders, classifiers"
        )
    labels = labels.to(logits.device)
    if labels.ndim == 1:
        return logits[:, None], labels[:, None]
    # Logits without their last position would have to be copied to lie in one piece, and they are large.
    return logits, F.pad(labels[:, 1:], (0, 1), value=IGNORED_LABEL) if causal else labels


def score(
    logits: Float[Tensor, "B S C"], labels: Int[Tensor, "B S"], temperature: float = 1.0
) -> Float[Tensor, "B S 4"]:
    """Per prediction: cross-entropy, whether it is right, 1, cross-entropy at `temperature`; 0 where there is none."""
    rows, flat = logits.flatten(0, 1).float(), labels.flatten()
    counted = flat != IGNORED_LABEL

    def loss(rows: Tensor) -> Tensor:
        return F.cross_entropy(rows, flat, reduction="none", ignore_index=IGNORED_LABEL)

    plain = loss(rows)
    calibrated = plain if temperature == 1 else loss(rows / temperature)
    largest = counted & (rows.gather(1, flat.clamp(min=0)[:, None])[:, 0] == rows.amax(dim=-1))
    # Among equals the first is predicted. On a CPU argmax takes many times as long as amax: only these rows are asked.
    correct = largest.clone()
    correct[largest] = rows[largest].argmax(dim=-1) == flat[largest]
    return torch.stack([plain, correct.float(), counted.float(), calibrated], dim=-1).unflatten(0, labels.shape)
