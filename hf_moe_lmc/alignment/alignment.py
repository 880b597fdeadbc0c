"""The alignment of two models: a small value that can be saved, loaded and applied."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hf_moe_lmc.adapters import MoeLayerSpec, alignable_layers
from hf_moe_lmc.errors import BadInputError, IncompatiblePairError
from hf_moe_lmc.matching import LayerAlignment
from hf_moe_lmc.moe import act
from hf_moe_lmc.symmetry import MoeSymmetry, Permutation, SignedPermutation

WEIGHTS_NAME = "alignment.safetensors"
CONFIG_NAME = "alignment_config.json"

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class Alignment:
    """What brings one model close to another, layer by layer.

    Args:
        layers: module name of each Mixture-of-Experts layer -> its symmetry and distances.
        expert_order: how experts were matched.
    """

    layers: dict[str, LayerAlignment]
    expert_order: str

    @property
    def symmetries(self) -> dict[str, MoeSymmetry]:
        """Module name of each layer -> the symmetry to apply to it."""
        return {name: layer.symmetry for name, layer in self.layers.items()}

    def apply(self, model: Model) -> Model:
        """Rewrite `model` in place, and return it; its function does not change, and no weight is rounded.

        Raises:
            IncompatiblePairError: `model` has other layers than the alignment was made for.
        """
        state = model.state_dict()
        rewritten = apply_symmetries(state, alignable_layers(model), self.symmetries)
        with torch.no_grad():
            for name, tensor in state.items():
                if rewritten[name] is not tensor:
                    tensor.copy_(rewritten[name])
        return model

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the permutations to `alignment.safetensors` and the figures to `alignment_config.json` in `folder`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors, layers = {}, {}
        for name, layer in self.layers.items():
            symmetry = layer.symmetry
            tensors[f"{name}.experts"] = symmetry.experts.index
            for part, units in (("units", symmetry.units), ("shared_units", symmetry.shared_units)):
                if units is not None:
                    tensors |= {f"{name}.{part}": units.permutation.index, f"{name}.{part}.signs": units.signs}
            layers[name] = {"distance_before": layer.distance_before, "distance_after": layer.distance_after}
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS_NAME)
        config = {"version": version("hf_moe_lmc"), "expert_order": self.expert_order, "layers": layers}
        (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "Alignment":
        """Read what `save_pretrained` wrote.

        Raises:
            BadInputError: a file is missing or does not hold an alignment.
        """
        folder = Path(folder)
        try:
            config = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
            tensors = load_file(folder / WEIGHTS_NAME)
            layers = {
                name: LayerAlignment(
                    MoeSymmetry(
                        Permutation(tensors[f"{name}.experts"]),
                        _signed(tensors, f"{name}.units"),
                        _signed(tensors, f"{name}.shared_units") if f"{name}.shared_units" in tensors else None,
                    ),
                    figures["distance_before"],
                    figures["distance_after"],
                )
                for name, figures in config["layers"].items()
            }
            return cls(layers, config["expert_order"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            raise BadInputError(f"{folder} does not hold an alignment: {error}") from error


def _signed(tensors: Mapping[str, Tensor], name: str) -> SignedPermutation:
    return SignedPermutation(Permutation(tensors[name]), tensors[f"{name}.signs"])


def apply_symmetries(
    tensors: Mapping[str, Tensor], specs: Sequence[MoeLayerSpec], symmetries: Mapping[str, MoeSymmetry]
) -> dict[str, Tensor]:
    """All of `tensors`, those of the layers in `symmetries` (keyed by layer name) rewritten.

    Raises:
        IncompatiblePairError: a layer is unknown, or its sizes are not those of its symmetry.
    """
    known = {spec.name: spec for spec in specs}
    result = dict(tensors)
    for name, symmetry in symmetries.items():
        if name not in known:
            raise IncompatiblePairError(f"layer {name} of the alignment does not exist in the model")
        try:
            result |= known[name].write(act(symmetry, known[name].read(tensors)), tensors)
        except ValueError as error:
            raise IncompatiblePairError(f"layer {name}: {error}") from None
    return result
