"""Limits of time and size on the answers of the Hub, which may be slow, broken, or somebody else.

The client of the Hub reads answers without any: one that drips, or never ends, would hold a process for ever.
"""

import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from huggingface_hub import constants, get_session
from huggingface_hub.utils import hf_raise_for_status

TIMEOUT = 60  # seconds without a byte
DEADLINE = 300  # seconds for all answers of the Hub in one piece of work, files aside
SLOWEST = 1000  # bytes a second of a file, after `TIMEOUT`
LARGEST = 100_000_000  # bytes of all answers, files aside


@contextmanager
def limited_answers() -> Iterator[None]:
    """Within, an answer that exceeds a limit, or is compressed unasked, ends in a `TimeoutError` or `ConnectionError`.

    The limits are those of this module. A Hub that asks to wait longer than `TIMEOUT` is taken as having refused.
    """
    session, limits = get_session(), _Limits()
    timeout, hooks = session.timeout, session.event_hooks
    session.timeout = TIMEOUT
    session.event_hooks = {
        "request": [*hooks["request"], limits.on_request],
        "response": [*hooks["response"], limits.on_response],
    }
    try:
        yield
    finally:
        session.timeout, session.event_hooks = timeout, hooks


@dataclass
class _Limits:
    """Time and size that answers took so far, files aside."""

    seconds: float = 0.0
    nbytes: int = 0

    def on_request(self, request: Any) -> None:
        request.headers["Accept-Encoding"] = "identity"  # a compressed answer may grow without bound
        request.extensions = request.extensions | {"started": time.monotonic()}

    def on_response(self, response: Any) -> None:
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise ConnectionError("an answer is compressed, which it should not be")
        if response.status_code >= 400 and _wait(response.headers) > TIMEOUT:
            hf_raise_for_status(response)
        started = response.request.extensions["started"]
        url = str(response.request.url)
        of_file = "/resolve/" in url or not url.startswith(constants.ENDPOINT)
        check = self._check_file if of_file else self._check
        response.stream = _limited(
            response.stream, lambda nbytes, last: check(time.monotonic() - started, nbytes, last)
        )

    def _check_file(self, seconds: float, nbytes: int, last: bool) -> None:
        if seconds > TIMEOUT + nbytes / SLOWEST:
            raise TimeoutError

    def _check(self, seconds: float, nbytes: int, last: bool) -> None:
        if self.seconds + seconds > DEADLINE:
            raise TimeoutError
        if self.nbytes + nbytes > LARGEST:
            raise ConnectionError(f"answers hold more than {LARGEST} bytes")
        if last:
            self.seconds += seconds
            self.nbytes += nbytes


def _limited(stream: Any, check: Any) -> Any:
    """The stream of a response's body; `check(nbytes, last)` is called after every part and at the end."""
    client = sys.modules[type(stream).__module__.partition(".")[0]]  # httpx2, or httpx in older versions

    class Limited(client.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            nbytes = 0
            for part in stream:
                nbytes += len(part)
                check(nbytes, False)
                yield part
            check(nbytes, True)

        def close(self) -> None:
            stream.close()

        def __getattr__(self, name: str) -> Any:
            return getattr(stream, name)

    return Limited()


def _wait(headers: Any) -> float:
    """Seconds that the Hub asks to wait, as its client reads them."""
    retry, rate = headers.get("Retry-After", "").strip(), re.search(r"\bt=(\d+)", headers.get("RateLimit", ""))
    return float(retry) if retry.isdecimal() else float(rate.group(1)) if rate else 0.0
