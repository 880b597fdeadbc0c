from dataclasses import replace

import pytest
import torch

from hf_moe_lmc.errors import IncompatiblePairError
from hf_moe_lmc.merging import mean_tensor, repaired_layer
from hf_moe_lmc.merging.mean import mean_router, weighted_sum
from tests.layers import LAYER_KINDS
from tests.merging.endpoints import SHARES, endpoints, on_the_line


def tensors(number: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(7, 13, generator=generator).to(dtype) for _ in range(number)]


ALL_SHARES = [(1.0,), (1.0, 0.0), (0.75, 0.25), (0.5, 0.5), (0.1, 0.9), (0.0, 1.0), *SHARES, (0.1, 0.2, 0.3, 0.4)]


@pytest.mark.parametrize("shares", ALL_SHARES, ids=str)
def test_equals_the_formula(shares):
    values = tensors(len(shares))
    expected = on_the_line(values, shares)
    for found in (mean_tensor("a", values, shares), weighted_sum(values, shares)):
        torch.testing.assert_close(found, expected, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_both_ends_of_two_are_exact(dtype):
    a, b = tensors(2, dtype)
    assert torch.equal(mean_tensor("a", [a, b], (1.0, 0.0)), a)
    assert torch.equal(mean_tensor("a", [a, b], (0.0, 1.0)), b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shares", ALL_SHARES, ids=str)
def test_equal_tensors_are_their_mean(shares, dtype):
    """Bit for bit, whatever the rounding of the shares."""
    (value,) = tensors(1, dtype)
    assert torch.equal(mean_tensor("a", [value] * len(shares), shares), value)


@pytest.mark.parametrize("shares", SHARES, ids=str)
def test_half_precision_is_rounded_once(shares):
    values = tensors(len(shares), torch.bfloat16)
    first, *others = (value.float() for value in values)
    exact = first + sum(share * (other - first) for share, other in zip(shares[1:], others, strict=True))
    found = mean_tensor("a", values, shares)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, exact.bfloat16())
    wide = mean_tensor("a", values, shares, torch.float32)
    assert wide.dtype == torch.float32
    assert torch.equal(wide.bfloat16(), found)
    assert not torch.equal(wide, found.float())


@pytest.mark.parametrize("shares", SHARES, ids=str)
def test_dtypes_may_differ(shares):
    """The mean has that of the first, and is computed in the widest."""
    values = tensors(len(shares), torch.bfloat16)
    mixed = [values[0], *(value.double() for value in values[1:])]
    found = mean_tensor("a", mixed, shares)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, on_the_line([value.double() for value in values], shares).bfloat16())


def test_a_narrower_dtype_is_not_taken():
    a, b = tensors(2, torch.float32)
    assert mean_tensor("a", [a, b], (0.5, 0.5), torch.bfloat16).dtype == torch.float32


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float32), (torch.bfloat16, torch.float32)])
def test_memory_of_the_first_is_taken_only_if_allowed(dtypes):
    a, b = (value.to(dtype) for value, dtype in zip(tensors(2), dtypes, strict=True))
    before = a.clone()
    expected = mean_tensor("a", [a, b], (0.5, 0.5))
    assert torch.equal(a, before)
    found = mean_tensor("a", [a, b], (0.5, 0.5), overwrite=True)
    assert torch.equal(found, expected)
    assert found.data_ptr() == a.data_ptr()
    wide, rows = mean_tensor("a", [a, b], (0.5, 0.5), torch.float64, overwrite=True), a.mT
    assert wide.data_ptr() != a.data_ptr() != mean_tensor("a", [rows, b.mT], (0.5, 0.5), overwrite=True).data_ptr()


@pytest.mark.parametrize("shares", SHARES, ids=str)
def test_integers_must_agree(shares):
    ids = torch.arange(3)
    assert torch.equal(mean_tensor("ids", [ids] * len(shares), shares), ids)
    with pytest.raises(IncompatiblePairError, match=r"tensor ids \(torch.int64\) differs and cannot be averaged"):
        mean_tensor("ids", [ids] * (len(shares) - 1) + [ids + 1], shares)


@pytest.mark.parametrize("shares", SHARES, ids=str)
def test_shapes_must_agree(shares):
    values = [torch.zeros(7, 13)] * (len(shares) - 1) + [torch.zeros(7, 12)]
    with pytest.raises(IncompatiblePairError, match=r"tensor a: shape \(7, 13\) in the reference, \(7, 12\)"):
        mean_tensor("a", values, shares)


@pytest.mark.parametrize("shares", SHARES, ids=str)
@pytest.mark.parametrize("kind", LAYER_KINDS)
def test_a_layer_is_averaged_tensor_by_tensor(kind, shares):
    layers = endpoints(kind, shares)
    merged, own = repaired_layer(layers, shares).tensors(), [layer.tensors() for layer in layers]
    assert merged.keys() == own[0].keys()
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, on_the_line([part[name] for part in own], shares))


def test_tables_of_experts_by_token_must_agree():
    a, b = (layer.router for layer in endpoints("swiglu", (0.5, 0.5)))
    table = torch.tensor([[0, 1], [2, 3]])
    known = replace(a, expert_table=table), replace(b, expert_table=table)
    assert torch.equal(mean_router(known, (0.5, 0.5)).expert_table, table)
    with pytest.raises(IncompatiblePairError, match="expert_table"):
        mean_router((known[0], replace(b, expert_table=table.flip(0))), (0.5, 0.5))
