"""One difference of two models that is none of their weights."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Difference:
    """A difference of configurations, of files or of tensors.

    Args:
        name: of the field (`rope_parameters.rope_theta`), the file or the tensor.
        text: the difference in words.
        harmful: whether it changes what the models compute of the same weights and the same text, or is taken to.
    """

    name: str
    text: str
    harmful: bool = False

    def is_named(self, names: Sequence[str]) -> bool:
        """Whether `names` hold its name, or that of what it is a part of (`rope_parameters`)."""
        return any(f"{self.name}.".startswith(f"{name}.") for name in names)
