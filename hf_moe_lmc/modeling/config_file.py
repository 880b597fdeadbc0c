"""config.json of a local folder or of the Hub, checked before Transformers sees it."""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from transformers import CONFIG_MAPPING, PreTrainedConfig

from hf_moe_lmc.errors import BadInputError, HubError

CONFIG_NAME = "config.json"
MAX_BYTES = 10 * 2**20
MAX_MODULES = 10_000  # more would take for ever to build
COUNTS = ("layers", "experts", "n_layer", "depth", "blocks")  # ends of the names of fields that count modules


def read_config(source: str | Path) -> PreTrainedConfig:
    """The configuration of a local folder or of a Hub repository, `repo` or `repo@revision`.

    Fields that choose code (`auto_map`, attention and experts implementations, internal ones) are dropped.

    Raises:
        BadInputError: there is no such folder or file, or it does not hold a configuration known here.
        HubError: the Hub does not answer, or refuses.
    """
    file = _config_file(source)
    fields = _read_json(file)
    model_type = fields.get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        raise BadInputError(f"model type {model_type!r} in {file} is not known to the installed Transformers")
    try:
        return CONFIG_MAPPING[model_type].from_dict(_checked(fields, file))
    except BadInputError:
        raise
    except Exception as error:  # the fields come from a file, and may break anything
        raise BadInputError(f"{file} is no configuration of {model_type}: {' '.join(str(error).split())}") from error


def _config_file(source: str | Path) -> Path:
    folder = Path(source)
    if folder.is_dir():
        if not (folder / CONFIG_NAME).is_file():
            raise BadInputError(f"no {CONFIG_NAME} in {folder}; give the folder of a saved model")
        return folder / CONFIG_NAME
    repository, _, revision = str(source).partition("@")
    try:
        return Path(hf_hub_download(repository, CONFIG_NAME, revision=revision or None))
    except HFValidationError:
        raise BadInputError(f"no folder {source}, and no Hub id either; give a folder or repo@revision") from None
    except LocalEntryNotFoundError:
        raise HubError(f"no folder {source}, and the Hub does not answer; check the path or the network") from None
    except EntryNotFoundError:
        raise BadInputError(f"no {CONFIG_NAME} in {source} on the Hub; give the id of a saved model") from None
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "no"
        raise HubError(f"no folder {source}, and the Hub refuses it (status {status}); check id and token") from None


def _read_json(file: Path) -> dict[str, Any]:
    if file.stat().st_size > MAX_BYTES:
        raise BadInputError(f"{file} has more than {MAX_BYTES} bytes; it cannot be a configuration")
    try:
        fields = json.loads(file.read_text(encoding="utf-8"), object_hook=_special_float)
    except (ValueError, TypeError, RecursionError) as error:
        raise BadInputError(f"{file} is not JSON: {error}; download it again") from None
    if not isinstance(fields, dict):
        raise BadInputError(f"{file} holds a {type(fields).__name__}, not fields; download it again")
    return fields


def _special_float(found: dict[str, Any]) -> Any:
    """Transformers writes infinity as `{"__float__": "Infinity"}`."""
    return float(found["__float__"]) if found.keys() == {"__float__"} else found


def _checked(fields: dict[str, Any], file: Path) -> dict[str, Any]:
    """`fields` without those that choose code, all the way down."""
    kept = {}
    for name, value in fields.items():
        if name == "auto_map" or "attn_implementation" in name or "experts_implementation" in name:
            continue
        if name.startswith("_") and name.endswith("_internal"):
            continue
        if name.endswith(COUNTS) and isinstance(value, int) and value > MAX_MODULES:
            raise BadInputError(f"{name} = {value} in {file}; more than {MAX_MODULES} are not built")
        kept[name] = _checked(value, file) if isinstance(value, dict) else value
    return kept
