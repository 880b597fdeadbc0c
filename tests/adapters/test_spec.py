"""Writing a layer: of the original, only rows that are known to belong to no expert are kept."""

from dataclasses import replace

import pytest
import torch

from hf_moe_lmc.adapters import alignable_layers, moe_layers
from hf_moe_lmc.adapters.families import FAMILIES
from hf_moe_lmc.errors import BadInputError, UnsupportedArchitectureError
from hf_moe_lmc.moe import act
from tests import families
from tests.adapters.test_discovery import LAYOUTS
from tests.battery import CHANGED, PRESERVED
from tests.layers import derangement
from tests.models import MODELS

KEPT_ROWS = {
    "longcat_flash": {"model.layers.1.mlp.experts.gate_up_proj": 4},
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
    "further_rows": [without_last_row, lambda router: None],
}


@pytest.mark.parametrize("family", sorted({*LAYOUTS, *KEPT_ROWS, "inkling", "zaya"}))
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


@pytest.mark.parametrize("family", KEPT_ROWS)
def test_rows_of_no_expert_are_kept(family):
    model = build(family)
    tensors = model.state_dict()
    spec = next(spec for spec in moe_layers(model) if spec.name == "model.layers.1.mlp")
    assert dict(spec.kept_rows) == KEPT_ROWS[family]
    rewritten = spec.write(act(derangement(layer := spec.read(tensors)), layer), tensors)
    for name, rows in spec.kept_rows:
        before, after = tensors[name], rewritten[name]
        assert torch.equal(after[-rows:], before[-rows:])
        assert not torch.equal(after[:-rows], before[:-rows])


def families_with(owner):
    """Names of the families whose router has rows of `owner`."""
    records = {name: [facts.router for facts in classes.values()] for name, classes in FAMILIES.items()}
    return {name for name in records if any(router and router.further_rows == owner for router in records[name])}


def change(family, edit):
    """Relative change of the output in float64 when `edit` has edited the tensors of the family's layers."""
    model = families.build(family, dtype=torch.float64)
    before, tensors = families.outputs(model, family), {name: x.clone() for name, x in model.state_dict().items()}
    for spec in moe_layers(model):
        edit(spec, tensors)
    model.load_state_dict(tensors)
    return float((families.outputs(model, family) - before).abs().max() / before.abs().max())


def reverse_further_rows(spec, tensors, fields=("weight", "selection_bias")):
    """Reverse the order of the rows in the router that follow those of the routed experts."""
    for field, name in spec.router.tensors:
        if field in fields:
            rows = tensors[name][spec.num_experts :]
            rows.copy_(rows.flip(0))


def reverse_shared_experts(spec, tensors):
    for name in spec.shared_experts.tensor_names:
        tensors[name] = tensors[name].flip(0)


def test_shared_experts_that_are_stored_one_by_one_have_an_order():
    """Inkling's, together with their router rows."""

    def reverse_both(spec, tensors):
        reverse_further_rows(spec, tensors)
        reverse_shared_experts(spec, tensors)

    assert families_with("shared experts") == {"inkling"}
    assert change("inkling", reverse_both) < PRESERVED
    assert change("inkling", reverse_shared_experts) > CHANGED
    assert change("inkling", reverse_further_rows) > CHANGED


def test_zero_experts_have_an_order():
    """LongCat's, which have nothing but router rows."""

    def shift_rows(spec, tensors):
        for name in (name for _, name in spec.router.tensors):
            tensors[name] = tensors[name].roll(1, dims=0)

    assert families_with("zero experts") == {"longcat_flash"}
    assert change("longcat_flash", reverse_further_rows) < PRESERVED
    assert change("longcat_flash", lambda *args: reverse_further_rows(*args, fields=("weight",))) > CHANGED
    assert change("longcat_flash", shift_rows) > CHANGED


@pytest.mark.parametrize("rows", [4, 6])
def test_a_router_of_fewer_or_more_rows_than_experts_is_refused(rows):
    """Unless its class is known to have them."""
    model = MODELS["mixtral"]()
    model.model.layers[1].mlp.gate.weight = torch.nn.Parameter(torch.zeros(rows, 12))
    message = rf"model\.layers\.1\.mlp\.gate\.weight has {rows} rows for 5 experts; see hf_moe_lmc"
    with pytest.raises(UnsupportedArchitectureError, match=message):
        moe_layers(model)
