"""Proof that a rewritten model computes what it computed before."""

from .inputs import random_batches, text_batch
from .loading import load_plainly
from .model_comparison import LayerVerification, Verification, verify
from .output_difference import OutputDifference
from .sample_text import SAMPLE_TEXT

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
