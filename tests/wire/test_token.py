"""The access token: its file, and the middleware that asks for it."""

import stat

import pytest

from wire.errors import ConfigError
from wire.token import TOKEN_FILE_ENV, TokenMiddleware, auth_headers, read_or_create_token, read_token

TOKEN = "correct-horse"


@pytest.fixture
def token_file(tmp_path):
    path = tmp_path / "token"
    path.write_text(TOKEN + "\n")
    path.chmod(0o600)
    return path


def test_a_first_use_makes_a_token_only_its_owner_can_read(tmp_path):
    path = tmp_path / "deep" / "token"
    token = read_or_create_token(path)
    assert len(token) >= 32 and stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_or_create_token(path) == read_token(path) == token
    assert read_or_create_token(tmp_path / "other") != token


def test_an_existing_token_is_taken_as_it_is(token_file):
    assert read_or_create_token(token_file) == TOKEN
    assert auth_headers(TOKEN) == {"Authorization": f"Bearer {TOKEN}"}


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o620])
def test_a_token_that_others_can_reach_is_refused(token_file, mode):
    token_file.chmod(mode)
    for read in (read_token, read_or_create_token):
        with pytest.raises(ConfigError, match="chmod 600"):
            read(token_file)


@pytest.mark.parametrize("content", ["", "\n", "  \n"])
def test_an_empty_token_is_refused(token_file, content):
    token_file.write_text(content)
    for read in (read_token, read_or_create_token):
        with pytest.raises(ConfigError, match="is empty"):
            read(token_file)


def test_a_token_file_that_is_not_there_is_refused_where_none_is_made(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_token(tmp_path / "token")


def test_a_server_without_a_token_does_not_start(monkeypatch, token_file):
    monkeypatch.delenv(TOKEN_FILE_ENV, raising=False)
    with pytest.raises(ConfigError, match=TOKEN_FILE_ENV):
        TokenMiddleware(None)
    monkeypatch.setenv(TOKEN_FILE_ENV, str(token_file))
    assert TokenMiddleware(None)._is_authorised({"headers": [(b"authorization", b"Bearer " + TOKEN.encode())]})


async def messages_for(scope):
    """What the middleware sends for `scope`; `inside` stands for the guarded application."""
    sent = []

    async def app(scope, receive, send):
        sent.append("inside")

    async def send(message):
        sent.append(message)

    await TokenMiddleware(app, TOKEN)(scope, None, send)
    return sent


def http(path, *authorization):
    return {"type": "http", "path": path, "headers": [(b"authorization", value) for value in authorization]}


RIGHT = b"Bearer " + TOKEN.encode()


@pytest.mark.parametrize(
    "authorization",
    [(), (b"",), (b"Bearer",), (b"Bearer wrong",), (TOKEN.encode(),), (b"bearer " + TOKEN.encode(),), (RIGHT + b"x",),
     (RIGHT[:-1],), (RIGHT, RIGHT), (b"Bearer \xff",), (b"Basic " + TOKEN.encode(),)],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/", "/docs", "/pause", "/health/", "/health/x", "//health", "/HEALTH", ""])
async def test_a_request_without_the_token_is_answered_401(path, authorization):
    start, body = await messages_for(http(path, *authorization))
    assert start["status"] == 401 and (b"www-authenticate", b"Bearer") in start["headers"]
    assert b"token" in body["body"] and TOKEN.encode() not in body["body"]


async def test_the_token_opens_every_route_and_health_is_open_to_all():
    assert await messages_for(http("/pause", RIGHT)) == ["inside"]
    assert await messages_for(http("/health")) == ["inside"]


async def test_a_websocket_without_the_token_is_closed_for_breach_of_policy():
    scope = {"type": "websocket", "path": "/stream", "headers": []}
    assert await messages_for(scope) == [{"type": "websocket.close", "code": 1008}]
    assert await messages_for({**scope, "headers": [(b"authorization", RIGHT)]}) == ["inside"]


async def test_a_websocket_without_the_token_is_answered_401_where_the_server_can_say_so():
    scope = {"type": "websocket", "path": "/stream", "headers": [], "extensions": {"websocket.http.response": {}}}
    start, body = await messages_for(scope)
    assert (start["type"], start["status"]) == ("websocket.http.response.start", 401)
    assert body["type"] == "websocket.http.response.body" and b"token" in body["body"]
    assert await messages_for({**scope, "headers": [(b"authorization", RIGHT)]}) == ["inside"]


async def test_the_lifespan_of_the_guarded_application_runs_without_a_token():
    assert await messages_for({"type": "lifespan"}) == ["inside"]
