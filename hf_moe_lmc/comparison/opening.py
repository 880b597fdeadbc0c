"""Opening what can be compared, which is more than what can be aligned."""

from torch import nn

from hf_moe_lmc.adapters import MoeLayerSpec
from hf_moe_lmc.adapters.mlps import mlp_layout
from hf_moe_lmc.alignment import OpenedModel, open_model
from hf_moe_lmc.alignment.opened_model import Model
from hf_moe_lmc.checkpoints import Checkpoint, HubOptions, find_source, meta_model, read_config
from hf_moe_lmc.errors import UnsupportedArchitectureError
from hf_moe_lmc.moe import SymmetryGroup


def open_readable(model: Model, options: HubOptions | None = None) -> OpenedModel:
    """As `open_model`, and models without any Mixture of Experts, or with one that is not known: of these the MLPs."""
    try:
        return open_model(model, options, quantised=True)
    except UnsupportedArchitectureError:
        if isinstance(model, nn.Module):
            return OpenedModel(type(model).__name__, model, model.state_dict(), dense_layers(model))
        source = find_source(model, options)
        skeleton = meta_model(read_config(source.folder))
        checkpoint = Checkpoint.open(source.folder, skeleton, quantised=True)
        return OpenedModel(source.name, skeleton, checkpoint, dense_layers(skeleton), source)


def dense_layers(model: nn.Module) -> tuple[MoeLayerSpec, ...]:
    """Every module called `mlp` whose linears are those of an MLP, as a layer without router.

    Its class need not be known: nothing is rewritten, and what its units admit is asked of the other model.
    """
    layers = []
    for name, module in model.named_modules():
        if name.rpartition(".")[2] != "mlp":
            continue
        try:
            layout = mlp_layout(name, module)
        except UnsupportedArchitectureError:
            continue
        layers.append(MoeLayerSpec(name, None, layout, None, SymmetryGroup(fixed_experts=True)))
    return tuple(layers)
