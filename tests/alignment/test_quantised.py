"""Quantised checkpoints are aligned, merged, rewritten and compared as the 16-bit weights that they mean."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from hf_moe_lmc import align, apply, cli, compare, merge
from hf_moe_lmc.alignment import load_model, open_model
from hf_moe_lmc.alignment.random_rewrite import scramble
from tests import families
from tests.checkpoints.faulty import SINGLE
from tests.checkpoints.quantising import FORMATS, built, dequantised_by_transformers, quantised


@pytest.mark.parametrize("name", FORMATS)
def test_planted_orders_are_recovered_through_quantisation(name, tmp_path):
    """Orders of experts and units, and signs; written, all is bfloat16 and the function that of the quantised model."""
    model = built(name)
    model.save_pretrained(tmp_path / "reference")
    scrambled, planted = scramble(model)
    other = quantised(name, scrambled, tmp_path / "other")
    alignment = align(tmp_path / "reference", other)
    assert alignment.symmetries == planted.inverse().symmetries
    apply(alignment, other, tmp_path / "back")
    assert {tensor.dtype for tensor in load_file(tmp_path / "back" / SINGLE).values()} == {torch.bfloat16}
    assert "quantization_config" not in json.loads((tmp_path / "back" / "config.json").read_text())
    expected = outputs(name, dequantised_by_transformers(name, other, tmp_path / "plain"))
    assert torch.equal(outputs(name, load_model(open_model(other))), expected)
    assert difference(outputs(name, load_model(open_model(tmp_path / "back"))), expected) < 1e-5
    assert difference(outputs(name, load_model(open_model(tmp_path / "reference"))), expected) > 1e-3


@pytest.mark.parametrize("name", ["fp8 blocks", "fp8 channels", "mxfp4"])
def test_a_merge_is_that_of_the_dequantised_models(name, tmp_path):
    """Dequantised by Transformers, aligned, interpolated in float32, rounded once: the same bits."""
    model = built(name)
    reference = quantised(name, model, tmp_path / "reference")
    with torch.no_grad():
        for parameter in scramble(model)[0].parameters():
            parameter.mul_(1 + 0.05 * torch.randn_like(parameter))
    other = quantised(name, model, tmp_path / "other")
    a, b = (dequantised_by_transformers(name, one, tmp_path / f"plain {one.name}") for one in (reference, other))
    alignment = align(reference, other)
    assert align(a, b).symmetries == alignment.symmetries
    for order, folder in ((alignment, tmp_path / "aligned"), ("none", tmp_path / "plain average")):
        merge(reference, other, order, 0.25, output=folder)
        merged, expected = open_model(folder).tensors, merge(a, b, order, 0.25, allow_other_weights=True).state_dict()
        assert all(torch.equal(merged[key], expected[key].to(merged[key].dtype)) for key in expected)
    for key, tensor in a.state_dict().items():
        exact = torch.lerp(tensor.float(), b.state_dict()[key].float(), 0.25)
        assert torch.equal(merged[key], exact.to(merged[key].dtype)), key


@pytest.mark.parametrize("name", ["fp8 blocks", "mxfp4"])
def test_a_model_and_its_quantised_self_are_compared(name, tmp_path):
    model = built(name)
    model.save_pretrained(tmp_path / "a")
    quantised(name, model, tmp_path / "b")
    assert "B is A quantised: " in compare(tmp_path / "a", tmp_path / "b").sentences[0]
    assert "A is B quantised: " in compare(tmp_path / "b", tmp_path / "a").sentences[0]
    with torch.no_grad():
        model.model.norm.weight.mul_(1.01)
    assert "quantised" not in str(compare(model, tmp_path / "b").sentences)


def outputs(name: str, model: PreTrainedModel) -> Tensor:
    """In float32, for in 16 bits an order of experts moves sums."""
    return families.outputs(model.float(), FORMATS[name].family)


def difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def test_the_command_line(tmp_path, capsys):
    name, (a, b, alignment, out, merged) = "fp8 blocks", (tmp_path / part for part in "abcde")
    model = built(name)
    quantised(name, model, a)
    quantised(name, scramble(model)[0], b)
    for command in (
        ["align", a, b, "-o", alignment],
        ["apply", alignment, b, "-o", out, "--dtype", "float32"],
        ["merge", a, b, "-o", merged],
        ["verify", b, out],
    ):
        dry = [[*command, "--dry-run"]] if command[0] != "verify" else []
        for arguments in [*dry, command]:
            assert cli.main([*map(str, arguments)]) == 0, capsys.readouterr().err
    assert "equal up to rounding" in capsys.readouterr().out
    assert {tensor.dtype for tensor in load_file(out / SINGLE).values()} == {torch.float32}
