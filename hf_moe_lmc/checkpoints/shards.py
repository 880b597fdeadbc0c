"""The tensors of a folder: one safetensors file, or shards with an index."""

import os
from pathlib import Path

from hf_moe_lmc.errors import BadInputError

from .json_file import read_json
from .stored_tensor import StoredTensor, read_header

SINGLE_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of the checkpoint in `folder`, by its key, in the order of its files.

    Raises:
        BadInputError: there is no safetensors checkpoint, a file is missing or damaged, or the index and the shards
            disagree.
    """
    index, single = folder / INDEX_NAME, folder / SINGLE_NAME
    if os.path.lexists(index):
        return _sharded(index)
    if os.path.lexists(single):
        return read_header(single)
    raise BadInputError(f"{folder} holds no {SINGLE_NAME} and no {INDEX_NAME}; {advice(folder)}")


def _sharded(index: Path) -> dict[str, StoredTensor]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BadInputError(f"{index}: weight_map is missing or empty; download it again")
    # Links are fine (a Hub cache is made of them); only the name must stay inside the folder.
    shards = [index.parent / name for name in dict.fromkeys(map(_shard_name(index), weight_map.values()))]
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


def _shard_name(index: Path):
    def check(name: object) -> str:
        plain = isinstance(name, str) and name == Path(name).name and "\\" not in name and name.isprintable()
        if not plain or not str(name).endswith(".safetensors"):
            raise BadInputError(f"{index}: {name!r} is not the name of a .safetensors file beside it")
        return str(name)

    return check


def advice(folder: Path) -> str:
    """A guess at what `folder`, which is no checkpoint, is instead; and what to do."""
    if (folder / "adapter_config.json").exists():
        return "it is a PEFT adapter: merge it into its base model first (merge_and_unload)"
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt*")):
        return "pickles are never read: convert it first (model.save_pretrained)"
    return "give the folder of a model saved by save_pretrained"
