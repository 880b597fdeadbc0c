"""fp8 checkpoints of compressed-tensors: read by Transformers through that package, and here; bit for bit?

CT/bin/python -m benchmarks.compressed_tensors

CT is an environment with both (`python -m venv CT && CT/bin/pip install . compressed-tensors`). Exits with 1 if one
tensor differs. Checkpoints are tiny, by channel and by tensor, those of the tests; matrices, by block too, are coded
by the package's own function.
"""

import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch
from compressed_tensors.quantization import QuantizationArgs, dequantize, quantize
from transformers import CompressedTensorsConfig

from hf_moe_lmc.alignment import open_model
from hf_moe_lmc.checkpoints.dequantised import float8_weight
from tests import families
from tests.checkpoints.quantising import FORMATS, built, float8, quantised

ROWS, COLUMNS = 256, 384
BLOCKS = {"tensor": (ROWS, COLUMNS), "channel": (1, COLUMNS), "block": (128, 128)}


def matrix(strategy: str, dtype: torch.dtype) -> int:
    """How many entries of a matrix that the package has quantised are read otherwise here."""
    weight, block = torch.randn(ROWS, COLUMNS) * torch.logspace(-3, 1, ROWS)[:, None], BLOCKS[strategy]
    structure = {"block_structure": list(block)} if strategy == "block" else {}
    settings = QuantizationArgs(num_bits=8, type="float", strategy=strategy, symmetric=True, **structure)
    scales = float8(weight, *block)[1].to(dtype)
    scales = scales.reshape(1) if strategy == "tensor" else scales
    codes = quantize(weight, scales, None, settings, dtype=torch.float8_e4m3fn)
    expected = dequantize(codes, scales, None, settings, dtype=torch.bfloat16).bfloat16()
    return int((float8_weight(codes, scales, block) != expected).sum())


def checkpoint(name: str, folder: Path) -> list[str]:
    """Names of the tensors that Transformers reads otherwise."""
    quantised(name, built(name), folder)
    model_class = families.FAMILIES[FORMATS[name].family].model_class()
    how = {"quantization_config": CompressedTensorsConfig(dequantize=True), "dtype": torch.bfloat16}
    expected = model_class.from_pretrained(folder, **how).state_dict()
    return [key for key, tensor in open_model(folder).tensors.items() if not torch.equal(tensor, expected[key])]


def main() -> int:
    """Compare and print."""
    torch.manual_seed(0)
    found = {f"{s}, scales {d}": matrix(s, d) for s in BLOCKS for d in (torch.bfloat16, torch.float32)}
    with tempfile.TemporaryDirectory() as place:
        found |= {name: len(checkpoint(name, Path(place) / name)) for name in ("fp8 channels", "fp8 tensors")}
    packages = ", ".join(f"{package} {version(package)}" for package in ("compressed-tensors", "transformers", "torch"))
    sys.stdout.write(f"{packages}; entries or tensors that differ: {found}\n")
    return any(found.values())


if __name__ == "__main__":
    sys.exit(main())
