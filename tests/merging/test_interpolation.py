import pytest
import torch

from hf_moe_lmc.errors import IncompatiblePairError
from hf_moe_lmc.merging import interpolate


def tensors(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(7, 13, generator=generator).to(dtype) for name in ("a", "b")}


@pytest.mark.parametrize("t", [0.0, 0.25, 0.5, 0.9, 1.0])
def test_equals_the_formula(t):
    a, b = tensors(0, torch.float64), tensors(1, torch.float64)
    for name, value in interpolate(a, b, t):
        torch.testing.assert_close(value, (1 - t) * a[name] + t * b[name], rtol=1e-14, atol=1e-15)


def test_an_end_is_itself_whatever_the_other_holds():
    a, b = tensors(0), {name: torch.full((7, 13), torch.nan) for name in ("a", "b")}
    assert all(torch.equal(value, a[name]) for name, value in interpolate(a, b, 0.0))
    assert all(torch.equal(value, a[name]) for name, value in interpolate(b, a, 1.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_endpoints_are_exact(dtype):
    a, b = tensors(0, dtype), tensors(1, dtype)
    assert all(torch.equal(value, a[name]) for name, value in interpolate(a, b, 0.0))
    assert all(torch.equal(value, b[name]) for name, value in interpolate(a, b, 1.0))


def test_a_model_with_itself_does_not_move():
    a = tensors(0)
    assert all(torch.equal(value, a[name]) for t in (0.3, 0.7) for name, value in interpolate(a, a, t))


def test_half_precision_is_rounded_once():
    a, b = tensors(0, torch.bfloat16), tensors(1, torch.bfloat16)
    for name, value in interpolate(a, b, 0.3):
        assert torch.equal(value, torch.lerp(a[name].float(), b[name].float(), 0.3).bfloat16())


def test_integers_must_agree():
    a, b = {"ids": torch.arange(3)}, {"ids": torch.arange(3)}
    assert torch.equal(dict(interpolate(a, b, 0.5))["ids"], a["ids"])
    with pytest.raises(IncompatiblePairError, match="tensor ids"):
        dict(interpolate(a, {"ids": torch.arange(3) + 1}, 0.5))


@pytest.mark.parametrize(
    ("other", "message"),
    [({"a": torch.zeros(7, 13)}, "tensor b exists in the reference"), ({**tensors(0), "c": torch.zeros(1)}, "other")],
)
def test_names_must_agree(other, message):
    with pytest.raises(IncompatiblePairError, match=message):
        dict(interpolate(tensors(0), other, 0.5))


def test_shapes_must_agree():
    with pytest.raises(IncompatiblePairError, match=r"tensor a: shape \(7, 13\)"):
        dict(interpolate(tensors(0), {**tensors(1), "a": torch.zeros(7, 12)}, 0.5))
