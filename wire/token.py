"""The access token of a run, and the ASGI middleware that asks for it on every route.

One secret is shared by everything that belongs together: it lives in a file that only its owner can read, is named to
child processes by path (never by value), and is compared in constant time. `/health` alone is open, because a
supervisor must be able to ask whether a process lives before it is trusted with anything else.
"""

from __future__ import annotations

import hmac
import os
import secrets
from pathlib import Path
from typing import Any

from wire.errors import ConfigError

TOKEN_FILE_ENV = "RLHF_TOKEN_FILE"
OPEN_PATHS = frozenset({"/health"})


def read_or_create_token(path: str | Path) -> str:
    """The token in `path`; a fresh one, written with mode 0600, where there is none.

    Raises:
        ConfigError: the file is empty, or readable by others.
    """
    path = Path(path).expanduser()
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:  # two services started at once: the first one's token is everybody's
            return read_token(path)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(32) + "\n")
    return read_token(path)


def read_token(path: str | Path) -> str:
    """The token in `path`.

    Raises:
        ConfigError: no such file, an empty one, or one that others can read.
    """
    path = Path(path).expanduser()
    try:
        token = path.read_text().strip()
        mode = path.stat().st_mode & 0o077
    except OSError as error:
        raise ConfigError(f"token_file {path} cannot be read: {error.strerror}; copy it from the run's host") from error
    if not token:
        raise ConfigError(f"token_file {path} is empty; delete it and a new token is made")
    if mode:
        raise ConfigError(f"token_file {path} can be read by others (mode {mode:o}); run: chmod 600 {path}")
    return token


def auth_headers(token: str) -> dict[str, str]:
    """The HTTP header that carries the token."""
    return {"Authorization": f"Bearer {token}"}


def carries_token(authorization: bytes, token: str) -> bool:
    """Whether the value of an Authorization header is the token's; compared in constant time."""
    return hmac.compare_digest(authorization, auth_headers(token)["Authorization"].encode())


class TokenMiddleware:
    """ASGI middleware: 401 on every route but `/health` unless the request carries the token.

    Given to a stock vLLM server as `--middleware wire.token.TokenMiddleware`; the token's file is named by the
    environment variable `RLHF_TOKEN_FILE`. vLLM's own `--api-key` guards four prefixes only and leaves `/pause` and
    `/update_weights` open.
    """

    def __init__(self, app: Any, token: str | None = None) -> None:
        self.app = app
        if token is None:
            path = os.environ.get(TOKEN_FILE_ENV)
            if not path:
                raise ConfigError(f"{TOKEN_FILE_ENV} is not set: a server without a token must not start")
            token = read_token(path)
        self._token = token

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan" or scope.get("path") in OPEN_PATHS or self._is_authorised(scope):
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket" and "websocket.http.response" not in scope.get("extensions", {}):
            await send({"type": "websocket.close", "code": 1008})
        else:
            kind = "websocket.http" if scope["type"] == "websocket" else "http"
            body = b'{"error": "this route needs the run\'s access token"}'
            headers = [(b"content-type", b"application/json"), (b"www-authenticate", b"Bearer")]
            await send({"type": f"{kind}.response.start", "status": 401, "headers": headers})
            await send({"type": f"{kind}.response.body", "body": body})

    def _is_authorised(self, scope: Any) -> bool:
        given = b"".join(value for name, value in scope["headers"] if name == b"authorization")
        return carries_token(given, self._token)
