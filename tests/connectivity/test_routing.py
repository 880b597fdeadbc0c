import math

import pytest
import torch
from accelerate import Accelerator

from hf_moe_lmc.adapters import moe_layers
from hf_moe_lmc.connectivity.routing import LayerChoices, RoutingRecorder, routing_along
from tests import families
from tests.layers import naive_routing
from tests.models import build, inputs


def choices(experts: list[list[int]], last: list[int]) -> dict[str, LayerChoices]:
    return {"layer": LayerChoices(4, torch.tensor(experts), torch.tensor(last))}


def test_by_hand():
    """Four tokens, top-2 of 4: unchanged, its last swapped, its first swapped, both swapped."""
    start = choices([[0, 1], [0, 1], [0, 1], [0, 1]], [1, 1, 1, 1])
    end = choices([[1, 0], [0, 2], [2, 1], [2, 3]], [0, 2, 1, 3])
    found = routing_along((0.0, 1.0), [start, end])
    assert found.layers == ("layer",)
    assert found.agreement_with_reference == ((1.0, (1 + 0.5 + 0.5 + 0) / 4),)
    assert found.agreement_with_other == ((0.5, 1.0),)
    assert found.boundary_swaps == ((0.0, 0.25),)
    assert found.dead_experts == ((2.0, 0.0),)
    loads = [2 / 8, 2 / 8, 3 / 8, 1 / 8]
    expected = -sum(load * math.log(load) for load in loads) / math.log(4)
    assert found.load_entropy[0] == pytest.approx((0.5, expected))


def test_zero_experts_are_no_choice():
    """Numbers from 4 on have no weights; one end takes the highest of them, the other does not."""
    start, end = choices([[0, 5], [1, 2]], [5, 2]), choices([[0, 4], [1, 4]], [4, 4])
    found = routing_along((0.0, 1.0), [start, end])
    assert found.agreement_with_reference == ((1.0, 1.0),)
    assert found.agreement_with_other == ((2 / 3, 1.0),)
    assert found.boundary_swaps == ((0.0, 0.5),)
    assert found.dead_experts == ((1.0, 2.0),)


@pytest.mark.parametrize("name", ["moe_vit shared", "mixtral", "qwen2_moe"])
def test_the_record_equals_the_naive_router(name):
    model = build(name)
    specs, tokens = moe_layers(model), {}

    def keep(name: str):
        return lambda module, args: tokens.update({name: args[0].flatten(0, -2)})

    handles = [model.get_submodule(spec.name).register_forward_pre_hook(keep(spec.name)) for spec in specs]
    recorder = RoutingRecorder(model, specs, Accelerator(cpu=True), max_tokens=10_000)
    with recorder.record(), torch.no_grad():
        model(**inputs(model))
    for handle in handles:
        handle.remove()
    (recorded,) = recorder.choices
    assert list(recorded) == [spec.name for spec in specs]
    for spec in specs:
        layer, found = spec.read(model.state_dict()), recorded[spec.name]
        assert found.num_experts == layer.experts.num_experts
        for token, experts, last in zip(tokens[spec.name], found.experts, found.last, strict=True):
            weights, expected = naive_routing(layer, token)
            assert set(experts.tolist()) == set(expected.tolist())
            assert last == expected[weights.argmin()]


def test_no_more_tokens_than_asked_for():
    """Whole batches, until there are enough; and the hooks are gone afterwards."""
    model = build("mixtral", dtype=torch.float32)
    recorder = RoutingRecorder(model, moe_layers(model), Accelerator(cpu=True), max_tokens=60)
    with recorder.record(), torch.no_grad():
        for _ in range(3):
            model(**inputs(model))
    assert {len(choices.experts) for choices in recorder.choices[0].values()} == {2 * 6 * 9}
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("family", ["dbrx", "switch_transformers"])
def test_experts_that_are_not_called_with_indices_are_left_out(family):
    model = families.build(family)
    recorder = RoutingRecorder(model, moe_layers(model), Accelerator(cpu=True), max_tokens=60)
    with recorder.record():
        families.outputs(model, family)
    assert recorder.choices == [{}]
