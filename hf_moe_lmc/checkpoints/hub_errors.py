"""Failures of the Hub and of the network -> one line for people, without the token.

The one place that knows what the client of the Hub raises. Its interface:

- `hub_access(repository, revision, ...)`: a context in which every failure becomes one of our errors. For the code that
  talks to the Hub itself.
- `hub_error(error, repository, revision, ...)`: that translation of one exception; `str()` of it is the line.
- `hub_cause(error)`: the exception of the Hub or the network behind `error`, or None. For code that must first find out
  whether a failure of something else (`datasets`, a whole command) was one of the Hub.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus

from huggingface_hub import constants, get_token
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from hf_moe_lmc.errors import BadInputError, HubError, MoeLmcError

from .hub_limits import limited_answers

OF_THE_NETWORK = (HTTPError, LocalEntryNotFoundError, LocalTokenNotFoundError, ConnectionError, TimeoutError)


class BusyError(HubError):
    """The Hub may do it the next time."""


@contextmanager
def hub_access(
    repository: str,
    revision: str | None = None,
    *,
    writing: bool = False,
    token: str | bool | None = None,
    remedy: str | None = None,
) -> Iterator[None]:
    """Within, whatever fails is raised as `hub_error` makes it, and the Hub is held to `hub_limits.limited_answers`.

    Our own errors pass unchanged. Arguments as for `hub_error`.
    """
    try:
        with limited_answers():
            yield
    except MoeLmcError:
        raise
    except Exception as error:
        # Without the cause: its text and its request may hold the token.
        raise hub_error(error, repository, revision, writing=writing, token=token, remedy=remedy) from None


def hub_error(
    error: BaseException,
    repository: str,
    revision: str | None = None,
    *,
    writing: bool = False,
    token: str | bool | None = None,
    remedy: str | None = None,
) -> MoeLmcError:
    """`error` as one of our errors, in one line: what went wrong, and what to do.

    Args:
        error: anything that was raised while the Hub was asked; what caused it is looked up.
        repository: its name, with "dataset " before that of a dataset.
        revision: branch, tag or commit, if one was asked for.
        writing: whether it was to be written to.
        token: that was used, which is never repeated; None is that of `hf auth login` or HF_TOKEN.
        remedy: ends the line, for instance with the command that tries again.

    Returns:
        HubError; BusyError where waiting helps; BadInputError where the Hub refuses what was sent.
    """
    # Says more than the 400 that it comes from.
    refused = isinstance(error, ValueError) and "Invalid metadata" in str(error)
    kind, line = _translated((not refused and hub_cause(error)) or error, repository, revision, writing)
    line = " ".join(f"{line}; {remedy}".split() if remedy else line.split())
    for secret in (token, get_token()):
        line = line.replace(secret, "***") if isinstance(secret, str) and secret else line
    return kind(line)


def hub_cause(error: BaseException | None) -> BaseException | None:
    """The answer of the Hub that led to `error`, or else the innermost failure of the network; None if neither."""
    cause = None
    while error is not None and not isinstance(cause, HfHubHTTPError):
        # Of the client's own library for HTTP, some have no common base.
        if isinstance(error, OF_THE_NETWORK) or type(error).__module__.startswith("httpx"):
            cause = error
        error = error.__cause__
    return cause


def _translated(
    error: BaseException, repository: str, revision: str | None, writing: bool
) -> tuple[type[MoeLmcError], str]:
    place = f"{repository}@{revision}" if revision else repository
    match error:
        case LocalTokenNotFoundError():
            return HubError, "no token of the Hub was found; log in (hf auth login)"
        case OfflineModeIsEnabled() if writing:
            return HubError, "the network may not be used (HF_HUB_OFFLINE is set)"
        case OfflineModeIsEnabled() | LocalEntryNotFoundError():
            return HubError, f"{place} is not in the cache, and the network may not be used"
        case ConnectionError() if constants.HF_HUB_OFFLINE:
            return HubError, f"{place} is not in the cache, and the network may not be used"
        case GatedRepoError():
            return HubError, f"{repository} is gated; ask for access on its page and log in (hf auth login)"
        case RevisionNotFoundError():
            return HubError, f"{repository} has no revision {revision}"
        case RepositoryNotFoundError():
            return HubError, _absent(repository)
        case HfHubHTTPError():
            return _answered(error, repository, place, writing)
        case EntryNotFoundError():
            return HubError, f"{place}: {error}"
        case ValueError() if "Invalid metadata" in str(error):
            return BadInputError, f"the Hub does not accept the metadata of the card: {error}"
        case HTTPError() | OSError() if "Timeout" in type(error).__name__:
            return HubError, f"the Hub did not answer in time for {place}; try again later"
        case HTTPError() | OSError():
            reason = str(error) or type(error).__name__
            return HubError, f"the connection to the Hub failed for {place} ({reason}); try again later"
        case _:  # of the client, which takes any answer for the one it expects
            name = type(error).__name__
            return HubError, f"the Hub answered something else than expected for {place} ({name}); try again later"


def _answered(error: HfHubHTTPError, repository: str, place: str, writing: bool) -> tuple[type[MoeLmcError], str]:
    status, said = error.response.status_code, f" ({error.server_message})" if error.server_message else ""
    match status:
        case HTTPStatus.UNAUTHORIZED:
            return HubError, f"the Hub does not accept the token for {repository}; log in again (hf auth login)"
        case HTTPStatus.FORBIDDEN if writing:
            return HubError, f"the token may not write to {repository}{said}; use one with write access"
        case HTTPStatus.FORBIDDEN:
            return HubError, f"the token may not read {place}{said}; ask for access on its page"
        case HTTPStatus.NOT_FOUND:
            return HubError, _absent(place)
        case HTTPStatus.CONFLICT | HTTPStatus.PRECONDITION_FAILED:
            return HubError, f"{repository} was changed by another meanwhile, or is being changed{said}; try again"
        case HTTPStatus.TOO_MANY_REQUESTS:
            return BusyError, f"the Hub has had too many requests from here ({status}) for {place}; wait some minutes"
        case _ if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return BusyError, f"the Hub failed ({status}) for {place}; try again later"
        case _:
            return HubError, f"the Hub refused with {status} for {place}{said}"


def _absent(place: str) -> str:
    return f"{place} is not on the Hub, or the token may not see it; check the name and log in (hf auth login)"
