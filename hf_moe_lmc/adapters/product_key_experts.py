"""Experts that two keys choose."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from hf_moe_lmc.moe import ExpertBank


@dataclass(frozen=True)
class ProductKeyExperts:
    """n^2 experts of one unit each, that two keys choose: expert (i, j) is row `n i + j` of two embeddings (Doge).

    Read as n slots of n units. Rows beyond n^2 are never chosen.

    Args:
        name: module name.
        num_keys: n.
    """

    name: str
    num_keys: int
    is_gated: bool = False

    @property
    def tensor_names(self) -> tuple[str, ...]:
        """Module names of the tensors that `read` reads and `write` writes."""
        return (f"{self.name}.down_embed.weight", f"{self.name}.up_embed.weight")

    def read(self, tensors: Mapping[str, Tensor]) -> ExpertBank:
        """The experts out of tensors under module names, as views; `down_embed` leads into a unit, `up_embed` out."""
        n = self.num_keys
        inward, outward = (tensors[name][: n * n].unflatten(0, (n, n)) for name in self.tensor_names)
        return ExpertBank(inward, outward.mT)

    def write(self, experts: ExpertBank) -> dict[str, Tensor]:
        """The inverse of `read`."""
        rows = (experts.up_proj.flatten(0, 1), experts.down_proj.mT.flatten(0, 1))
        return dict(zip(self.tensor_names, rows, strict=True))
