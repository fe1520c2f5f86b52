"""What a replica's own server refuses: to serve weights that are not whole, and calls that were meant for another.

    empty --start_weight_update--> loading --finish_weight_update, 200--> whole --start_weight_update--> loading ...

Generation is open in `whole` alone. A server started with `--load-format dummy` holds random weights, and one whose
push broke off holds a mixture: either would answer, and nothing in the answer would show it.
"""

from __future__ import annotations

import json
import secrets
from enum import StrEnum
from typing import Any

from wire.membership import BOOT_HEADER, PUSH_HEADER

GENERATING_PREFIXES = ("/v1/", "/v2/", "/inference/")
START, UPDATE, FINISH, RESUME, STATE = (
    "/start_weight_update",
    "/update_weights",
    "/finish_weight_update",
    "/resume",
    "/gate",
)


class Weights(StrEnum):
    """What the server holds."""

    EMPTY = "empty"  # what it started with
    LOADING = "loading"  # a push has begun and is not finished; it may never be
    WHOLE = "whole"


class WeightGateMiddleware:
    """ASGI middleware of a replica.

    - 503 on every generating route unless the weights are whole.
    - 409 on a request whose `x-boot-id` is not this process's; every answer carries its own.
    - 409 on a part of a push whose `x-push-id` is not that of the last `/start_weight_update`, and on a second
      `/update_weights` of one push. A repeated `/finish_weight_update` is answered without doing it again.
    - 409 on `/resume` while weights are loading: requests that were kept would go on with the mixture.
    - `GET /gate` says in which state it is.
    - `POST /gate` makes it as it was when it started, with another boot id: who used the server before, and whatever
      still sends weights to it, is refused from then on.
    """

    def __init__(self, app: Any) -> None:
        self.app = app
        self._begin()

    def _begin(self) -> None:
        self.boot_id = secrets.token_hex(8)
        self.weights = Weights.EMPTY
        self.push_id: str | None = None  # of the push that began last
        self._is_updated = False  # whether that push has had its /update_weights
        self._finished_push: str | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        send = self._signed(send)
        method, path = scope["method"], scope["path"]
        boot_id, push_id = _header(scope, BOOT_HEADER), _header(scope, PUSH_HEADER)
        if boot_id is not None and boot_id != self.boot_id:
            await _answer(send, 409, error=f"this is boot {self.boot_id}; the request was meant for boot {boot_id}")
        elif path == STATE:
            if method == "POST":
                self._begin()
            await _answer(send, 200, boot_id=self.boot_id, weights=self.weights, push_id=self.push_id)
        elif method == "POST" and (refusal := self._refusal(path, push_id)):
            status, why = refusal
            await _answer(send, status, error=why)
        elif path == FINISH and push_id is not None and push_id == self._finished_push:
            await _answer(send, 200, message="this push is finished")
        else:
            self._note_beginning(path, push_id)
            await self.app(scope, receive, self._noting_end(send) if path == FINISH else send)

    def _refusal(self, path: str, push_id: str | None) -> tuple[int, str] | None:
        if path.startswith(GENERATING_PREFIXES) and self.weights is not Weights.WHOLE:
            why = {
                Weights.EMPTY: "this replica has no weights yet: it serves after its first push",
                Weights.LOADING: "this replica's weights are not whole: it serves again when a push is finished",
            }
            return 503, why[self.weights]
        if path == RESUME and self.weights is Weights.LOADING:
            return 409, "the weights are not whole: requests that were kept must not go on with them"
        if path in (UPDATE, FINISH) and push_id is not None:
            if push_id != self.push_id:
                return 409, f"push {push_id} is not the one that began last ({self.push_id})"
            if path == UPDATE and self._is_updated:
                return 409, f"push {push_id} was received already"
        return None

    def _note_beginning(self, path: str, push_id: str | None) -> None:
        if path == START:
            self.weights, self.push_id, self._is_updated = Weights.LOADING, push_id, False
        elif path == UPDATE:
            self._is_updated = True

    def _noting_end(self, send: Any) -> Any:
        push = self.boot_id, self.push_id

        async def forward(message: Any) -> None:
            # Another push may have begun meanwhile; then this one's end says nothing.
            is_last = push == (self.boot_id, self.push_id)
            if message["type"] == "http.response.start" and message["status"] == 200 and is_last:
                self.weights, self._finished_push = Weights.WHOLE, push[1]
            await send(message)

        return forward

    def _signed(self, send: Any) -> Any:
        async def forward(message: Any) -> None:
            if message["type"] == "http.response.start":
                signature = (BOOT_HEADER.encode(), self.boot_id.encode())
                message = {**message, "headers": [*message.get("headers", ()), signature]}
            await send(message)

        return forward


def _header(scope: Any, name: str) -> str | None:
    wanted = name.encode()
    return next((value.decode("latin-1") for key, value in scope.get("headers", ()) if key == wanted), None)


async def _answer(send: Any, status: int, **content: Any) -> None:
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(content).encode()})
