"""The files of a push, decided and checked without a word to the repository."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from huggingface_hub import ModelCard
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from hf_moe_lmc.alignment import Alignment
from hf_moe_lmc.alignment.saved_alignment import WEIGHTS_NAME
from hf_moe_lmc.checkpoints import COMPANIONS, matches
from hf_moe_lmc.checkpoints.shards import INDEX_NAME, stored_tensors
from hf_moe_lmc.connectivity.report import REPORT_FILES
from hf_moe_lmc.errors import BadInputError, one_line

from .card import CARD_NAME, addressed, make_card, read_card
from .figures import REPORT_FOLDER
from .licenses import License, known_identifier
from .metadata import state_license
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
        card: README.md there.
        names: the files of the folder.
    """

    output: OutputRecord
    repo_id: str
    card: ModelCard = field(repr=False)
    names: tuple[str, ...]

    @property
    def license(self) -> str:
        """That the card states."""
        return str(self.card.data.get("license"))

    @property
    def files(self) -> tuple[SentFile, ...]:
        """All that would be sent; the paths of this machine are in none of them."""
        changed = {CARD_NAME: str(self.card).encode(), self.output.marker: self.output.public_content}
        names = sorted({CARD_NAME, *self.names})
        return tuple(SentFile(name, changed.get(name, self.output.path / name)) for name in names)

    @property
    def text(self) -> str:
        """One file a line."""
        sizes = [f"{file.nbytes:>18,}  {one_line(file.name)}" for file in self.files]
        total = sum(file.nbytes for file in self.files)
        return (
            "\n".join([f"Would go to {self.repo_id}, license {self.license}:", *sizes, f"{total:>18,}  bytes"]) + "\n"
        )

    def to(self, repo_id: str) -> "PushPlan":
        """The same to another repository."""
        return replace(self, repo_id=repo_id, card=addressed(self.card, repo_id))

    def check_digests(self) -> None:
        """Raise `BadInputError` unless every tensor is, to the bit, the one that was written; reads everything."""
        if self.output.command == "align":
            return
        for key, tensor in stored_tensors(self.output.path).items():
            if tensor.digest() != self.output.content["xxh3"][key]:
                raise BadInputError(f"{tensor.file}: {key} is not what was written there; make the folder again")


def plan_push(
    folder: str | Path, repo_id: str, license: str | None = None, token: str | bool | None = None
) -> PushPlan:
    """The push of `push_folder`, after all checks that need no access to the repository.

    README.md is that of the folder, or is made for the push; its license is `license`, or what it states, or what the
    cards of the parents allow; its examples load the model from the repository.

    Raises:
        BadInputError: the folder is not of this package, is damaged or holds foreign files; `repo_id` is no name; there
            is no such license, or that of a parent is not known.
        IncompatiblePairError: the licenses of the parents do not go together.
    """
    check_repo_id(repo_id)
    if license:
        known_identifier(license)
    output = open_output(folder)
    names = _list_files(output)
    _check_tensors(output)
    card = read_card(output.path / CARD_NAME) or make_card(output, token=token)
    if license:
        state_license(card.data, License(license))
    elif not isinstance(card.data.get("license"), str):
        cards = [read_parent_card(parent, {"token": token}) for parent in output.parents]
        state_license(card.data, allowed_license(cards))
    plan = PushPlan(output, repo_id, card, tuple(names)).to(repo_id)
    known_identifier(plan.license)
    return plan


def check_repo_id(repo_id: str) -> str:
    """`repo_id`, if it can be the name of a repository; else raise `BadInputError`."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise BadInputError(f"{repo_id!r} is no name of a repository on the Hub: {error}") from None
    return repo_id


def known_files(output: OutputRecord) -> tuple[str, ...]:
    """Patterns of the files that a folder like `output` may hold."""
    if output.command == "align":
        return (output.marker, WEIGHTS_NAME, *ABOUT)
    return (output.marker, "model*.safetensors", INDEX_NAME, *COMPANIONS, *ABOUT)


def _list_files(output: OutputRecord) -> list[str]:
    """The paths of its files, with slashes; `BadInputError` if one is a link or a device, or not of this package."""
    names = []
    for file in sorted(output.path.rglob("*")):
        name = file.relative_to(output.path).as_posix()
        if file.is_symlink():
            raise BadInputError(f"{file} is a link; only files that lie in the folder are sent")
        if file.is_dir():
            continue
        if not file.is_file():
            raise BadInputError(f"{file} is no plain file; take it out of the folder")
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
    if different := tensors.keys() ^ output.content["xxh3"].keys():
        raise BadInputError(f"{output.path}: tensor {min(different)} is in the manifest or in the files only")
    used = {tensor.file.name for tensor in tensors.values()}
    if stray := sorted(file for file in output.path.glob("*.safetensors") if file.name not in used):
        raise BadInputError(f"{stray[0]} belongs to no tensor of the manifest; take it out of the folder")
