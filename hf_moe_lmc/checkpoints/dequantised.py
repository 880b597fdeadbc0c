"""Quantised weights read as the 16-bit weights that they mean, under the keys of these.

Read are codes of float8 with a scale for each block, for each row or for all (`fp8`, `compressed-tensors`), and mxfp4.
Everything else that is packed is refused by name.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from hf_moe_lmc.errors import BadInputError

from .stored_tensor import Stored, StoredTensor

METHODS = ("fp8", "compressed-tensors", "mxfp4")
REMEDY = "give the 16-bit checkpoint that was quantised (base_model on the model's card)"

FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
# Of activations and of the cache, which 16-bit weights do without.
OTHER_SCALES = re.compile(r".*([._](input|activation|output|[kqv])_scale|\.qscale_act)")


@dataclass(frozen=True)
class QuantisedTensor(Stored):
    """A bfloat16 weight that is stored as codes and scales; every look computes it anew.

    Its key is that in a checkpoint that is not quantised, its place that of the codes.

    Args:
        codes, scales: where they lie.
        dequantise: codes and scales of one expert, or of one matrix -> its weight.
    """

    codes: StoredTensor
    scales: StoredTensor
    dequantise: Callable[[Tensor, Tensor], Tensor] = field(repr=False)

    def read_into(self, tensor: Tensor) -> None:
        """Read the weight into a tensor of its shape, expert by expert: float32 takes four times the room of codes."""
        codes, scales = self.codes.read(), self.scales.read()
        if tensor.ndim == 2:
            tensor.copy_(self.dequantise(codes, scales))
            return
        for target, own_codes, own_scales in zip(tensor, codes, scales, strict=True):
            target.copy_(self.dequantise(own_codes, own_scales))


def dequantised(stored: Mapping[str, StoredTensor], settings: Mapping[str, Any], config: Path) -> dict[str, Stored]:
    """The tensors of a checkpoint with each pair of codes and scales as one bfloat16 weight; others as they are.

    Args:
        stored: checkpoint key -> where the tensor lies.
        settings: what its configuration says of their quantisation.
        config: the file that says it.

    Raises:
        BadInputError: scales do not fit their codes, or a tensor is packed in a way that is not read here.
    """
    block, tensors, parts = _block(settings, config), dict[str, Stored](), set[str]()
    for key, codes in stored.items() if settings["quant_method"] in METHODS else ():
        name = key.removesuffix("_blocks")
        if name != key and (scales := stored.get(f"{name}_scales")):
            tensors[name] = _mxfp4(name, codes, scales)
        elif codes.dtype in FLOAT8 and (scales := next(filter(None, map(stored.get, _scale_keys(key))), None)):
            tensors[key] = _float8(key, codes, scales, block)
        else:
            continue
        parts |= {key, scales.key}
    plain = {key: tensor for key, tensor in stored.items() if key not in parts and not OTHER_SCALES.fullmatch(key)}
    for key, tensor in plain.items():
        if tensor.dtype.itemsize < 2 or tensor.dtype == torch.int32:
            method = settings["quant_method"]
            fault = f"weights quantised in a way that is not read here ({method})"
            if method in METHODS and (tensor.dtype in FLOAT8 or key.endswith("_blocks")):
                fault = "and its scales are not there (download it again)"
            raise BadInputError(f"{tensor.file}: {key} holds {tensor.dtype}, {fault}; {REMEDY}")
    return plain | tensors


def float8_weight(
    codes: Float[Tensor, "rows columns"], scales: Float[Tensor, "..."], block: tuple[int, int]
) -> Float[Tensor, "rows columns"]:
    """`codes[i, j] * scales[i // m, j // n]` in float32, rounded to bfloat16; blocks at the edge may be cut.

    Args:
        codes: of float8.
        scales: one for each block, or one; bytes are exponents, of 2 ** (byte - 127).
        block: `(m, n)`.
    """
    exponents = scales.dtype == torch.uint8
    (rows, columns), factors = codes.shape, (scales.view(torch.float8_e8m0fnu) if exponents else scales).float()
    if factors.numel() > 1:
        of_rows = factors.repeat_interleave(block[0], dim=0)[:rows]
        factors = of_rows.repeat_interleave(block[1], dim=1)[:, :columns]
    return (codes.float() * factors).bfloat16()


def mxfp4_weight(
    blocks: UInt8[Tensor, "outputs groups 16"], scales: UInt8[Tensor, "outputs groups"]
) -> Shaped[Tensor, "inputs outputs"]:
    """32 codes of 4 bits to a block times `2 ** (scale - 127)`, which bfloat16 holds exactly; by Transformers."""
    return convert_moe_packed_tensors(blocks[None], scales[None])[0]


def _scale_keys(key: str) -> tuple[str, ...]:
    """Names of the scales of float8 codes; the last two are those of DeepSeek-V4 and Mistral Large 4."""
    module = key.removesuffix("weight")
    return f"{key}_scale_inv", f"{key}_scale", f"{module}scale", f"{module}qscale_weight"


def _mxfp4(name: str, blocks: StoredTensor, scales: StoredTensor) -> QuantisedTensor:
    are_bytes = blocks.dtype == scales.dtype == torch.uint8
    if not are_bytes or len(blocks.shape) != 4 or blocks.shape[3] != 16 or scales.shape != blocks.shape[:3]:
        raise _misfit(blocks, scales)
    experts, outputs, groups, _ = blocks.shape
    shape = (experts, groups * 32, outputs)
    return QuantisedTensor(name, blocks.file, torch.bfloat16, shape, blocks.offset, blocks, scales, mxfp4_weight)


def _float8(key: str, codes: StoredTensor, scales: StoredTensor, block: tuple[int, int] | None) -> QuantisedTensor:
    if len(codes.shape) < 2 or not (scales.dtype.is_floating_point or scales.dtype == torch.uint8):
        raise _misfit(codes, scales)
    *experts, rows, columns = codes.shape
    grid = scales.shape[len(experts) :] if math.prod(scales.shape) > math.prod(experts) else (1, 1)
    if len(experts) > 1 or scales.shape[: len(experts)] != tuple(experts) or len(grid) != 2:
        raise _misfit(codes, scales)
    # Without a size in the configuration, blocks are even: all of a matrix, one of its rows, gate_proj and up_proj.
    m, n = block or (max(rows // grid[0], 1), max(columns // grid[1], 1))
    if grid != (-(-rows // m), -(-columns // n)):
        raise _misfit(codes, scales)
    rule = partial(float8_weight, block=(m, n))
    return QuantisedTensor(key, codes.file, torch.bfloat16, codes.shape, codes.offset, codes, scales, rule)


def _misfit(codes: StoredTensor, scales: StoredTensor) -> BadInputError:
    return BadInputError(
        f"{scales.file}: {scales.key} has shape {scales.shape} ({scales.dtype}), which does not fit {codes.key} of "
        f"shape {codes.shape} ({codes.dtype}) and the blocks of quantization_config; download it again, or give its "
        "own config.json"
    )


def _block(settings: Mapping[str, Any], config: Path) -> tuple[int, int] | None:
    """Rows and columns of a block, as Transformers and compressed-tensors write them: `[128, 128]` or `"128x128"`."""
    try:
        groups = (settings.get("config_groups") or {}).values()
        sizes = [(group.get("weights") or {}).get("block_structure") for group in groups]
        size = next((own for own in (settings.get("weight_block_size"), *sizes) if own), None)
        if size is None:
            return None
        rows, columns = map(int, size.split("x") if isinstance(size, str) else size)
    except (AttributeError, TypeError, ValueError):
        rows = columns = 0
    if min(rows, columns) < 1:
        raise BadInputError(
            f"{config}: quantization_config does not say how large blocks are; give its own config.json"
        )
    return rows, columns
