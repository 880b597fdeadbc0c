"""Small files of unknown origin: kind, size, encoding, nesting and repeated keys are checked first."""

import json
from pathlib import Path
from typing import Any

from hf_moe_lmc.errors import BadInputError

MAX_DEPTH = 50
MAX_BYTES = 100_000_000  # an index of a million tensors; also the largest header that safetensors accepts


def read_small_file(path: Path, limit: int = MAX_BYTES) -> bytes:
    """The content of a plain file of at most `limit` bytes.

    Raises:
        BadInputError: it is something else, such as a pipe or a device, which might never end; or it is larger.
    """
    try:
        if path.exists() and not path.is_file():
            raise BadInputError(f"{path} is not a plain file; give another")
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise BadInputError(f"cannot read {path}: {error.strerror}") from None
    if len(content) > limit:
        raise BadInputError(f"{path} holds more than {limit} bytes; that is no metadata file")
    return content


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        BadInputError: the file cannot be read, is too large, or does not hold one JSON object with unique keys.
    """
    return parse_json(read_small_file(path), path)


def parse_json(content: bytes, path: Path) -> dict[str, Any]:
    """The JSON object in `content`, which was read from `path`.

    Raises:
        BadInputError: it is not one JSON object with unique keys.
    """
    try:
        value = json.loads(content.decode("utf-8"), object_pairs_hook=_unique)
    except UnicodeDecodeError:
        raise BadInputError(f"{path} is not UTF-8 text; download it again") from None
    except RecursionError:
        raise BadInputError(f"{path} is nested too deeply; that is no metadata file") from None
    except ValueError as error:
        raise BadInputError(f"{path} is not valid JSON: {error}; download it again") from None
    if _is_deeper(value, MAX_DEPTH):
        raise BadInputError(f"{path} is nested too deeply; that is no metadata file")
    if not isinstance(value, dict):
        raise BadInputError(f"{path} holds a JSON {type(value).__name__}, not an object; download it again")
    return value


def _is_deeper(value: Any, depth: int) -> bool:
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(depth):
        children = (child for node in level for child in (node.values() if isinstance(node, dict) else node))
        level = [child for child in children if isinstance(child, (dict, list))]
    return bool(level)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        seen: set[str] = set()
        repeated = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"key {repeated!r} occurs twice")
    return values
