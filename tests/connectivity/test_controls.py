from dataclasses import replace

import pytest
import torch

from hf_moe_lmc.adapters import alignable_layers
from hf_moe_lmc.alignment import mean
from hf_moe_lmc.connectivity.controls import endpoint_experts, pick_units, picked_units, shuffled_layers
from hf_moe_lmc.merging import repaired_layer
from hf_moe_lmc.moe import act
from tests.layers import LAYER_KINDS, derangement, same_weights
from tests.models import build

NAMES = ["moe_vit shared", "moe_gpt2 sparse", "mixtral", "qwen2_moe"]
SHARES = [(0.5, 0.5), (0.32, 0.35, 0.33)]


def models(name: str, number: int, dtype: torch.dtype = torch.float32):
    built = [build(name, seed=seed, dtype=dtype) for seed in range(number)]
    return [model.state_dict() for model in built], alignable_layers(built[0])


def of_layers(specs) -> set[str]:
    return {name for spec in specs for name in spec.tensor_names}


@pytest.mark.parametrize("shares", SHARES, ids=len)
@pytest.mark.parametrize("name", NAMES)
def test_the_experts_of_one_endpoint_on_the_averaged_rest(name, shares):
    """Bit for bit; asked for twice."""
    weights, specs = models(name, len(shares))
    average = mean(weights, shares)
    for endpoint, own in enumerate(weights):
        control = endpoint_experts(weights, shares, specs, endpoint)
        assert list(control) == list(own)
        for key in [*own, *own]:
            assert torch.equal(control[key], own[key] if key in of_layers(specs) else average[key])
    assert 0 < len(of_layers(specs)) < len(weights[0])


def units(layer):
    """(gate row, up row, biases, down column) of every unit, shared experts too."""
    banks = [bank for bank in (layer.experts, layer.shared_experts) if bank]
    return [
        [bank.down_proj[e, :, f]] + [tensor[e, f] for name, tensor in bank.tensors().items() if "down" not in name]
        for bank in banks
        for e in range(bank.num_experts)
        for f in range(bank.num_units)
    ]


@pytest.mark.parametrize("shares", SHARES, ids=len)
@pytest.mark.parametrize("kind", LAYER_KINDS)
def test_every_unit_is_that_of_the_layer_where_it_is_largest(kind, shares):
    """Against a loop; all that is no unit is averaged."""
    layers = [LAYER_KINDS[kind](seed=seed) for seed in range(len(shares))]
    picked = pick_units(layers, shares)
    origins = set()
    for found, *candidates in zip(units(picked), *map(units, layers), strict=True):
        sizes = [s * sum(x.square().sum() for x in unit).sqrt() for s, unit in zip(shares, candidates, strict=True)]
        origins.add(origin := max(range(len(shares)), key=sizes.__getitem__))
        assert all(torch.equal(x, y) for x, y in zip(found, candidates[origin], strict=True))
    assert origins == set(range(len(shares)))
    wanted = sum(share * layer.router.weight for share, layer in zip(shares, layers, strict=True))
    torch.testing.assert_close(picked.router.weight, wanted)
    if picked.experts.down_bias is not None:
        wanted = sum(share * layer.experts.down_bias for share, layer in zip(shares, layers, strict=True))
        torch.testing.assert_close(picked.experts.down_bias, wanted)


def test_a_free_scale_of_units_does_not_decide():
    """Scales that change no function change no choice; without a symmetry of scales they do."""
    a, b = (LAYER_KINDS["swiglu"](seed=seed) for seed in (0, 1))
    scales = torch.linspace(-2, 2, 7).exp()
    experts = b.experts
    scaled = replace(experts, up_proj=experts.up_proj * scales[:, None], down_proj=experts.down_proj / scales)

    def origins(degree: int, bank) -> list[bool]:
        free = replace(a.group, unit_scale_degree=degree)
        found = pick_units([replace(a, group=free), replace(b, group=free, experts=bank)], (0.5, 0.5))
        return [torch.equal(found.experts.up_proj[e, f], a.experts.up_proj[e, f]) for e in range(5) for f in range(7)]

    assert origins(1, scaled) == origins(1, experts)
    assert origins(0, scaled) != origins(0, experts)


def test_units_that_agree_are_averaged():
    a, b = (LAYER_KINDS["swiglu with biases"](seed=seed, H=64) for seed in (0, 1))
    near = a.with_tensors({name: tensor + 0.1 for name, tensor in a.tensors().items()})
    assert same_weights(pick_units([a, near], (0.5, 0.5), 0.5), repaired_layer([a, near], (0.5, 0.5)))
    assert same_weights(pick_units([a, b], (0.5, 0.5), 0.5), pick_units([a, b], (0.5, 0.5)))
    assert not same_weights(pick_units([a, near], (0.5, 0.5)), pick_units([a, near], (0.5, 0.5), 0.5))


@pytest.mark.parametrize("kind", LAYER_KINDS)
def test_picking_commutes_with_symmetries(kind):
    a, b = (LAYER_KINDS[kind](seed=seed) for seed in (0, 1))
    symmetry = derangement(a)
    moved = pick_units([act(symmetry, a), act(symmetry, b)], (0.5, 0.5))
    for name, tensor in act(symmetry, pick_units([a, b], (0.5, 0.5))).tensors().items():
        torch.testing.assert_close(moved.tensors()[name], tensor)


@pytest.mark.parametrize("kind", LAYER_KINDS)
def test_at_an_endpoint_and_between_equal_layers_nothing_is_mixed(kind):
    a, b = (LAYER_KINDS[kind](seed=seed) for seed in (0, 1))
    assert same_weights(pick_units([a, b], (1.0, 0.0)), a)
    assert same_weights(pick_units([a, a], (0.5, 0.5)), a)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_picked_units_of_whole_models(name, dtype):
    """Layers as `pick_units` makes them, in the dtypes of the first model; the rest is the mean."""
    weights, specs = models(name, 2, dtype)
    picked, average = picked_units(weights, (0.5, 0.5), specs), mean(weights, (0.5, 0.5))
    assert list(picked) == list(weights[0])
    assert all(tensor.dtype == dtype for tensor in picked.values())
    assert all(torch.equal(picked[key], average[key]) for key in picked.keys() - of_layers(specs))
    for spec in specs:
        layer = pick_units([spec.read(own) for own in weights], (0.5, 0.5))
        written = spec.read({key: picked[key] for key in spec.tensor_names})
        for key, tensor in layer.tensors().items():
            assert torch.equal(written.tensors()[key], tensor.to(dtype))


def test_shuffled_layers_keep_their_entries():
    """Every tensor of the layers keeps its entries, none its place; all else is as it was."""
    (before,), specs = models("mixtral", 1)
    shuffled = shuffled_layers(before, specs)
    for name, tensor in before.items():
        assert torch.equal(shuffled[name].flatten().sort().values, tensor.flatten().sort().values)
        assert torch.equal(shuffled[name], tensor) == (name not in of_layers(specs))
    again, other = (shuffled_layers(before, specs, seed) for seed in (0, 1))
    name = specs[0].tensor_names[-1]
    assert torch.equal(again[name], shuffled[name])
    assert not torch.equal(other[name], shuffled[name])
