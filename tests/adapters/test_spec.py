"""Writing a layer: nothing is completed from the original but rows that are known to follow those of the experts."""

from dataclasses import replace

import pytest
import torch

from hf_moe_lmc.adapters import alignable_layers, moe_layers
from hf_moe_lmc.errors import BadInputError, UnsupportedArchitectureError
from tests import families
from tests.adapters.test_discovery import LAYOUTS
from tests.layers import derangement
from tests.models import MODELS

FURTHER_ROWS = {
    "inkling": {"model.layers.1.mlp.gate.weight": 2},
    "longcat_flash": {
        "model.layers.1.mlp.experts.gate_up_proj": 4,
        "model.layers.1.mlp.router.classifier.weight": 4,
        "model.layers.1.mlp.router.e_score_correction_bias": 4,
    },
    "zaya": {"model.layers.1.mlp.gate.router_mlp.out_proj.weight": 1, "model.layers.1.mlp.gate.balancing_biases": 1},
    "doge": {"model.layers.1.mlp.down_embed.weight": 2, "model.layers.1.mlp.up_embed.weight": 2},
}


def build(family):
    """The family; Doge with two experts more than its keys can choose."""
    config = families.configuration(family, 12)
    if family == "doge":
        config.num_experts = 18
    model = families.FAMILIES[family].model_class()(config)
    families.draw_weights(model, 12)
    return model


def without_last_row(part):
    return part.map(lambda tensor: tensor[:-1])


def without_last_unit(bank):
    fewer = {name: tensor[:, :-1] for name, tensor in bank.tensors().items() if not name.startswith("down")}
    return replace(bank, **fewer, down_proj=bank.down_proj[..., :-1])


CUTS = {
    "router": [without_last_row, lambda router: None],
    "experts": [without_last_row, without_last_unit],
    "shared_experts": [without_last_row, without_last_unit, lambda bank: None],
}


@pytest.mark.parametrize("family", sorted({*LAYOUTS, *FURTHER_ROWS}))
def test_a_layer_that_lacks_something_is_not_written(family):
    model = build(family)
    tensors = model.state_dict()
    for spec in alignable_layers(model):
        layer = spec.read(tensors)
        assert all(torch.equal(tensor, tensors[name]) for name, tensor in spec.write(layer, tensors).items())
        for part, whole in {part: whole for part in CUTS if (whole := getattr(layer, part))}.items():
            for cut in CUTS[part]:
                with pytest.raises(BadInputError, match=f"layer {spec.name}"):
                    spec.write(replace(layer, **{part: cut(whole)}), tensors)


@pytest.mark.parametrize("family", FURTHER_ROWS)
def test_further_rows_stay_where_they_are(family):
    model = build(family)
    tensors = model.state_dict()
    spec = next(spec for spec in moe_layers(model) if spec.name == "model.layers.1.mlp")
    assert dict(spec.further_rows) == FURTHER_ROWS[family]
    rewritten = spec.act(derangement(spec.read(tensors)), tensors)
    for name, rows in spec.further_rows:
        before, after = tensors[name], rewritten[name]
        assert torch.equal(after[-rows:], before[-rows:])
        assert not torch.equal(after[:-rows], before[:-rows])


@pytest.mark.parametrize("rows", [4, 6])
def test_a_router_of_fewer_or_more_rows_than_experts_is_refused(rows):
    """Unless its class is known to have them."""
    model = MODELS["mixtral"]()
    model.model.layers[1].mlp.gate.weight = torch.nn.Parameter(torch.zeros(rows, 12))
    message = rf"model\.layers\.1\.mlp\.gate\.weight has {rows} rows for 5 experts; see hf_moe_lmc"
    with pytest.raises(UnsupportedArchitectureError, match=message):
        moe_layers(model)
