"""Layers on another device are matched there, to what they are matched to on the CPU."""

from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from hf_moe_lmc.matching import align_layers, certify, match_mutually, solve_assignment
from hf_moe_lmc.matching.units import Block, Units, _as_stored
from hf_moe_lmc.moe import MoeLayer, act
from hf_moe_lmc.symmetry import MoeSymmetry
from tests.layers import LAYER_KINDS, derangement
from tests.matching.similarities import similarity
from tests.pretend_device import pretend_device


@pytest.fixture
def device():
    with pretend_device() as device:
        yield device


def there(layer: MoeLayer, device: torch.device) -> MoeLayer:
    return layer.with_tensors({name: tensor.to(device) for name, tensor in layer.tensors().items()})


def test_what_the_device_refuses(device):
    tensor = torch.ones(3).to(device)
    assert tensor.device.type != "cpu"
    assert tensor.cpu().sum() == 3
    with pytest.raises(RuntimeError, match="same device"):
        tensor + torch.ones(3)
    with pytest.raises(TypeError, match="to numpy"):
        tensor.numpy()


def sibling(layer: MoeLayer, noise: float) -> MoeLayer:
    """The layer, scrambled, with noise."""
    generator = torch.Generator().manual_seed(1)
    tensors = act(derangement(layer), layer).tensors()
    return layer.with_tensors(
        {
            name: tensor + noise * torch.randn(tensor.shape, generator=generator).to(tensor)
            for name, tensor in tensors.items()
        }
    )


def check(a: MoeLayer, b: MoeLayer, device: torch.device, order: str) -> str:
    """Aligned there as here; the solver of the first units."""
    here, found = align_layers(a, b, order), align_layers(there(a, device), there(b, device), order)
    assert found.symmetry == here.symmetry
    assert found.distance_after == pytest.approx(here.distance_after, rel=1e-6)
    assert found.evidence.gap == pytest.approx(here.evidence.gap, abs=1e-6 * here.evidence.similarity)
    return next(iter(found.evidence.unit_solvers))


@pytest.mark.parametrize("kind", LAYER_KINDS)
def test_layers_of_every_kind(device, kind):
    layer = LAYER_KINDS[kind](dtype=torch.float32)
    check(layer, sibling(layer, 0.3), device, "auto")


@pytest.mark.parametrize("order", ["units", "gate", "gram", "joint"])
def test_every_order(device, order):
    layer = LAYER_KINDS["swiglu with biases"](dtype=torch.float32)
    check(layer, sibling(layer, 0.3), device, order)


@pytest.mark.parametrize(("noise", "solver"), [(0.01, "siblings"), (1.0, "lapx")])
def test_units_near_and_far(device, noise, solver):
    layer = LAYER_KINDS["swiglu with biases"](F_=160, H=64, dtype=torch.bfloat16)
    assert check(layer, sibling(layer, noise), device, "auto") == solver


def test_free_scales(device):
    layer = LAYER_KINDS["mlp"](dtype=torch.float32)
    layer = replace(layer, group=replace(layer.group, unit_scale_degree=1))
    check(layer, sibling(layer, 0.1), device, "joint")


@pytest.mark.parametrize(("kind", "n", "solver"), [
    ("gaussian", 20, "lapx"), ("siblings", 400, "row maxima"), ("gaussian", 400, "lapx"),
    ("gaussian", 1280, "candidates"),
])  # fmt: skip
def test_assignments_by_every_route(device, kind, n, solver):
    matrix = similarity(kind, n, dtype=torch.float32)
    here, found = solve_assignment(matrix), solve_assignment(matrix.to(device))
    assert found.permutation == here.permutation
    assert found.solver == here.solver == solver
    assert certify(found, matrix.to(device)) == pytest.approx(certify(found, matrix), abs=1e-6 * abs(found.objective))


def test_several_layers(device):
    layer = LAYER_KINDS["swiglu"](dtype=torch.float32)
    layers = [layer, sibling(layer, 0.2), sibling(layer, 0.5)]
    start = [MoeSymmetry.identity(*layer.symmetry_shape)] * 3
    found = match_mutually([there(one, device) for one in layers], start, "joint")
    assert found.symmetries == match_mutually(layers, start, "joint").symmetries


def test_a_gpu_multiplies_what_16_bits_hold_as_that():
    """Shapes and dtypes only: what it computes is seen on a GPU."""
    seen = []

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function is torch.ops.aten.mm.dtype:
                seen.append([tensor.dtype for tensor in args[:2]])
            return function(*args, **(kwargs or {}))

    with FakeTensorMode(), Watching():
        kept, signed = (torch.empty(7, width, device="cuda") for width in (13, 26))
        scale = torch.empty(7, device="cuda")
        units = Units(
            kept,
            signed,
            (Block(13, None, torch.bfloat16),),
            (Block(13, scale, torch.bfloat16), Block(13, scale, torch.bfloat16)),
        )
        found = units.similarity(units)
    assert found.dtype == torch.float32
    assert found.device.type == "cuda"
    assert seen == [[torch.bfloat16] * 2] * 3


def test_rows_as_they_were_stored_are_found_again():
    """Exactly, whatever they were scaled by: products of them, scaled, are those of the scaled rows."""
    generator = torch.Generator().manual_seed(0)
    stored = torch.randn(40, 30, generator=generator).bfloat16()
    scale = torch.randn(40, generator=generator).mul(3).exp()
    scale[3] = 0
    block = Block(30, scale, torch.bfloat16)
    expected = stored.index_fill(0, torch.tensor([3]), 0.0)
    assert torch.equal(_as_stored(stored.float() * scale[:, None], block), expected)
    assert torch.equal(_as_stored(stored.float(), Block(30, None, torch.bfloat16)), stored)
