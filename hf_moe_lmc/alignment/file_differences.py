"""Whether the small files beside two checkpoints make the same inputs of the same text."""

from pathlib import Path
from typing import Any

from hf_moe_lmc.checkpoints import read_json
from hf_moe_lmc.errors import BadInputError

# Each way to write a tokenizer down: the files that decide which number a token has and how text is cut.
TOKENIZERS = (
    ("tokenizer.json",),
    ("vocab.json", "merges.txt", "added_tokens.json"),
    ("vocab.txt", "added_tokens.json"),
    ("tokenizer.model", "added_tokens.json"),
    ("spiece.model", "added_tokens.json"),
    ("sentencepiece.bpe.model", "added_tokens.json"),
    ("tokenizer.tiktoken",),
)
KEPT = ("generation_config.json", "special_tokens_map.json", "preprocessor_config.json", "processor_config.json")
# Say how a file was written, not what is in it.
WRITING = frozenset({"transformers_version", "_from_model_config"})


def file_differences(reference: Path, other: Path) -> tuple[list[str], list[str]]:
    """The differences of the files in two folders that change the inputs of a model, and the others, in words.

    Compared: numbers of tokens and how text is cut into them; by their content, for the same tokenizer is written in
    many ways. A folder without a tokenizer is no evidence of another one.

    Raises:
        BadInputError: a file is damaged.
    """
    harmful, harmless = _tokenizers(reference, other)
    for name in KEPT:
        a, b = ({} if not (file := folder / name).is_file() else read_json(file) for folder in (reference, other))
        if any(a.get(key) != b.get(key) for key in (a.keys() | b.keys()) - WRITING):
            harmless.append(f"{name} differs; the reference's is kept")
    if _chat_template(reference) != _chat_template(other):
        harmless.append("the chat template differs; the reference's is kept")
    return harmful, harmless


def _tokenizers(reference: Path, other: Path) -> tuple[list[str], list[str]]:
    for files in TOKENIZERS:
        if all((folder / files[0]).is_file() for folder in (reference, other)):
            for name in files:
                if (word := _difference(_content(reference / name), _content(other / name))) is not None:
                    return [f"{name} differs{word}: give models of one tokenizer"], []
            return [], []
    owners = [any((folder / files[0]).is_file() for files in TOKENIZERS) for folder in (reference, other)]
    if owners == [False, False]:
        return [], []
    if all(owners):
        return [], ["the tokenizers are of different kinds of files and not compared; the reference's is kept"]
    return [], [f"the {'other' if owners[0] else 'reference'} has no tokenizer; it is taken to be the same"]


def _difference(a: Any, b: Any) -> str | None:
    """What tells two contents apart, as the rest of a sentence; None if nothing does."""
    if a == b:
        return None
    if isinstance(a, dict) and isinstance(b, dict):
        known = (a.get("tokens"), b.get("tokens"))
        tokens, others = known if all(isinstance(part, dict) for part in known) else (a, b)
        for token in sorted(tokens.keys() | others.keys(), key=str):
            if (number := tokens.get(token)) != (number_other := others.get(token)):
                return f" (token {token!r} is {number} in the reference, {number_other} in the other)"
        part = min(key for key in a.keys() | b.keys() if a.get(key) != b.get(key))
        return f" in its {part}"
    return ""


def _content(file: Path) -> Any:
    if not file.is_file():
        return {}
    if file.name == "tokenizer.json":
        return _tokenizer(file)
    if file.suffix == ".json":
        return read_json(file)
    if file.name == "merges.txt":
        return [line for line in file.read_bytes().splitlines() if line and not line.startswith(b"#version")]
    return file.read_bytes()


def _tokenizer(file: Path) -> dict[str, Any]:
    """What decides the numbers of the tokens: tokens by number, and the rules by which text is cut."""
    values = read_json(file)
    model, added = values.get("model"), values.get("added_tokens") or []
    try:
        model = {key: value for key, value in (model or {}).items() if value not in (None, False)}
        vocabulary = model.pop("vocab", None) or {}
        if isinstance(vocabulary, list):  # of a unigram model: tokens and their scores, in order
            model["scores"] = [score for _, score in vocabulary]
            vocabulary = {token: number for number, (token, _) in enumerate(vocabulary)}
        # "a b" until tokenizers 0.20, then ["a", "b"].
        model["merges"] = [" ".join(merge) if isinstance(merge, list) else merge for merge in model.get("merges", [])]
        rules = {token["content"]: [bool(token.get(key)) for key in ("lstrip", "rstrip")] for token in added}
        tokens = dict(vocabulary) | {token["content"]: token["id"] for token in added}
    except (AttributeError, KeyError, TypeError, ValueError):
        raise BadInputError(f"{file} holds no tokenizer; download it again") from None
    cutting = {key: values.get(key) for key in ("normalizer", "pre_tokenizer")}
    return {"tokens": tokens, "model": model, "added_tokens": rules} | cutting


def _chat_template(folder: Path) -> Any:
    if (file := folder / "chat_template.jinja").is_file():
        return file.read_bytes().decode(errors="replace")
    for name in ("chat_template.json", "tokenizer_config.json"):
        if (file := folder / name).is_file() and "chat_template" in (values := read_json(file)):
            return values["chat_template"]
    return None
