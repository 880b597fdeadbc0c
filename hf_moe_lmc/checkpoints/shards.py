"""The tensors of a folder: one safetensors file, or shards with an index."""

import os
from pathlib import Path

from hf_moe_lmc.errors import BadInputError

from .small_files import read_json
from .stored_tensor import StoredTensor, read_header

SINGLE_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
LONGEST_NAME = 255  # bytes, of most file systems
ADAPTER_NAME = "adapter_config.json"


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of the checkpoint in `folder`, by its key, in the order of its files.

    Raises:
        BadInputError: there is no safetensors checkpoint, a file is missing or damaged, or the index and the shards
            disagree.
    """
    index, single = folder / INDEX_NAME, folder / SINGLE_NAME
    if (folder / ADAPTER_NAME).exists() and (os.path.lexists(index) or os.path.lexists(single)):
        raise BadInputError(
            f"{folder} holds {ADAPTER_NAME} beside full weights, and Transformers would load both: merge the adapter "
            "into them first (merge_and_unload), or move it away"
        )
    if os.path.lexists(index):
        return _sharded(index)
    if os.path.lexists(single):
        return read_header(single)
    raise BadInputError(f"{folder} holds no {SINGLE_NAME} and no {INDEX_NAME}; {advice(folder)}")


def shard_names(folder: Path) -> list[str]:
    """The names of the safetensors files that the index in `folder` lists, or `SINGLE_NAME` where there is none.

    Raises:
        BadInputError: the index is damaged, or names a file that is not beside it.
    """
    index = folder / INDEX_NAME
    return list(dict.fromkeys(_weight_map(index).values())) if os.path.lexists(index) else [SINGLE_NAME]


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BadInputError(f"{index}: weight_map is missing or empty; download it again")
    for name in weight_map.values():
        # Links are fine (a Hub cache is made of them); only the name must stay inside the folder.
        plain = isinstance(name, str) and name == Path(name).name and "\\" not in name and name.isprintable()
        if not plain or not name.endswith(".safetensors") or len(os.fsencode(name)) > LONGEST_NAME:
            raise BadInputError(f"{index}: {name!r} is not the name of a .safetensors file beside it")
    return weight_map


def _sharded(index: Path) -> dict[str, StoredTensor]:
    weight_map = _weight_map(index)
    shards = [index.parent / name for name in dict.fromkeys(weight_map.values())]
    for shard in shards:
        if not shard.exists():
            raise BadInputError(f"{shard}, which {index.name} names, is missing; download it again")
    single = index.parent / SINGLE_NAME
    if single.exists() and single not in shards:
        raise BadInputError(f"{index.parent} holds both {SINGLE_NAME} and the shards of {INDEX_NAME}; remove one")
    tensors: dict[str, StoredTensor] = {}
    for shard in shards:
        for key, tensor in read_header(shard).items():
            if weight_map.get(key) != shard.name:
                raise BadInputError(f"{shard}: {key} is not listed there by {index.name}; download both again")
            tensors[key] = tensor
    if absent := weight_map.keys() - tensors.keys():
        key = min(absent)
        raise BadInputError(f"{index.parent / weight_map[key]}: {key}, listed there by {index.name}, is missing")
    return tensors


# Files or folders, in a checkpoint's place or below it -> what this is, and what to do.
OTHER_FORMATS = {
    ("alignment_config.json",): "it is an alignment, perhaps swapped with the model: give the model",
    (ADAPTER_NAME,): "it is a PEFT adapter: merge it into its base model first (merge_and_unload)",
    ("*.distcp", "*/*.distcp"): "it is a distributed checkpoint: bring it together first (accelerate merge-weights)",
    (
        "zero_to_fp32.py",
        "global_step*",
    ): "it is a DeepSpeed checkpoint: bring it together first (zero_to_fp32.py --safe_serialization)",
    ("*.gguf",): "it is GGUF: convert it first (from_pretrained(..., gguf_file=...), then save_pretrained)",
    ("*.safetensors",): "give the folder of a model; a file that is the whole model must be called model.safetensors",
    ("*.bin", "*.pt*"): "pickles are never read: convert it first (model.save_pretrained)",
}


def advice(path: Path) -> str:
    """A guess at what a folder or a file, which is no checkpoint, is instead; and what to do."""
    if steps := sorted(path.glob("checkpoint-*/config.json"), key=lambda file: file.stat().st_mtime_ns):
        return f"it is the output of a Trainer: give one of the checkpoints in it, such as {steps[-1].parent}"
    # A repository of several models, or the folder of one in a cache of the Hub.
    inner = sorted(file.parent for pattern in ("*", "snapshots/*") for file in path.glob(f"{pattern}/config.json"))
    if inner and not (path / "config.json").exists():
        return f"give the folder of a model in it, such as {inner[-1]}"
    for patterns, meaning in OTHER_FORMATS.items():
        if any(path.match(pattern) or any(path.glob(pattern)) for pattern in patterns):
            return meaning
    return "give the folder of a model saved by save_pretrained"
