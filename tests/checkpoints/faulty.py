"""Checkpoints that are broken on purpose, and what the command line makes of them."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hf_moe_lmc import cli

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

Fault = Callable[[Path], object]
"""Breaks the checkpoint in a folder."""


@dataclass(frozen=True)
class Failed:
    """How a command ended: its exit code, and the one line that it said."""

    code: int
    line: str


def failed(capsys, output: Path, *arguments: object) -> Failed:
    """Run a command that must fail, and leave nothing where `output` and its staging folder would be."""
    before = sorted(output.parent.iterdir())
    code = cli.main([*map(str, arguments), "-o", str(output)])
    shown = capsys.readouterr().err
    lines = [line for line in shown.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, shown
    assert shown.endswith(f"{lines[0]}\n")
    assert sorted(output.parent.iterdir()) == before
    return Failed(code, lines[0])


def worked(capsys, output: Path, *arguments: object) -> str:
    """Run a command that must not fail; what it said."""
    code = cli.main([*map(str, arguments), "-o", str(output)])
    said = capsys.readouterr()
    assert code == 0, said.err
    assert output.is_dir()
    return said.out


def edit_json(file: Path, change: Callable[[dict], object]) -> None:
    """Change the JSON object in `file` in place."""
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))


def edit_config(**fields: object) -> Fault:
    """Set fields of config.json."""
    return lambda folder: edit_json(folder / "config.json", lambda values: values.update(fields))


def edit_index(change: Callable[[dict[str, str]], object]) -> Fault:
    """Change the weight map of the index in place."""
    return lambda folder: edit_json(folder / INDEX, lambda values: change(values["weight_map"]))


def shards(folder: Path) -> list[Path]:
    """The safetensors files, in order."""
    return sorted(folder.glob("*.safetensors"))


def shard_of(folder: Path, key: str) -> Path:
    """The file that holds a tensor."""
    index = folder / INDEX
    return folder / (json.loads(index.read_text())["weight_map"][key] if index.exists() else SINGLE)


def edit_tensors(key: str, change: Callable[[dict[str, Tensor]], object]) -> Fault:
    """Change the tensors of the file that holds `key` in place; the index follows."""

    def fault(folder: Path) -> None:
        file = shard_of(folder, key)
        tensors = load_file(file)
        change(tensors)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, {"format": "pt"})
        if (folder / INDEX).exists():
            edit_index(
                lambda weight_map: (
                    [weight_map.pop(name) for name in [*weight_map] if weight_map[name] == file.name],
                    weight_map.update(dict.fromkeys(tensors, file.name)),
                )
            )(folder)

    return fault


def edit_tensor(key: str, change: Callable[[Tensor], Tensor]) -> Fault:
    """Put `change(tensor)` in the place of one tensor."""
    return edit_tensors(key, lambda tensors: tensors.update({key: change(tensors[key])}))


def with_value(value: float, dtype: torch.dtype | None = None) -> Callable[[Tensor], Tensor]:
    """Change the last element of a tensor."""

    def change(tensor: Tensor) -> Tensor:
        tensor = tensor.to(dtype or tensor.dtype)
        tensor.view(-1)[-1] = value
        return tensor

    return change


def edit_header(change: Callable[[dict, list[str]], object]) -> Callable[[Path], None]:
    """Change the header of a safetensors file in place; `change` gets it and the keys in the order of their bytes."""

    def fault(file: Path) -> None:
        header, data = split(file)
        values = json.loads(header)
        keys = sorted(values.keys() - {"__metadata__"}, key=lambda key: values[key]["data_offsets"])
        change(values, keys)
        join(file, json.dumps(values).encode(), data)

    return fault


def split(file: Path) -> tuple[bytes, bytes]:
    """The header and the data of a safetensors file."""
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return content[8 : 8 + length], content[8 + length :]


def join(file: Path, header: bytes, data: bytes, length: int | None = None) -> None:
    """Write a safetensors file; `length` is what its first bytes say of the header."""
    file.write_bytes((len(header) if length is None else length).to_bytes(8, "little") + header + data)
