"""The files of a push, decided and checked without a word to the repository."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from huggingface_hub import ModelCard
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from hf_moe_lmc.alignment import Alignment
from hf_moe_lmc.alignment.saved_alignment import WEIGHTS_NAME
from hf_moe_lmc.checkpoints import COMPANIONS
from hf_moe_lmc.checkpoints.shards import INDEX_NAME, stored_tensors
from hf_moe_lmc.errors import BadInputError

from .card import CARD_NAME, make_card
from .figures import REPORT_FILES, REPORT_FOLDER
from .licenses import License
from .output_record import OutputRecord, open_output
from .parent_card import allowed_license, read_parent_card

LOADED = ("*.safetensors", INDEX_NAME, "*.bin", *COMPANIONS)
"""Files that `from_pretrained` may read."""

ABOUT = (CARD_NAME, "LICENSE*", "NOTICE*", *(f"{REPORT_FOLDER}/{name}" for name in REPORT_FILES))


@dataclass(frozen=True)
class SentFile:
    """A file of a push.

    Args:
        name: its path in the repository.
        content: the file, or the bytes that are sent.
    """

    name: str
    content: Path | bytes = field(repr=False)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size

    def holds(self, secret: str) -> bool:
        """Whether it is a small file, weights are not, that contains `secret`."""
        if matches(self.name, ("*.safetensors",)):
            return False
        content = self.content if isinstance(self.content, bytes) else self.content.read_bytes()
        return secret.encode() in content


@dataclass(frozen=True)
class PushPlan:
    """A folder, and how it would be sent.

    Args:
        output: the folder.
        repo_id: where it would go.
        license: that the card would state.
        files: all that would be sent.
    """

    output: OutputRecord
    repo_id: str
    license: str
    files: tuple[SentFile, ...]

    @property
    def text(self) -> str:
        """One file a line."""
        sizes = [f"{file.nbytes:>18,}  {file.name}" for file in self.files]
        total = sum(file.nbytes for file in self.files)
        return "\n".join([f"to {self.repo_id}, license {self.license}:", *sizes, f"{total:>18,}  bytes"]) + "\n"

    def check_digests(self) -> None:
        """Raise `BadInputError` unless every tensor is, to the bit, the one that was written; reads everything."""
        if self.output.command == "align":
            return
        for key, tensor in stored_tensors(self.output.path).items():
            if tensor.digests()[1] != self.output.content["sha256"][key]:
                raise BadInputError(f"{tensor.file}: {key} is not what was written there; make the folder again")


def plan_push(
    folder: str | Path, repo_id: str, license: str | None = None, token: str | bool | None = None
) -> PushPlan:
    """The push of `push_folder`, after all checks that need no access to the repository.

    README.md is that of the folder, or is made for the push; its license is `license`, or what it states, or what the
    cards of the parents allow. Paths of this machine do not leave it.

    Raises:
        BadInputError: the folder is not of this package, is damaged or holds foreign files; `repo_id` is no name; the
            license of a parent is not known.
        IncompatiblePairError: the licenses of the parents do not go together.
    """
    check_repo_id(repo_id)
    output = open_output(folder)
    names = _list_files(output)
    _check_tensors(output)
    card = _read_card(output.path / CARD_NAME) if CARD_NAME in names else make_card(output, token=token)
    if license or not isinstance(card.data.get("license"), str):
        cards = [] if license else [read_parent_card(parent, token) for parent in output.parents]
        _set_license(card, License(license) if license else allowed_license(cards))
    replaced = {CARD_NAME: str(card).encode(), output.marker: output.public_content}
    files = tuple(SentFile(name, replaced.get(name, output.path / name)) for name in sorted({CARD_NAME, *names}))
    return PushPlan(output, repo_id, str(card.data.get("license")), files)


def check_repo_id(repo_id: str) -> str:
    """`repo_id`, if it can be the name of a repository; else raise `BadInputError`."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise BadInputError(f"{repo_id!r} is no name of a repository on the Hub: {error}") from None
    return repo_id


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a path with slashes fits one of the patterns, whose stars match no slash."""
    return any(name.count("/") == pattern.count("/") and fnmatchcase(name, pattern) for pattern in patterns)


def known_files(output: OutputRecord) -> tuple[str, ...]:
    """Patterns of the files that a folder like `output` may hold."""
    if output.command == "align":
        return (output.marker, WEIGHTS_NAME, *ABOUT)
    return (output.marker, "model*.safetensors", INDEX_NAME, *COMPANIONS, *ABOUT)


def _list_files(output: OutputRecord) -> list[str]:
    """The paths of its files, with slashes; `BadInputError` if one of them is a link, or not of this package."""
    names = []
    for file in sorted(output.path.rglob("*")):
        name = file.relative_to(output.path).as_posix()
        if file.is_symlink():
            raise BadInputError(f"{file} is a link; only files that lie in the folder are sent")
        if file.is_dir():
            continue
        if not matches(name, known_files(output)):
            raise BadInputError(f"{file} was not written by this package; take it out of the folder")
        names.append(name)
    return names


def _check_tensors(output: OutputRecord) -> None:
    """Raise `BadInputError` unless the folder holds the tensors that its record names; reads headers only."""
    if output.command == "align":
        Alignment.from_pretrained(output.path)
        return
    tensors = stored_tensors(output.path)
    if different := tensors.keys() ^ output.content["sha256"].keys():
        raise BadInputError(f"{output.path}: tensor {min(different)} is in the manifest or in the files only")
    used = {tensor.file.name for tensor in tensors.values()}
    if stray := sorted(file for file in output.path.glob("*.safetensors") if file.name not in used):
        raise BadInputError(f"{stray[0]} belongs to no tensor of the manifest; take it out of the folder")


def _read_card(file: Path) -> ModelCard:
    try:
        return ModelCard.load(file)
    except (OSError, ValueError) as error:
        raise BadInputError(f"{file} cannot be read: {error}") from None


def _set_license(card: ModelCard, license: License) -> None:
    stated = {"license": license.identifier, "license_name": license.name, "license_link": license.link}
    for key, value in stated.items():
        if value is not None:
            card.data[key] = value
        elif card.data.get(key) is not None:
            card.data.pop(key)
