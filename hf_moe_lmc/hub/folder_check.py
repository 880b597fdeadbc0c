"""Whether a folder holds what this package wrote there, and nothing else."""

from collections.abc import Iterable
from fnmatch import fnmatchcase

from hf_moe_lmc.alignment import Alignment
from hf_moe_lmc.alignment.artefact import WEIGHTS_NAME
from hf_moe_lmc.checkpoints import COMPANIONS
from hf_moe_lmc.checkpoints.shards import INDEX_NAME, stored_tensors
from hf_moe_lmc.errors import BadInputError

from .card import CARD_NAME
from .made_folder import ALIGN, APPLY, CONFIGURE, MERGES, MadeFolder
from .path_figures import FOLDER_NAME, REPORT_FILES

LOADED = ("*.safetensors", INDEX_NAME, "*.bin", *COMPANIONS)
"""What `from_pretrained` may read."""

ABOUT = (CARD_NAME, "LICENSE*", "NOTICE*", *(f"{FOLDER_NAME}/{name}" for name in REPORT_FILES))


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a path with slashes fits one of the patterns, whose stars match no slash."""
    return any(name.count("/") == pattern.count("/") and fnmatchcase(name, pattern) for pattern in patterns)


def known_files(made: MadeFolder) -> tuple[str, ...]:
    """Patterns of what a folder like `made` may hold."""
    if made.command in (ALIGN, CONFIGURE):
        return (made.marker, WEIGHTS_NAME, *ABOUT)
    return (made.marker, "model*.safetensors", INDEX_NAME, *COMPANIONS, *ABOUT)


def list_files(made: MadeFolder) -> list[str]:
    """The paths of its files, with slashes.

    Raises:
        BadInputError: one of them is a link, or not of this package.
    """
    names = []
    for file in sorted(made.path.rglob("*")):
        name = file.relative_to(made.path).as_posix()
        if file.is_symlink():
            raise BadInputError(f"{file} is a link; only files that lie in the folder are sent")
        if file.is_dir():
            continue
        if not matches(name, known_files(made)):
            raise BadInputError(f"{file} was not written by this package; take it out of the folder")
        names.append(name)
    return names


def check_tensors(made: MadeFolder) -> None:
    """Raise `BadInputError` unless the folder holds the tensors that its record names; reads headers only."""
    if made.command == ALIGN:
        Alignment.from_pretrained(made.path)
        return
    tensors = stored_tensors(made.path)
    if different := tensors.keys() ^ made.record["sha256"].keys():
        raise BadInputError(f"{made.path}: tensor {min(different)} is in the manifest or in the files only")
    used = {tensor.file.name for tensor in tensors.values()}
    if stray := sorted(file for file in made.path.glob("*.safetensors") if file.name not in used):
        raise BadInputError(f"{stray[0]} belongs to no tensor of the manifest; take it out of the folder")


def check_digests(made: MadeFolder) -> None:
    """Raise `BadInputError` unless every tensor is, to the bit, what was written; reads everything."""
    if made.command not in (APPLY, *MERGES):
        return
    for key, tensor in stored_tensors(made.path).items():
        if tensor.digests()[1] != made.record["sha256"][key]:
            raise BadInputError(f"{tensor.file}: {key} is not what was written there; make the folder again")
