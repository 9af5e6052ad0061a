"""The token and the rules of the gate."""

import asyncio
import base64
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from starlette.datastructures import Headers

from fedmap.errors import ConfigError
from fedmap.service.gate import Gate, Rules
from fedmap.service.security import credentials, load_token, matches

TOKEN = "abcdefghijklmnopqrstuvwxyz"
BEARER = {"authorization": f"Bearer {TOKEN}"}
HERE = {"host": "127.0.0.1:8080"}


def test_a_token_is_made_once_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "token"
    token, made = load_token(file)
    assert made
    assert len(token) >= 32
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert load_token(file) == (token, False)
    assert [path.name for path in file.parent.iterdir()] == ["token"]
    assert load_token(tmp_path / "other")[0] != token


def test_programs_that_start_at_once_agree_on_one_token(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        tokens = list(pool.map(lambda _: load_token(tmp_path / "token"), range(24)))
    assert len({token for token, _ in tokens}) == 1
    assert sum(made for _, made in tokens) == 1


def test_a_token_that_others_can_read_or_that_is_none_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN)
    file.chmod(0o644)
    with pytest.raises(ConfigError, match="can be read by others .mode 644.; `chmod 600"):
        load_token(file)
    file.chmod(0o600)
    assert load_token(file) == (TOKEN, False)
    for content in ("", "short", "with blank inside it, long", "x" * 300):
        file.write_text(content)
        with pytest.raises(ConfigError, match="holds no token"):
            load_token(file)
    file.write_bytes(b"\xff" * 20)
    with pytest.raises(ConfigError, match="cannot be used"):
        load_token(file)
    with pytest.raises(ConfigError, match="cannot be used"):
        load_token(file / "below")


@pytest.mark.parametrize(
    ("header", "token"),
    [
        ("Bearer abc", "abc"),
        ("bearer   abc ", "abc"),
        ("Basic " + base64.b64encode(b"fedmap:abc:d").decode(), "abc:d"),
        ("Basic !!!", ""),
        ("Basic " + base64.b64encode(b"\xff:\xff").decode(), ""),
        ("Digest abc", ""),
        ("", ""),
        ("Bearer", ""),
    ],
)
def test_a_token_comes_as_bearer_or_as_the_password_of_basic(header: str, token: str) -> None:
    assert credentials(header) == token


def test_without_a_token_nothing_matches() -> None:
    assert matches(TOKEN, f"Bearer {TOKEN}")
    assert not matches(TOKEN, f"Bearer {TOKEN}x")
    assert not matches(TOKEN, "Bearer \udcff")
    assert not matches(None, "Bearer ")
    assert not matches(None, "")


def refusal(rules: Rules, method: str, path: str, **headers: str) -> int:
    found = rules.refusal(method, path, Headers({name.replace("_", "-"): value for name, value in headers.items()}))
    return 0 if found is None else found[0]


def test_reading_is_free_on_this_machine_and_writing_needs_the_token() -> None:
    rules = Rules(TOKEN, forms=frozenset({"/predict"}))
    assert refusal(rules, "GET", "/status", **HERE) == 0
    assert refusal(rules, "PUT", "/FLSe/cluster/t", **HERE) == 401
    assert refusal(rules, "DELETE", "/status", **HERE) == 401
    assert refusal(rules, "PUT", "/FLSe/cluster/t", **HERE, **BEARER) == 0
    assert refusal(Rules(None), "PUT", "/FLSe/cluster/t", **HERE, **BEARER) == 403


@pytest.mark.parametrize("host", ["localhost", "localhost:8080", "127.0.0.1", "127.1.2.3:1", "[::1]:8080", "[::1]"])
def test_names_of_this_machine(host: str) -> None:
    assert refusal(Rules(TOKEN), "GET", "/status", host=host) == 0


@pytest.mark.parametrize(
    "host", ["", "evil.example", "evil.example:8080", "127.0.0.1.evil.example", "localhost.evil", "10.0.0.1", "[::2]", "["]
)
def test_a_foreign_name_is_refused_because_a_foreign_page_may_have_led_here(host: str) -> None:
    assert refusal(Rules(TOKEN), "GET", "/status", host=host) == 421
    assert refusal(Rules(TOKEN), "PUT", "/x", host=host, **BEARER) == 421


def test_a_public_front_wants_the_token_for_everything_but_its_health() -> None:
    rules = Rules(TOKEN, public=True, forms=frozenset({"/predict"}))
    assert refusal(rules, "GET", "/status", host="server.example") == 401
    assert refusal(rules, "GET", "/", host="server.example") == 401
    assert refusal(rules, "GET", "/health/live", host="server.example") == 0
    assert refusal(rules, "POST", "/health/live", host="server.example") == 401
    assert refusal(rules, "POST", "/predict", host="server.example", sec_fetch_site="same-origin") == 401
    assert refusal(rules, "GET", "/status", host="server.example", **BEARER) == 0


def test_a_form_of_this_very_front_needs_no_token_on_this_machine() -> None:
    rules = Rules(TOKEN, forms=frozenset({"/predict"}))
    assert refusal(rules, "POST", "/predict", **HERE, sec_fetch_site="same-origin", origin="http://127.0.0.1:8080") == 0
    assert refusal(rules, "POST", "/predict", **HERE, origin="http://127.0.0.1:8080") == 0
    assert refusal(rules, "POST", "/predict", **HERE) == 401
    assert refusal(rules, "POST", "/predict", **HERE, sec_fetch_site="none") == 0
    assert refusal(rules, "POST", "/predict/other", **HERE, sec_fetch_site="same-origin") == 401


@pytest.mark.parametrize("public", [True, False])
@pytest.mark.parametrize(
    "page",
    [
        {"sec_fetch_site": "cross-site", "origin": "http://127.0.0.1:8080"},
        {"sec_fetch_site": "same-site"},
        {"origin": "http://evil.example"},
        {"origin": "http://127.0.0.1:8081"},
        {"origin": "null"},
    ],
)
def test_a_foreign_page_may_not_write_even_where_the_browser_knows_the_token(public: bool, page: dict[str, str]) -> None:
    rules = Rules(TOKEN, public=public, forms=frozenset({"/predict"}))
    assert refusal(rules, "POST", "/predict", **HERE, **page) == 403
    assert refusal(rules, "PUT", "/FLSe/cluster/t", **HERE, **page, **BEARER) == 403
    assert refusal(rules, "PUT", "/FLSe/cluster/t", **HERE, **BEARER, origin="http://127.0.0.1:8080") == 0


@pytest.mark.parametrize(("words", "passes"), [("the handler is closed", False), ("the page is broken", True)])
def test_who_hangs_up_before_the_answer_is_no_error_of_the_front(words: str, passes: bool) -> None:
    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: object) -> None:
        raise RuntimeError(words)

    async def app(scope: object, receive: object, send: object) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})  # type: ignore[operator]

    scope = {"type": "http", "method": "GET", "path": "/health/live", "headers": [(b"host", b"127.0.0.1")]}
    answered = asyncio.new_event_loop()
    try:
        call = Gate(app, Rules())(scope, receive, send)  # type: ignore[arg-type]
        if passes:
            with pytest.raises(RuntimeError, match=words):
                answered.run_until_complete(call)
        else:
            answered.run_until_complete(call)
    finally:
        answered.close()
