"""JSON of unknown origin: size, encoding, nesting and repeated keys are checked before anything uses it."""

import json
from pathlib import Path
from typing import Any

from hf_moe_lmc.errors import BadInputError

MAX_BYTES = 100_000_000  # an index of a million tensors; also the largest header that safetensors accepts


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        BadInputError: the file cannot be read, is too large, or does not hold one JSON object with unique keys.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe would never end
            raise BadInputError(f"{path} is not a file; give the folder of a model saved by save_pretrained")
        if path.stat().st_size > MAX_BYTES:
            raise BadInputError(f"{path} holds more than {MAX_BYTES} bytes; that is no metadata file")
        return parse_json(path.read_bytes(), path)
    except OSError as error:
        raise BadInputError(f"cannot read {path}: {error.strerror}") from None


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
    if not isinstance(value, dict):
        raise BadInputError(f"{path} holds a JSON {type(value).__name__}, not an object; download it again")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        seen: set[str] = set()
        repeated = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"key {repeated!r} occurs twice")
    return values
