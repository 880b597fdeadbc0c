"""Proof that a rewritten model computes the same as before."""

from .inputs import SAMPLE_TEXT, load_plainly, random_batches, text_batch
from .model_comparison import LayerVerification, OutputDifference, Verification, verify

__all__ = [
    "SAMPLE_TEXT",
    "LayerVerification",
    "OutputDifference",
    "Verification",
    "load_plainly",
    "random_batches",
    "text_batch",
    "verify",
]
