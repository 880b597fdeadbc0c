"""What the command line says about an exception, and its exit code."""

import errno

from hf_moe_lmc.errors import HubError, MoeLmcError, OutputError, one_line

UNEXPECTED = 1
USAGE = 2
INTERRUPTED = 130
BROKEN_PIPE = 141

DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO}


class UsageError(MoeLmcError):
    """Arguments that do not go together."""

    exit_code = USAGE


def describe_failure(error: Exception) -> tuple[str, int]:
    """(one line, exit code)."""
    if isinstance(error, MoeLmcError):
        return str(error), error.exit_code
    if isinstance(error, OSError) and error.errno in DISK:
        return f"{error.filename or 'the output'}: {error.strerror}; make room and try again", OutputError.exit_code
    if _is_of_the_network(error):
        return f"the Hub or the network failed: {one_line(str(error))}; try again later", HubError.exit_code
    return f"{type(error).__name__}: {one_line(str(error))}; this was not foreseen, see it with --debug", UNEXPECTED


def _is_of_the_network(error: Exception) -> bool:
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    known = (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError, TimeoutError)
    return isinstance(error, known) or type(error).__module__.partition(".")[0].startswith("httpx")
