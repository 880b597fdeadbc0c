"""The model that an alignment was made for."""

from collections.abc import Mapping
from dataclasses import dataclass

import xxhash
from torch import Tensor

from hf_moe_lmc.adapters import MoeLayerSpec
from hf_moe_lmc.checkpoints import tensor_bytes
from hf_moe_lmc.errors import IncompatiblePairError


@dataclass(frozen=True)
class ModelRecord:
    """A model as it was when it was aligned.

    Args:
        name: class of a live model; folder or repository of a checkpoint.
        commit: of the repository, or None.
        digests: name of each Mixture-of-Experts layer -> `layer_digest`.
    """

    name: str
    commit: str | None
    digests: dict[str, str]

    def check(self, spec: MoeLayerSpec, tensors: Mapping[str, Tensor], name: str) -> None:
        """Raise `IncompatiblePairError` unless the layer in `tensors`, of the model `name`, is the recorded one."""
        if layer_digest(spec, tensors) != self.digests.get(spec.name):
            raise IncompatiblePairError(
                f"layer {spec.name} of {name} is not that of {self.name}, for which the alignment was made; "
                "align anew, or allow it: --allow-other-weights"
            )


def layer_digest(spec: MoeLayerSpec, tensors: Mapping[str, Tensor]) -> str:
    """Digest of the weights of one layer, whatever the layout of the checkpoint that they were read from.

    XXH3 of 128 bits over names, dtypes, shapes and values: seven times as fast as sha-256, and made against accidents,
    not against people who want two models to look the same.
    """
    digest = xxhash.xxh3_128()
    for name in sorted(spec.tensor_names):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor_bytes(tensor.cpu().contiguous()))
    return digest.hexdigest()
