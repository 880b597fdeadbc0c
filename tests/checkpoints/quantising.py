"""Checkpoints in the quantised formats that are read, by their published rules, and the rules undone naively."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import FineGrainedFP8Config, Mxfp4Config, PreTrainedModel

from tests import families
from tests.checkpoints.faulty import SINGLE, edit_config, edit_json

Tensors = dict[str, Tensor]
BLOCK = 8
MAGNITUDES = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
FP4 = torch.cat([MAGNITUDES, -MAGNITUDES])


def float8(weight: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Codes, and a scale for each block of these sizes."""
    blocks = weight.float().unflatten(-1, (-1, columns)).unflatten(-3, (-1, rows))
    scales = blocks.abs().amax(dim=(-3, -1)) / 448
    codes = (blocks / scales[..., None, :, None]).clamp(-448, 448).to(torch.float8_e4m3fn)
    return codes.reshape(weight.shape), scales


def by_block(weight: Tensor) -> Tensors:
    codes, scales = float8(weight, BLOCK, BLOCK)
    return {"": codes, "_scale_inv": scales}


def by_channel(weight: Tensor) -> Tensors:
    codes, scales = float8(weight, 1, weight.shape[1])
    return {"": codes, "_scale": scales.bfloat16()}


def by_tensor(weight: Tensor) -> Tensors:
    codes, scales = float8(weight, *weight.shape)
    return {"": codes, "_scale": scales[0]}


def mxfp4(weight: Tensor) -> Tensors:
    """32 inputs of an output in 16 bytes, and their common exponent; the nearest of the 16 values (OCP MX 1.0)."""
    groups = weight.float().mT.unflatten(-1, (-1, 32))
    exponents = groups.abs().amax(dim=-1).log2().floor() - 2
    codes = (groups / 2 ** exponents[..., None])[..., None].sub(FP4).abs().argmin(dim=-1).to(torch.uint8)
    return {"_blocks": codes[..., ::2] | codes[..., 1::2] << 4, "_scales": (exponents + 127).to(torch.uint8)}


def undone(parts: Tensors) -> Tensor:
    """The weight in bfloat16, entry by entry."""
    if "_blocks" in parts:
        codes = torch.stack([parts["_blocks"] & 15, parts["_blocks"] >> 4], dim=-1).flatten(-2).long()
        return (FP4[codes] * 2 ** (parts["_scales"].double() - 127)[..., None]).flatten(-2).mT.bfloat16()
    codes, scales = parts[""].float(), next(scales.float() for part, scales in parts.items() if part)
    if scales.ndim < 2:
        return (codes * scales).bfloat16()
    m, n = (codes.shape[axis] // scales.shape[axis] for axis in (-2, -1))
    return (codes * scales.repeat_interleave(m, -2).repeat_interleave(n, -1)).bfloat16()


def compressed(strategy: str) -> dict[str, object]:
    """What llm-compressor writes into config.json, in short."""
    weights = {"num_bits": 8, "type": "float", "strategy": strategy, "symmetric": True}
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }


STACKED = re.compile(r".*experts\.(gate_up|down)_proj")
FP8 = {"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK], "activation_scheme": "dynamic"}
LINEAR = re.compile(r".*(self_attn|mlp|experts?)\..*(proj|w[123]|wi|wo)\.weight")


@dataclass(frozen=True)
class Format:
    """A family, what of it is quantised, how, and how Transformers reads it; None where it needs further packages."""

    family: str
    quantise: Callable[[Tensor], Tensors]
    settings: dict[str, object]
    loaded: object = None
    keys: re.Pattern[str] = LINEAR
    save: dict[str, object] = field(default_factory=dict)


FORMATS = {
    "fp8 blocks": Format("deepseek_v3.ng1", by_block, FP8, FineGrainedFP8Config(dequantize=True)),
    "fp8 blocks, keys renamed": Format("mixtral", by_block, FP8, FineGrainedFP8Config(dequantize=True)),
    "fp8 blocks, experts stacked": Format(
        "qwen2_moe",
        by_block,
        FP8,
        keys=STACKED,
        save={"save_original_format": False},
    ),
    "fp8 channels": Format("qwen3_moe", by_channel, compressed("channel")),
    "fp8 tensors": Format("qwen2_moe", by_tensor, compressed("tensor")),
    "mxfp4": Format(
        "gpt_oss",
        mxfp4,
        {"quant_method": "mxfp4"},
        Mxfp4Config(dequantize=True),
        STACKED,
    ),
}


def built(name: str, seed: int = 0) -> PreTrainedModel:
    """A model of the family of a format, in bfloat16."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(families.SIZES, "intermediate_size", 64)  # blocks of mxfp4 are of 32
        return families.build(FORMATS[name].family, experts=4, seed=seed, dtype=torch.bfloat16)


def quantised(name: str, model: PreTrainedModel, folder: Path) -> Path:
    """The checkpoint of a model in the format `name`, the scale of some activations with it."""
    form, tensors = FORMATS[name], {}
    model.save_pretrained(folder, **form.save)
    for key, tensor in load_file(folder / SINGLE).items():
        parts = form.quantise(tensor) if form.keys.fullmatch(key) else {"": tensor}
        tensors |= {key + part: own.contiguous() for part, own in parts.items()}
    assert any(key.endswith(("_scale", "_scales", "_scale_inv")) for key in tensors)
    if "compressed" in str(form.settings["quant_method"]):
        tensors["model.layers.0.self_attn.q_proj.input_scale"] = torch.ones(1)
    save_file(tensors, folder / SINGLE, {"format": "pt"})
    edit_config(quantization_config=form.settings)(folder)
    return folder


def plain(folder: Path, output: Path) -> Path:
    """The checkpoint with its rule undone naively."""
    output.mkdir()
    stored, parts = load_file(folder / SINGLE), {}
    for key, tensor in stored.items():
        name, part = re.fullmatch(r"(.*?)(_blocks|_scales|_scale_inv|(?<=weight)_scale|)", key).groups()
        if not key.endswith("input_scale"):
            parts.setdefault(name, {})[part] = tensor
    save_file(
        {name: undone(own).contiguous() if len(own) > 1 else own[""] for name, own in parts.items()},
        output / SINGLE,
        {"format": "pt"},
    )
    (output / "config.json").write_bytes((folder / "config.json").read_bytes())
    edit_json(output / "config.json", lambda config: config.pop("quantization_config"))
    return output


def dequantised_by_transformers(name: str, folder: Path, output: Path) -> PreTrainedModel:
    """The model in bfloat16 as Transformers dequantises it, or after the rule was undone naively."""
    form = FORMATS[name]
    model_class, options = families.FAMILIES[form.family].model_class(), {"dtype": torch.bfloat16}
    if form.loaded is None:
        return model_class.from_pretrained(plain(folder, output), **options)
    return model_class.from_pretrained(folder, quantization_config=form.loaded, **options)
