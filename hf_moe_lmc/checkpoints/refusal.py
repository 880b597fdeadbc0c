"""What the client of the Hub raises -> one line for people."""

from http import HTTPStatus

from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from hf_moe_lmc.errors import HubError


class BusyError(HubError):
    """The Hub may answer the next time."""


def refusal(error: Exception, repository: str, revision: str) -> HubError:
    """What went wrong with `repository` at `revision`, and what to do about it; `BusyError` if waiting helps."""
    match error:
        case GatedRepoError():
            return HubError(f"{repository} is gated; ask for access on its page and log in (hf auth login)")
        case RepositoryNotFoundError():
            return HubError(f"{repository} is not on the Hub, or is private; check the name, log in (hf auth login)")
        case RevisionNotFoundError():
            return HubError(f"{repository} has no revision {revision}")
        case ConnectionError() if constants.HF_HUB_OFFLINE:
            return HubError(f"{repository}@{revision} is not in the cache, and the network may not be used")
        case EntryNotFoundError():
            return HubError(f"{repository}@{revision}: {error}")
        case HfHubHTTPError():
            return _answered(error.response.status_code, repository, revision)
        case HTTPError() | OSError():
            return HubError(
                f"the connection to the Hub failed for {repository}@{revision} ({_one_line(error)}); try again later, "
                "what has arrived is kept"
            )
        case _:  # of the client, which takes any answer for the one it expects
            return HubError(
                f"the Hub answered something else than expected for {repository}@{revision} ({type(error).__name__}); "
                "try again later"
            )


def _answered(status: int, repository: str, revision: str) -> HubError:
    if status == HTTPStatus.UNAUTHORIZED:
        return HubError(f"the Hub does not accept the token for {repository}; log in anew (hf auth login)")
    kind = BusyError if status == HTTPStatus.TOO_MANY_REQUESTS or status >= 500 else HubError
    return kind(f"the Hub answered {status} for {repository}@{revision}; try again later")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
