"""Requests to a platform that misbehaves come back soon, with a reason."""

import time
from collections.abc import Callable

import pytest
import requests

from fedmap.service.transport import MAX_ANSWER_BYTES, Bounded, Refused, reason_of, without_password
from tests.platforms import Request, dripping, endless, garbled, raw, recorder, rubbish, silent, stopping


@pytest.mark.parametrize(
    ("talk", "reason"),
    [
        (silent, "no answer in time"),
        (endless, f"the answer is longer than {MAX_ANSWER_BYTES >> 20} MiB"),
        (dripping, "the answer did not end within 0.3 s"),
        (rubbish, "no connection"),
        (stopping, "no connection"),
        (garbled, "no connection"),
    ],
)
def test_a_server_that_misbehaves_costs_no_more_than_its_time(talk: Callable[..., None], reason: str) -> None:
    with raw(talk) as url:
        started = time.monotonic()
        with pytest.raises(requests.RequestException) as caught:
            Bounded(0.3).put(url, data="{}")
        assert time.monotonic() - started < 3.0
        assert not isinstance(caught.value, Refused), "it may answer the next time"
    assert reason_of(caught.value) == reason


def test_nobody_there() -> None:
    with raw(silent) as url:
        pass
    with pytest.raises(requests.ConnectionError) as caught:
        Bounded(0.3).get(url)
    assert reason_of(caught.value) == "no connection"


@pytest.mark.parametrize(
    ("status", "final"), [(500, False), (503, False), (429, False), (400, True), (401, True), (404, True), (422, True)]
)
def test_a_refusal_is_told_from_trouble(status: int, final: bool) -> None:
    with (
        recorder(lambda request: (status, b"<html>")) as platform,
        pytest.raises(requests.RequestException, match=f"HTTP {status}") as caught,
    ):
        Bounded(2).put(f"{platform.url}/x")
    assert isinstance(caught.value, Refused) == final


def test_a_redirect_keeps_method_body_and_password_and_stays_on_the_host() -> None:
    def answer(request: Request) -> tuple[int, bytes, dict[str, str]]:
        if request.path.startswith("/old"):
            return 307, b"", {"location": "/new?kept=1"}
        return 200, b'{"ok": true}', {}

    with recorder(answer) as platform:
        address = platform.url.replace("://", "://fedmap:secret@")
        response = Bounded(2).put(f"{address}/old", data="text", params={"a": "b"})
        assert response.json() == {"ok": True}
        assert [(r.method, r.path, r.body) for r in platform.seen] == [
            ("PUT", "/old?a=b", b"text"),
            ("PUT", "/new?kept=1", b"text"),
        ]
        with (
            recorder(lambda request: (302, b"", {"location": f"{platform.url}/stolen"})) as thief,
            pytest.raises(Refused, match="points to another host"),
        ):
            Bounded(2).get(thief.url)
        assert len(platform.seen) == 2


def test_redirects_end() -> None:
    with recorder(lambda request: (307, b"", {"location": "/again"})) as platform, pytest.raises(requests.TooManyRedirects):
        Bounded(2).get(platform.url)


def test_passwords_are_hidden() -> None:
    assert without_password("see http://fedmap:abc@host:1/x and https://t@h") == "see http://***@host:1/x and https://***@h"
    assert reason_of(ValueError("no http://u:p@h here")) == "no http://***@h here"
    assert reason_of(KeyError()) == "KeyError"
