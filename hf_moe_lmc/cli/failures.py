"""What the command line says about an exception, and its exit code."""

import errno

from hf_moe_lmc.errors import HubError, MoeLmcError, OutputError, one_line

UNEXPECTED = 1
USAGE = 2
INTERRUPTED = 130
BROKEN_PIPE = 141

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class UsageError(MoeLmcError):
    """Arguments that do not go together."""

    exit_code = USAGE


def describe_failure(error: Exception) -> tuple[str, int]:
    """(one line, exit code)."""
    if isinstance(error, MoeLmcError):
        return str(error), error.exit_code
    if _is_of_another_process(error):
        remedy = "see what it said, and run the same command again to go on"
        return f"another process of this job has ended, or never began; {remedy}", INTERRUPTED
    if _is_of_the_network(error):
        return f"the Hub or the network failed: {one_line(str(error))}; try again later", HubError.exit_code
    if isinstance(error, OSError) and error.strerror:
        remedy = "make room" if error.errno in FULL else "mend that"
        place = one_line(str(error.filename or "the disk"))
        return f"{place}: {error.strerror}; {remedy} and try again", OutputError.exit_code
    return f"{type(error).__name__}: {one_line(str(error))}; this was not foreseen, see it with --debug", UNEXPECTED


def _is_of_another_process(error: Exception) -> bool:
    """Whether torch.distributed has lost one: its own errors, and plain ones of Gloo."""
    return type(error).__name__.startswith("Dist") or (isinstance(error, RuntimeError) and "/gloo/" in str(error))


def _is_of_the_network(error: Exception) -> bool:
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    known = (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError, TimeoutError)
    return isinstance(error, known) or type(error).__module__.partition(".")[0].startswith("httpx")
