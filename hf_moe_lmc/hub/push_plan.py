"""What a push would send, decided and checked without a word to the repository."""

from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import ModelCard
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from hf_moe_lmc.errors import BadInputError

from .card import CARD_NAME, make_card, parents_licence
from .folder_check import check_tensors, list_files, matches
from .licences import Licence
from .made_folder import MadeFolder, open_made_folder


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
    """What a push would send.

    Args:
        made: the folder.
        repository: where it would go.
        licence: that the card would state; None without a card.
        files: all that would be sent.
    """

    made: MadeFolder
    repository: str
    licence: str | None
    files: tuple[SentFile, ...]

    @property
    def text(self) -> str:
        """One file a line."""
        sizes = [f"{file.nbytes:>18,}  {file.name}" for file in self.files]
        total = sum(file.nbytes for file in self.files)
        return "\n".join([f"to {self.repository}, licence {self.licence}:", *sizes, f"{total:>18,}  bytes"]) + "\n"


def plan_push(
    folder: str | Path, repository: str, licence: str | None = None, token: str | bool | None = None
) -> PushPlan:
    """What `push_folder` would send, after all checks that need no access to `repository`.

    README.md is that of the folder, or is made for the push; its licence is `licence`, or what it states, or what the
    cards of the parents allow. Paths of this machine do not leave it.

    Raises:
        BadInputError: the folder is not of this package, is damaged or holds foreign files; `repository` is no name;
            the licence of a parent is not known.
        IncompatiblePairError: the licences of the parents do not go together.
    """
    check_name(repository)
    made = open_made_folder(folder)
    names = list_files(made)
    check_tensors(made)
    card = _read_card(made.path / CARD_NAME) if CARD_NAME in names else make_card(made, token=token)
    stated = card.data.get("license")
    if licence or not isinstance(stated, str):
        _license(card, Licence(licence) if licence else parents_licence(made, token))
    replaced = {CARD_NAME: str(card).encode(), made.marker: made.public_record}
    files = tuple(SentFile(name, replaced.get(name, made.path / name)) for name in sorted({CARD_NAME, *names}))
    return PushPlan(made, repository, str(card.data.get("license")), files)


def check_name(repository: str) -> str:
    """`repository`, if it can be the name of one; else raise `BadInputError`."""
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise BadInputError(f"{repository!r} is no name of a repository on the Hub: {error}") from None
    return repository


def _read_card(file: Path) -> ModelCard:
    try:
        return ModelCard.load(file)
    except (OSError, ValueError) as error:
        raise BadInputError(f"{file} cannot be read: {error}") from None


def _license(card: ModelCard, licence: Licence) -> None:
    stated = {"license": licence.identifier, "license_name": licence.name, "license_link": licence.link}
    for key, value in stated.items():
        if value is not None:
            card.data[key] = value
        elif card.data.get(key) is not None:
            card.data.pop(key)
