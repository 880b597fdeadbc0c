"""Values by which a file is known again, without reading all of it."""

from dataclasses import dataclass
from pathlib import Path

import xxhash

from hf_moe_lmc.errors import BadInputError

SAMPLES, SAMPLE_BYTES = 16, 4096


@dataclass(frozen=True)
class Fingerprint:
    """Of a file: what its system says of it, and a digest of its beginning and of samples.

    Args:
        size: in bytes.
        modified, changed: times in ns, of its content, and of that or of what its system keeps about it; programs can
            set the first and not the second.
        inode: of the file; on some mounted file systems another one after a while.
        digest: XXH3 of samples at even distances, the first and the last bytes among them.
    """

    size: int
    modified: int
    changed: int
    inode: int
    digest: str

    @classmethod
    def of(cls, file: Path) -> "Fingerprint":
        """That of a file as it is now.

        Raises:
            BadInputError: it cannot be read.
        """
        digest = xxhash.xxh3_128()
        try:
            with file.open("rb", buffering=0) as opened:
                status = file.stat()
                for number in range(SAMPLES):
                    opened.seek(number * max(status.st_size - SAMPLE_BYTES, 0) // (SAMPLES - 1))
                    digest.update(opened.read(SAMPLE_BYTES))
        except OSError as error:
            raise BadInputError(f"cannot read {file}: {error.strerror}") from None
        return cls(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, digest.hexdigest())

    def is_unchanged(self, file: Path) -> bool:
        """Whether `file` still has this fingerprint, whatever its inode."""
        now = Fingerprint.of(file)
        return (self.size, self.modified, self.changed, self.digest) == (
            now.size,
            now.modified,
            now.changed,
            now.digest,
        )
