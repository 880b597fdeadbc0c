import httpx2
import pytest
from huggingface_hub import constants, errors, get_session

from hf_moe_lmc.checkpoints.hub_errors import BusyError, hub_access, hub_cause, hub_error
from hf_moe_lmc.checkpoints.hub_limits import TIMEOUT
from hf_moe_lmc.errors import BadInputError, HubError, OutputError

TOKEN = "hf_averysecrettokenofatestaverysecret"


def answered(status: int, kind: type = errors.HfHubHTTPError, said: str | None = None) -> Exception:
    request = httpx2.Request("GET", "https://hub.invalid", headers={"Authorization": f"Bearer {TOKEN}"})
    return kind("refused", response=httpx2.Response(status, request=request), server_message=said)


def caused(outer: Exception, inner: Exception) -> Exception:
    outer.__cause__ = inner
    return outer


ABSENT = "is not on the Hub, or the token may not see it"
READING = {
    "gated": (answered(403, errors.GatedRepoError), HubError, "org/a is gated; ask for access"),
    "no repository": (answered(401, errors.RepositoryNotFoundError), HubError, f"org/a {ABSENT}"),
    "no revision": (answered(404, errors.RevisionNotFoundError), HubError, "org/a has no revision v9"),
    "no file": (answered(404, errors.RemoteEntryNotFoundError), HubError, f"org/a@v9 {ABSENT}"),
    "not cached": (errors.LocalEntryNotFoundError("x"), HubError, "org/a@v9 is not in the cache"),
    "offline": (errors.OfflineModeIsEnabled("x"), HubError, "org/a@v9 is not in the cache"),
    "no token": (errors.LocalTokenNotFoundError("x"), HubError, "no token of the Hub was found"),
    "401": (answered(401), HubError, "the Hub does not accept the token for org/a; log in again"),
    "403": (answered(403), HubError, "the token may not read org/a@v9"),
    "429": (answered(429), BusyError, "the Hub has had too many requests from here (429)"),
    "500": (answered(500), BusyError, "the Hub failed (500) for org/a@v9; try again later"),
    "418": (answered(418, said="no tea"), HubError, "the Hub refused with 418 for org/a@v9 (no tea)"),
    "slow": (httpx2.ReadTimeout("x"), HubError, "the Hub did not answer in time for org/a@v9"),
    "no connection": (httpx2.ConnectError("x"), HubError, "the connection to the Hub failed for org/a@v9 (x)"),
    "of the client": (TypeError("x"), HubError, "the Hub answered something else than expected for org/a@v9"),
    "behind what is not cached": (
        caused(errors.LocalEntryNotFoundError("x"), answered(503)),
        BusyError,
        "the Hub failed (503) for org/a@v9",
    ),
}
WRITING = {
    "403": (answered(403), HubError, "the token may not write to org/a; use one with write access"),
    "409": (answered(409), HubError, "org/a was changed by another meanwhile"),
    "412": (answered(412), HubError, "org/a was changed by another meanwhile"),
    "offline": (errors.OfflineModeIsEnabled("x"), HubError, "the network may not be used (HF_HUB_OFFLINE is set)"),
    "an upload": (caused(RuntimeError("x"), answered(500)), BusyError, "the Hub failed (500)"),
    "a card": (ValueError("Invalid metadata in README.md"), BadInputError, "the Hub does not accept the metadata"),
}


@pytest.mark.parametrize("case", READING)
def test_reading(case):
    error, kind, line = READING[case]
    translated = hub_error(error, "org/a", "v9")
    assert type(translated) is kind
    assert str(translated).startswith(line)


@pytest.mark.parametrize("case", WRITING)
def test_writing(case):
    error, kind, line = WRITING[case]
    translated = hub_error(error, "org/a", writing=True, remedy="nothing\nwas sent")
    assert type(translated) is kind
    assert str(translated).startswith(line)
    assert str(translated).endswith("; nothing was sent")


def test_offline_data(monkeypatch):
    """`datasets` raises errors of its own where the network may not be used."""
    assert "connection" in str(hub_error(ConnectionError("x"), "dataset org/a", "main"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert str(hub_error(ConnectionError("x"), "dataset org/a", "main")).startswith("dataset org/a@main is not in the")


@pytest.mark.parametrize("given", [TOKEN, None])
def test_the_token_is_never_repeated(given, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    line = str(hub_error(answered(418, said=f"Bearer {TOKEN}"), "org/a", token=given, remedy=f"try --token {TOKEN}"))
    assert line == "the Hub refused with 418 for org/a (Bearer ***); try --token ***"


def test_the_cause():
    answer = answered(503)
    network = ConnectionError("x")
    assert hub_cause(caused(ValueError("x"), caused(answer, network))) is answer
    assert hub_cause(caused(ValueError("x"), caused(TimeoutError("x"), network))) is network
    assert hub_cause(caused(ValueError("x"), FileNotFoundError("x"))) is None
    assert hub_cause(None) is None


def access_and(error: Exception) -> None:
    with hub_access("org/a"):
        assert get_session().timeout.read == TIMEOUT
        raise error


def test_access():
    before = get_session().timeout
    with pytest.raises(HubError, match=r"the Hub failed \(500\)") as caught:
        access_and(answered(500))
    assert caught.value.__suppress_context__
    with pytest.raises(OutputError):
        access_and(OutputError("ours"))
    assert get_session().timeout == before
