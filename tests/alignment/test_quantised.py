"""Quantised checkpoints: their experts can be reordered, and nothing else."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import FineGrainedFP8Config, Mxfp4Config

from hf_moe_lmc import Alignment, align, apply, cli, merge
from hf_moe_lmc.alignment import open_model
from hf_moe_lmc.errors import BadInputError, UnsupportedArchitectureError
from hf_moe_lmc.matching import LayerAlignment
from tests import families
from tests.checkpoints.faulty import SINGLE, edit_config, edit_json, edit_tensors

Tensors = dict[str, Tensor]
BLOCK = 8
GROUP = 8  # of GPTQ


def fp8(weight: Tensor) -> Tensors:
    """Blocks of 8 x 8 with a scale each, as DeepSeek publishes them (there, of 128 x 128)."""
    rows, columns = (size // BLOCK for size in weight.shape)
    blocks = weight.reshape(rows, BLOCK, columns, BLOCK)
    scales = blocks.abs().amax(dim=(1, 3)) / 448
    codes = (blocks / scales[:, None, :, None]).reshape(weight.shape).to(torch.float8_e4m3fn)
    return {"weight": codes, "weight_scale_inv": scales}


def gptq(weight: Tensor) -> Tensors:
    """4 bits with a scale for 8 inputs: eight inputs in one int32 of `qweight`, eight outputs in one of `qzeros`."""
    groups = weight.T.unflatten(0, (-1, GROUP))  # [G, 8, out]
    scales = groups.abs().amax(dim=1) / 7
    codes = (groups / scales[:, None] + 8).round().clamp(0, 15).to(torch.int32)
    shifts = 4 * torch.arange(8, dtype=torch.int32)
    zeros = torch.full((len(scales), weight.shape[0] // 8, 8), 7, dtype=torch.int32)
    return {
        "qweight": (codes << shifts[:, None]).sum(dim=1, dtype=torch.int32),
        "qzeros": (zeros << shifts).sum(dim=2, dtype=torch.int32),
        "scales": scales.half(),
        "g_idx": torch.arange(weight.shape[1], dtype=torch.int32) // GROUP,
    }


def gptq_weight(stored: Tensors) -> Tensor:
    shifts = 4 * torch.arange(8, dtype=torch.int32)
    codes = (stored["qweight"][:, None] >> shifts[:, None]).bitwise_and(15).flatten(0, 1)
    zeros = (stored["qzeros"][:, :, None] >> shifts).bitwise_and(15).flatten(1, 2) + 1
    groups = stored["g_idx"].long()
    return ((codes - zeros[groups]) * stored["scales"][groups].float()).T.contiguous()


def nf4(weight: Tensor) -> Tensors:
    """As bitsandbytes: the nearest of 16 values times the largest of 64 neighbours, two to a byte."""
    blocks = weight.reshape(-1, 64)
    absmax, values = blocks.abs().amax(dim=1), torch.linspace(-1, 1, 16)
    codes = (blocks / absmax[:, None])[..., None].sub(values).abs().argmin(dim=-1).to(torch.uint8).reshape(-1, 2)
    return {
        "weight": (codes[:, :1] << 4) + codes[:, 1:],
        "weight.absmax": absmax,
        "weight.quant_map": values,
        "weight.quant_state.bitsandbytes__nf4": torch.tensor(list(json.dumps(list(weight.shape)).encode())).byte(),
    }


def nf4_weight(stored: Tensors) -> Tensor:
    codes = torch.cat([stored["weight"] >> 4, stored["weight"] & 15], dim=1).long().reshape(-1, 64)
    shape = json.loads(bytes(stored["weight.quant_state.bitsandbytes__nf4"].tolist()))
    return (stored["weight.quant_map"][codes] * stored["weight.absmax"][:, None]).reshape(shape)


def mxfp4(weight: Tensor) -> Tensors:
    """Random codes of 32 inputs of an output, and the exponent that they share."""
    experts, inward, outward = weight.shape
    generator = torch.Generator().manual_seed(inward + outward)
    return {
        "_blocks": torch.randint(256, (experts, outward, inward // 32, 16), generator=generator, dtype=torch.uint8),
        "_scales": torch.randint(124, 127, (experts, outward, inward // 32), generator=generator, dtype=torch.uint8),
    }


@dataclass(frozen=True)
class Format:
    """A family, what of it is quantised, how, and how Transformers (or the inverse of how) makes it plain again."""

    family: str
    method: str
    quantise: Callable[[Tensor], Tensors]
    loaded: object = None
    weight: Callable[[Tensors], Tensor] | None = None


FORMATS = {
    "fp8": Format("deepseek_v3", "fp8", fp8, FineGrainedFP8Config(dequantize=True)),
    "fp8, keys renamed": Format("mixtral", "fp8", fp8, FineGrainedFP8Config(dequantize=True)),
    "mxfp4": Format("gpt_oss", "mxfp4", mxfp4, Mxfp4Config(dequantize=True)),
    "gptq": Format("qwen2_moe", "gptq", gptq, weight=gptq_weight),
    "bitsandbytes": Format("mixtral", "bitsandbytes", nf4, weight=nf4_weight),
}

# Of each expert, or of all.
EXPERT = re.compile(r"(.*\.experts\.(?:\d+\.\w+\.)?)(weight|gate_up_proj|down_proj)")


def quantised(name: str, folder: Path) -> Path:
    """A checkpoint whose experts are stored in the format `name`."""
    form = FORMATS[name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(families.SIZES, "intermediate_size", 64)  # blocks of mxfp4 are of 32
        families.build(form.family).save_pretrained(folder)
    tensors = {}
    for key, tensor in load_file(folder / SINGLE).items():
        found = EXPERT.fullmatch(key)
        parts = form.quantise(tensor) if found else {"": tensor}
        stem = key if not found or form.method == "mxfp4" else found[1]
        tensors |= {stem + part: stored.contiguous() for part, stored in parts.items()}
    save_file(tensors, folder / SINGLE, {"format": "pt"})
    edit_config(quantization_config={"quant_method": form.method, "weight_block_size": [BLOCK, BLOCK]})(folder)
    return folder


def outputs(name: str, folder: Path) -> Tensor:
    """The logits of a quantised checkpoint, dequantised."""
    form = FORMATS[name]
    model_class = families.FAMILIES[form.family].model_class()
    if form.weight is None:
        model = model_class.from_pretrained(folder, dtype=torch.float32, quantization_config=form.loaded)
    else:
        plain = shutil.copytree(folder, folder.with_name(f"{folder.name} plain"))
        edit_json(plain / "config.json", lambda config: config.pop("quantization_config"))
        tensors, experts = {}, {}
        for key, tensor in load_file(plain / SINGLE).items():
            if found := re.fullmatch(r"(.*\.experts\.\d+\.\w+\.)(.*)", key):
                experts.setdefault(found[1], {})[found[2]] = tensor
            else:
                tensors[key] = tensor
        tensors |= {f"{stem}weight": form.weight(stored) for stem, stored in experts.items()}
        save_file(tensors, plain / SINGLE, {"format": "pt"})
        model = model_class.from_pretrained(plain)
    return families.outputs(model.eval(), form.family)


def scramble(folder: Path, output: Path) -> Alignment:
    """Reorder all experts of a quantised checkpoint by random derangements."""
    generator, layers = torch.Generator().manual_seed(1), {}
    for spec in open_model(folder, quantised=True).layers:
        order = spec.group.random_derangement(spec.num_experts, 0, generator=generator)
        layers[spec.name] = LayerAlignment(order, 0.0, 0.0)
    alignment = Alignment(layers)
    apply(alignment, folder, output)
    return alignment


def difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("name", FORMATS)
def test_experts_are_reordered(name, tmp_path):
    """The function stays, the planted order is found, and applied it gives the original back byte for byte."""
    reference, other, back = quantised(name, tmp_path / "reference"), tmp_path / "other", tmp_path / "back"
    planted = scramble(reference, other)
    before, after = load_file(reference / SINGLE), load_file(other / SINGLE)
    expected = outputs(name, reference)
    assert difference(outputs(name, other), expected) < 1e-5
    for control in (r".*\.(gate|router)\.weight", r".*(scale_inv|_scales|\.scales|absmax)"):
        left = {key: before[key] for key in after if re.fullmatch(control, key)}
        assert left
        broken = shutil.copytree(other, tmp_path / "broken", dirs_exist_ok=True)
        save_file(after | left, broken / SINGLE, {"format": "pt"})
        assert difference(outputs(name, broken), expected) > 1e-3
        shutil.rmtree(broken)
        shutil.rmtree(tmp_path / "broken plain", ignore_errors=True)
    alignment = align(reference, other)
    assert alignment.symmetries == planted.inverse().symmetries
    alignment.save_pretrained(tmp_path / "alignment")
    apply(Alignment.from_pretrained(tmp_path / "alignment"), other, back)
    assert {key: bits(tensor) for key, tensor in load_file(back / SINGLE).items()} == {
        key: bits(tensor) for key, tensor in before.items()
    }


def bits(tensor: Tensor) -> tuple[torch.dtype, bytes]:
    return tensor.dtype, tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Read it only."""
    return quantised("fp8", tmp_path_factory.mktemp("quantised") / "fp8")


def test_what_computes_with_weights_is_refused(folder, tmp_path):
    for refused in (
        lambda: merge(folder, folder, output=tmp_path / "out"),
        lambda: merge(folder, folder),
        lambda: open_model(folder),
    ):
        with pytest.raises(BadInputError, match=r"quantised \(fp8\), .* load the model with dequantize=True"):
            refused()
    for options in ({"layout": "original"}, {"layout": "fused"}, {"dtype": torch.bfloat16}):
        with pytest.raises(BadInputError, match="is quantised; only its own layout and dtypes can be written"):
            apply(align(folder, folder), folder, tmp_path / "out", **options)
    with pytest.raises(UnsupportedArchitectureError, match='the "gram" order needs units, which are quantised'):
        align(folder, folder, config="gram")


LAYER = "model.layers.1.mlp"
FAULTS = {
    "router": (f"{LAYER}.gate.weight", lambda x: x.to(torch.float8_e4m3fn), "gate.weight is torch.float8_e4m3fn"),
    "no router": (f"{LAYER}.gate.weight", None, "router of model.layers.1.mlp: .*gate.weight is missing"),
    "lacks one": (f"{LAYER}.experts.3.up_proj.weight", None, "up_proj.weight is not alike in all of them"),
    "differs": (f"{LAYER}.experts.3.up_proj.weight", lambda x: x[:, :8].contiguous(), "up_proj.weight is not alike"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_not_stored_expert_by_expert(folder, tmp_path, fault):
    key, change, message = FAULTS[fault]
    damaged = shutil.copytree(folder, tmp_path / "damaged")

    def edit(tensors: Tensors) -> None:
        tensor = tensors.pop(key)
        tensors |= {key: change(tensor)} if change else {}

    edit_tensors(key, edit)(damaged)
    with pytest.raises(UnsupportedArchitectureError, match=f"{message}.*dequantised first"):
        align(folder, damaged)


def test_a_stacked_tensor_that_is_not_known(tmp_path):
    damaged, key = quantised("mxfp4", tmp_path / "damaged"), "model.layers.1.mlp.experts.gate_up_proj_blocks"
    edit_tensors(key, lambda tensors: tensors.update({f"{key}_order": tensors[key][:, 0].clone()}))(damaged)
    with pytest.raises(UnsupportedArchitectureError, match=f"tensor {key}_order.*dequantised first"):
        align(damaged, damaged)


def test_the_command_line(folder, tmp_path, capsys):
    other, alignment, back = (str(tmp_path / name) for name in ("other", "alignment", "back"))
    scramble(folder, Path(other))
    for command in (["align", str(folder), other, "-o", alignment], ["apply", alignment, other, "-o", back]):
        assert cli.main([*command, "--dry-run"]) == 0
        assert cli.main(command) == 0, capsys.readouterr().err
    assert "2 of 2 layers permuted" in capsys.readouterr().out
    assert cli.main(["apply", alignment, other, "-o", f"{back} 2", "--dtype", "float32"]) == 3
    assert "is quantised; only its own layout and dtypes" in capsys.readouterr().err
