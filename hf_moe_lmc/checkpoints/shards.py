"""Which tensors a folder holds: one safetensors file, or shards with an index."""

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
    if (index := folder / INDEX_NAME).exists():
        return _sharded(index)
    if (single := folder / SINGLE_NAME).exists():
        return read_header(single)
    raise BadInputError(f"{folder} holds no {SINGLE_NAME} and no {INDEX_NAME}; {_instead(folder)}")


def _sharded(index: Path) -> dict[str, StoredTensor]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BadInputError(f"{index}: weight_map is missing or empty; download it again")
    tensors: dict[str, StoredTensor] = {}
    for name in dict.fromkeys(map(_shard_name(index), weight_map.values())):
        # Links are fine (a Hub cache is made of them); only the name must stay inside the folder.
        if not (shard := index.parent / name).is_file():
            raise BadInputError(f"{shard}, which {index.name} names, is missing; download it again")
        for key, tensor in read_header(shard).items():
            if weight_map.get(key) != name:
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


def _instead(folder: Path) -> str:
    if (folder / "adapter_config.json").exists():
        return "it is a PEFT adapter: merge it into its base model first (merge_and_unload)"
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt*")):
        return "pickles are never read: convert it first (model.save_pretrained)"
    return "give the folder of a model saved by save_pretrained"
