"""VitPose, whose caller chooses the head: its units can be permuted, its heads cannot. Experts stored one by one."""

import pytest
import torch

from hf_moe_lmc import align, scramble
from hf_moe_lmc.adapters import alignable_layers, moe_layers
from hf_moe_lmc.adapters.layouts import HeadedMlp
from hf_moe_lmc.errors import BadInputError
from tests import families


def build():
    return families.build("vitpose_backbone", experts=5, dtype=torch.float64)


def test_a_unit_is_permuted_in_all_heads():
    model = build()
    before, tensors = families.outputs(model, "vitpose_backbone"), model.state_dict()
    head = tensors["encoder.layer.1.mlp.experts.3.weight"].clone()
    model, planted = scramble(model)
    assert not torch.equal(model.state_dict()["encoder.layer.1.mlp.experts.3.weight"], head)
    order = planted.symmetries["encoder.layer.1.mlp"].units.permutation.index[0]
    assert torch.equal(model.state_dict()["encoder.layer.1.mlp.experts.3.weight"], head[:, order])
    assert torch.allclose(families.outputs(model, "vitpose_backbone"), before, rtol=0, atol=1e-12)
    assert align(build(), model).apply(model) is model
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in build().state_dict().items())


def test_the_order_of_heads_is_no_symmetry():
    model = build()
    before = families.outputs(model, "vitpose_backbone")
    experts = model.encoder.layer[1].mlp.experts
    experts[1], experts[3] = experts[3], experts[1]
    assert not torch.allclose(families.outputs(model, "vitpose_backbone"), before, rtol=0, atol=1e-3)


def test_no_layer_has_a_router():
    model = build()
    assert moe_layers(model) == ()
    assert [type(spec.experts) for spec in alignable_layers(model)] == [HeadedMlp] * 3


def test_listed_experts_of_two_dtypes_would_be_rounded():
    """In a live model; checkpoints are read in the wider one, as the cases of tests/benchmarks/test_differential.py."""
    model = families.build("switch_transformers")
    name, weight = next((n, w) for n, w in model.named_parameters() if "expert_1.wi" in n)
    model.get_submodule(name.removesuffix(".weight")).weight.data = weight.data.bfloat16()
    with pytest.raises(BadInputError, match=r"experts of .*\.experts differ in dtype; convert the model to one"):
        align(model, model)
