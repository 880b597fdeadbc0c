"""Whether the small files beside two checkpoints make the same inputs of the same text."""

from pathlib import Path
from typing import Any

from hf_moe_lmc.checkpoints import read_json
from hf_moe_lmc.errors import BadInputError

from .difference import Difference

# Each way to write a tokenizer down: the files that decide which number a token has and how text is cut.
TOKENIZERS = (
    ("tokenizer.json",),
    ("vocab.json", "merges.txt", "added_tokens.json"),
    ("vocab.txt", "added_tokens.json"),
    ("tokenizer.model", "added_tokens.json"),
    ("spiece.model", "added_tokens.json"),
    ("sentencepiece.bpe.model", "added_tokens.json"),
    ("tokenizer.tiktoken",),
    ("tiktoken.model",),
    ("tekken.json",),
)
KEPT = ("generation_config.json", "special_tokens_map.json", "preprocessor_config.json", "processor_config.json")
# Parts of tokenizer.json by whose rules text becomes tokens.
RULES = ("model", "normalizer", "pre_tokenizer", "added_tokens")
# Entries of these rules that change the places of tokens in the text, but not the tokens; and defaults.
NO_RULES = {"trim_offsets": (True, False), "use_regex": (True,)}
# Say how a file was written, not what is in it.
WRITING = frozenset({"transformers_version", "_from_model_config"})


def file_differences(reference: Path, other: Path) -> list[Difference]:
    """The differences of the files in two folders; those of tokenizers may change the inputs of a model.

    Compared: numbers of tokens and how text is cut into them; by their content, for the same tokenizer is written in
    many ways. A folder without a tokenizer is no evidence of another one. Further tokens of one of the two, under
    numbers that the other does not use, do no harm.

    Raises:
        BadInputError: a file is damaged.
    """
    differences = _tokenizers(reference, other)
    for name in KEPT:
        a, b = (None if not (file := folder / name).is_file() else read_json(file) for folder in (reference, other))
        if any((a or {}).get(key) != (b or {}).get(key) for key in ({*(a or {})} | {*(b or {})}) - WRITING):
            differences.append(Difference(name, f"{name} {_differs(a, b)}"))
    a, b = _chat_template(reference), _chat_template(other)
    if a != b:
        differences.append(Difference("chat_template", f"the chat template {_differs(a, b)}"))
    return differences


def _differs(a: Any, b: Any) -> str:
    if a is not None and b is not None:
        return "differs"
    return f"is in the {'other' if a is None else 'reference'} only"


def _tokenizers(reference: Path, other: Path) -> list[Difference]:
    for files in TOKENIZERS:
        if all((folder / files[0]).is_file() for folder in (reference, other)):
            pairs = ((name, _content(reference / name), _content(other / name)) for name in files)
            found = [_difference(name, a, b) for name, a, b in pairs if a != b]
            return sorted(found, key=lambda difference: not difference.harmful)[:1]
    owners = [any((folder / files[0]).is_file() for files in TOKENIZERS) for folder in (reference, other)]
    if owners == [False, False]:
        return []
    text = f"the {'other' if owners[0] else 'reference'} has no tokenizer; it is taken to be the same"
    if all(owners):
        text = "the tokenizers are of different kinds of files and not compared"
    return [Difference("tokenizer", text)]


def _difference(name: str, a: Any, b: Any) -> Difference:
    """The difference of two contents of a file."""

    def harmful(words: str) -> Difference:
        return Difference(name, f"{name} differs{words}: give models of one tokenizer", harmful=True)

    if not (isinstance(a, dict) and isinstance(b, dict)):
        return harmful("")
    tokens, others = a["tokens"], b["tokens"]
    more, owners = tokens.keys() ^ others.keys(), {number: token for token, number in tokens.items()}
    for token in sorted(tokens.keys() | others.keys()):
        number, number_other = tokens.get(token), others.get(token)
        if number != number_other and (token not in more or owners.get(number_other, token) != token):
            return harmful(f" (token {token!r} is {number} in the reference, {number_other} in the other)")
    for part in RULES:
        rules, rules_other = (
            {key: rule for key, rule in side.get(part, {}).items() if key not in more} for side in (a, b)
        )
        if rules != rules_other:
            return harmful(f" in its {part}")
    side = "other" if min(more) in others else "reference"
    return Difference(name, f"{name} of the {side} has {len(more)} more tokens, such as {min(more)!r}")


def _content(file: Path) -> Any:
    """What decides the numbers of tokens: a table of them, and rules; or the bytes of the file."""
    if not file.is_file():
        return {"tokens": {}} if file.suffix == ".json" else []
    if file.name == "tokenizer.json":
        return _tokenizer(file)
    if file.suffix == ".json" and file.name != "tekken.json":
        return {"tokens": _numbered(read_json(file), file)}
    if file.name == "merges.txt":
        return [line for line in file.read_bytes().splitlines() if line and not line.startswith(b"#version")]
    return file.read_bytes()


def _numbered(tokens: dict[Any, Any], file: Path) -> dict[str, int]:
    """`tokens`, if they are words with their numbers."""
    if not all(type(token) is str and type(number) is int for token, number in tokens.items()):
        raise BadInputError(f"{file} holds no tokens and their numbers; download it again")
    return tokens


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
        cutting = {key: dict(enumerate(_steps(values.get(key)))) for key in ("normalizer", "pre_tokenizer")}
    except (AttributeError, KeyError, StopIteration, TypeError, ValueError):
        raise BadInputError(f"{file} holds no tokenizer; download it again") from None
    return {"tokens": _numbered(tokens, file), "model": model, "added_tokens": rules} | cutting


def _steps(rule: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The steps of a normaliser or a pre-tokenizer, in one form: a sequence of one step is that step."""
    if rule is None:
        return []
    if rule["type"] == "Sequence":
        parts = next(value for key, value in rule.items() if key != "type")
        return [step for part in parts for step in _steps(part)]
    return [{key: value for key, value in rule.items() if value is not None and value not in NO_RULES.get(key, ())}]


def _chat_template(folder: Path) -> Any:
    if (file := folder / "chat_template.jinja").is_file():
        return file.read_bytes().decode(errors="replace")
    for name in ("chat_template.json", "tokenizer_config.json"):
        if (file := folder / name).is_file() and "chat_template" in (values := read_json(file)):
            return values["chat_template"]
    return None
