"""What the Hub or the network does wrong -> one line for people."""

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import get_session, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

from hf_moe_lmc.errors import BadInputError, HubError, MoeLmcError

TIMEOUT = 60  # seconds without a byte; the Hub's own client would wait for ever


@contextmanager
def hub_failures(repository: str, token: str | None, remedy: str) -> Iterator[None]:
    """Within, whatever fails between here and the Hub is a `HubError` that ends with `remedy`, without the token."""
    session = get_session()
    before = session.timeout
    session.timeout = TIMEOUT
    try:
        yield
    except MoeLmcError:
        raise
    except Exception as error:
        cause = _cause(error)
        line = " ".join(f"{describe(cause, repository)}; {remedy}".split())
        kind = BadInputError if _refuses_the_card(cause) else HubError
        # Without the cause: its text and its request may hold the token.
        raise kind(without_token(line, token)) from None
    finally:
        session.timeout = before


def describe(error: BaseException, repository: str) -> str:
    """What went wrong, and what to do about it."""
    if isinstance(error, OfflineModeIsEnabled):
        return "the network may not be used (HF_HUB_OFFLINE is set)"
    if isinstance(error, LocalTokenNotFoundError):
        return "no token of the Hub was found; log in (hf auth login)"
    if isinstance(error, HfHubHTTPError):
        return _describe_status(error, repository)
    if isinstance(error, HTTPError | OSError):
        if "Timeout" in type(error).__name__:
            return f"the Hub did not answer within {TIMEOUT} s"
        return f"the Hub cannot be reached ({error})"
    if _refuses_the_card(error):
        return f"the Hub does not accept the metadata of the card: {error}"
    return f"the Hub answered something else than expected ({type(error).__name__})"


def without_token(text: str, token: str | None) -> str:
    """`text`, in which stars stand for the token."""
    secret = token or get_token()
    return text.replace(secret, "***") if secret else text


def _describe_status(error: HfHubHTTPError, repository: str) -> str:
    status = error.response.status_code
    said = f" ({error.server_message})" if error.server_message else ""
    if status == 401:
        return f"the Hub does not accept the token for {repository}; log in again (hf auth login)"
    if status == 403:
        return f"the token may not write to {repository}{said}; use one with write access"
    if status == 404:
        return f"{repository} is not on the Hub, or the token may not see it"
    if status in (409, 412):
        return f"{repository} was changed by another meanwhile, or is being changed{said}"
    if status == 429:
        return "the Hub has had too many requests from here (429); wait some minutes"
    if status >= 500:
        return f"the Hub failed ({status}); try later"
    return f"the Hub refused with {status}{said}"


def _cause(error: BaseException) -> BaseException:
    """Uploads of large files wrap what went wrong into a RuntimeError."""
    while isinstance(error, RuntimeError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _refuses_the_card(error: BaseException) -> bool:
    return isinstance(error, ValueError) and "Invalid metadata" in str(error)
