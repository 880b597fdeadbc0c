"""Whether an output folder may be written, asked before any work is done for it."""

import os
import shutil
import tempfile
from collections.abc import Sequence
from glob import escape
from pathlib import Path

from hf_moe_lmc.errors import BadInputError, OutputError

from .companions import COMPANIONS
from .download import matches
from .shards import INDEX_NAME, SINGLE_NAME, shard_names
from .small_files import read_json

MANIFEST_NAME = "hf_moe_lmc_manifest.json"

# Patterns of the paths of the files beside the weights; what else lies in an output is somebody's.
OF_A_CARD = ("README.md", "report/*")
OF_A_CHECKPOINT = (*OF_A_CARD, INDEX_NAME, *COMPANIONS)


def check_output(
    out: Path,
    inputs: Sequence[Path],
    overwrite: bool,
    marker: str = MANIFEST_NAME,
    files: Sequence[str] = OF_A_CHECKPOINT,
) -> None:
    """Check all that `output_folder` asks of `out`, before any work is done for it.

    Raises:
        OutputError: `out` may not be written.
    """
    out = Path(os.path.abspath(out))
    check_place(out, inputs)
    check_free(out, overwrite, marker, files)
    try:
        with tempfile.TemporaryDirectory(prefix=".hf_moe_lmc.", dir=out.parent):
            pass
    except OSError as error:
        raise OutputError(f"cannot write to {out.parent}: {error.strerror}; give another output") from None


def check_place(out: Path, inputs: Sequence[Path]) -> None:
    """Raise `OutputError` unless a folder can be made at `out`, apart from `inputs`."""
    try:
        os.fsencode(out).decode()  # in the C locale, str(out) holds surrogates for what is UTF-8
    except UnicodeDecodeError:
        raise OutputError(f"the path {str(out)!a} is not UTF-8; give another output") from None
    try:
        if out == Path.cwd() or out in Path.cwd().parents:
            raise OutputError(f"{out} is, or contains, the current folder; give a folder of its own")
        if out.is_symlink() or out.is_mount():
            raise OutputError(f"{out} is a link or a mount point; give a folder of its own")
        if not out.parent.is_dir():
            raise OutputError(f"{out.parent}, which is to hold {out.name}, is not a folder; create it first")
        target = out.resolve()
    except OSError as error:
        raise OutputError(f"cannot write to {out}: {error.strerror}; give another output") from None
    for path in inputs:
        source = path.resolve()
        if target == source or source in target.parents or target in source.parents:
            raise OutputError(f"{out} is, contains or lies in the input {path}; give another output")


def check_free(out: Path, overwrite: bool, marker: str, files: Sequence[str]) -> None:
    """Raise `OutputError` if `out` holds something that may not be replaced; arguments as for `output_folder`."""
    if not out.exists():
        return
    if not out.is_dir():
        raise OutputError(f"{out} is a file; give another output")
    if any(out.iterdir()):
        if not (out / marker).is_file():
            raise OutputError(f"{out} holds files, and no earlier output of this command; give another output")
        if not overwrite:
            raise OutputError(
                f"{out} holds an earlier output; replace it with --overwrite (overwrite=True) or give another output"
            )
        if foreign := _foreign(out, marker, files):
            raise OutputError(f"{foreign} was not written by this package, and would be lost; take it out of {out}")


def _foreign(folder: Path, marker: str, files: Sequence[str]) -> Path | None:
    """A file in an earlier output that no run of this package wrote."""
    try:
        several = read_json(folder / marker).get("folders")
        shards = shard_names(folder) if (folder / INDEX_NAME).exists() or (folder / SINGLE_NAME).exists() else []
    except BadInputError as error:  # it is damaged, and nobody can say
        raise OutputError(f"{error}; or give another output") from None
    parts = [path.name for path in folder.iterdir() if path.name in several] if isinstance(several, dict) else []
    known = [marker, *files, *map(escape, shards)]
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        is_folder = path.is_dir() and not path.is_symlink()
        if name.partition("/")[0] not in parts and not is_folder and not matches(name, known):
            return path
    return next(filter(None, (_foreign(folder / part, marker, files) for part in parts)), None)


def check_renames(out: Path, work: Path) -> bool:
    """Whether folders can be renamed where `out` is to be.

    Raises:
        OutputError: `out` is there, and cannot be moved.
    """
    probe, moved = work / "probe", work.with_name(f"{work.name}.probe")
    is_filled = out.exists() and any(out.iterdir())
    probe.mkdir(exist_ok=True)
    try:
        os.rename(probe, moved)
        moved.rmdir()
    except OSError as error:
        if is_filled:
            raise OutputError(
                f"{out} cannot be replaced, for folders cannot be renamed there ({error.strerror}); delete it first, "
                "or give another output"
            ) from None
        return False
    if out.exists():
        try:
            # Killed between the two, the next run puts it back.
            os.rename(out, work / "old")
            os.rename(work / "old", out)
        except OSError as error:
            raise OutputError(
                f"{out} cannot be moved ({error.strerror}), as mount points cannot; give a folder that is not there yet"
            ) from None
    return True


def check_space(folder: Path, size: int) -> None:
    """Raise `OutputError` unless `size` bytes are free where `folder` is."""
    free = shutil.disk_usage(folder).free
    if free < size:
        raise OutputError(f"{folder} has {free:,} bytes free, but {size:,} are needed; make room")
