"""Opening what can be compared, which is more than what can be aligned."""

from typing import cast

from torch import nn

from hf_moe_lmc.adapters import MoeLayerSpec
from hf_moe_lmc.adapters.detection import LINEARS
from hf_moe_lmc.adapters.layouts import DenseMlp
from hf_moe_lmc.alignment import OpenedModel, Pretrained, open_model
from hf_moe_lmc.alignment.live_weights import LiveWeights
from hf_moe_lmc.alignment.opened_model import Model
from hf_moe_lmc.checkpoints import Checkpoint, HubOptions, find_source, meta_model, read_config
from hf_moe_lmc.errors import UnsupportedArchitectureError
from hf_moe_lmc.moe import SymmetryGroup


def open_readable(model: Model, options: HubOptions | None = None) -> OpenedModel:
    """As `open_model`, and models without any Mixture of Experts, or with one that is not known: of these the MLPs."""
    try:
        return open_model(model, options)
    except UnsupportedArchitectureError:
        if isinstance(model, nn.Module):
            return OpenedModel(type(model).__name__, model, LiveWeights(model), dense_layers(model))
        if isinstance(model, Pretrained):
            options, model = cast(HubOptions, {**(options or {}), **model.options}), model.name
        source = find_source(model, options)
        skeleton = meta_model(read_config(source.folder))
        checkpoint = Checkpoint.open(source.folder, skeleton)
        return OpenedModel(source.name, skeleton, checkpoint, dense_layers(skeleton), source)


def dense_layers(model: nn.Module) -> tuple[MoeLayerSpec, ...]:
    """Every module called `mlp` with the linears of an MLP, as a layer without router.

    Its class need not be known: nothing is rewritten, and what its units admit is asked of the other model.
    """
    layers = []
    for name, module in model.named_modules():
        linears = {child for child, part in module.named_children() if isinstance(part, nn.Linear)}
        for gate, up, down in LINEARS if name.rpartition(".")[2] == "mlp" else ():
            if linears == {linear for linear in (gate, up, down) if linear}:
                has_bias = module.get_submodule(down).bias is not None
                layout = DenseMlp(name, up, down, gate, has_bias)
                layers.append(MoeLayerSpec(name, None, layout, None, SymmetryGroup(fixed_experts=True)))
    return tuple(layers)
