"""The small files beside the weights: those that go into what is made of a model, and those that stay behind."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from .download import matches
from .shards import INDEX_NAME, shard_names
from .skeleton import CONFIG_NAME, without_code
from .small_files import MAX_BYTES, parse_json, read_small_file

# Paths of the files that make a model, in patterns whose stars match no slash; all that Transformers and mistral-common
# look for, and the licenses.
COMPANIONS = (
    "config.json",
    "generation_config.json",
    "tokenizer*.json",
    "tokenizer*.model*",
    "tekken.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*.json",
    "vocab*.txt",
    "*_vocab.json",
    "merges.txt",
    "normalizer.json",
    "*.model",
    "*.spm",
    "*.tiktoken",
    "*.bpe",
    "bpe.codes",
    "chat_template.json",
    "*.jinja",
    "additional_chat_templates/*.jinja",
    "SYSTEM_PROMPT.txt",
    "*processor_config.json",
    "LICENSE*",
    "NOTICE*",
    "USE_POLICY*",
)

# Written anew for what is made of a model, or of no use there.
REPLACED = ("README.md", INDEX_NAME, "hf_moe_lmc_manifest.json", ".*")

# Patterns of names -> why such a file stays behind.
REASONS = {
    ("*.py",): "code is never copied",
    ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt", "*.joblib"): "pickles are never read or copied",
    ("*.safetensors", "*.gguf", "*.onnx", "*.h5", "*.msgpack", "*.index.json"): "other weights",
}
UNKNOWN = "not known to belong to a model; copy it yourself if it does"


@dataclass(frozen=True)
class Companions:
    """The small files of a model.

    Args:
        copied: path of the file, relative to the model's folder -> where it is read from.
        left_behind: path -> why it is not copied.
    """

    copied: Mapping[str, Path] = field(default_factory=dict)
    left_behind: Mapping[str, str] = field(default_factory=dict)

    def copy(self, target: Path) -> None:
        """Write the copies into the folder `target`; as bytes, but for fields of settings that no longer hold.

        Settings that name code lose it, and config.json what it says of quantisation.

        Args:
            target: a folder.

        Raises:
            BadInputError: a file cannot be read any more.
        """
        for name, file in self.copied.items():
            content = read_small_file(file)
            if name.endswith("config.json"):
                content = _mended(content, file, name == CONFIG_NAME)
            copy = target / name
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes(content)


def find_companions(folder: Path, listed: Iterable[str] = ()) -> Companions:
    """The small files of a model, sorted into those that are copied and those that stay behind.

    Copied are files with names that tokenizers, processors, settings and licenses have: plain files, or links into the
    same folder or the cache that it is part of; of at most `MAX_BYTES`.

    Args:
        folder: of the model.
        listed: paths of further files, that were not downloaded.

    Raises:
        BadInputError: a file of settings is damaged.
    """
    copied, left = {}, {}
    weights = set(shard_names(folder))
    for name in sorted({*_names(folder), *listed}):
        if name in weights or any(fnmatchcase(name, pattern) for pattern in REPLACED):
            continue
        if reason := _reason(name, folder):
            left[name] = reason
        else:
            copied[name] = folder / name
    for name, file in copied.items():
        for code in _named_code(name, file):
            left.setdefault(code, f"code is never copied; {name} loses the auto_map that names it")
    return Companions(copied, left)


def _names(folder: Path) -> Iterable[str]:
    """Paths of the files in a folder, and of the folders in it that are not looked into."""
    for path in folder.iterdir():
        if path.is_dir() and any(pattern.startswith(f"{path.name}/") for pattern in COMPANIONS):
            yield from (f"{path.name}/{file.name}" for file in path.iterdir())
        else:
            yield f"{path.name}/" if path.is_dir() else path.name


def _reason(name: str, folder: Path) -> str | None:
    """Why a file stays behind; None if it is copied."""
    for patterns, reason in REASONS.items():
        if any(fnmatchcase(name, pattern) for pattern in patterns):
            return reason
    if not matches(name, COMPANIONS):
        return UNKNOWN
    file = folder / name
    if not file.exists() or not file.is_file():
        return "not a plain file"
    if name != CONFIG_NAME and not _is_within(file, folder):
        return "a link out of the folder"
    return f"larger than {MAX_BYTES} bytes" if file.stat().st_size > MAX_BYTES else None


def _is_within(file: Path, folder: Path) -> bool:
    """Whether a file lies in the folder, or in the cache that the folder is part of."""
    target, own = file.resolve(), folder.resolve()
    return own in target.parents or (target.parent.name == "blobs" and target.parents[1] in own.parents)


def _mended(content: bytes, file: Path, plain: bool) -> bytes:
    """Settings without the fields that name code, and those that say that plain weights are quantised."""
    settings = parse_json(content, file)
    kept = without_code(settings)
    for part in (kept, kept.get("text_config")) if plain else ():
        if isinstance(part, dict):
            part.pop("quantization_config", None)
    return content if kept == settings else json.dumps(kept, indent=2, ensure_ascii=False).encode() + b"\n"


def _named_code(name: str, file: Path) -> set[str]:
    """The files of the folder that the `auto_map` of a file of settings names."""
    settings = parse_json(read_small_file(file), file) if name.endswith("config.json") else {}
    auto_map = settings.get("auto_map")
    return {f"{module}.py" for module in _modules(auto_map.values())} if isinstance(auto_map, dict) else set()


def _modules(values: Iterable[Any]) -> Iterable[str]:
    for value in values:
        if isinstance(value, list):
            yield from _modules(value)
        elif isinstance(value, str) and "--" not in value:  # not of another repository
            yield value.rpartition(".")[0]
