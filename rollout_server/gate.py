"""A replica starts empty, and serves nothing until its first push: the server itself holds that gate."""

from __future__ import annotations

from typing import Any

GENERATING_PREFIXES = ("/v1/", "/v2/", "/inference/")
FINISHED_PUSH = "/finish_weight_update"


class WeightGateMiddleware:
    """ASGI middleware: 503 on every generating route until `/finish_weight_update` has once answered 200.

    A server started with `--load-format dummy` holds random weights. It would answer, and nothing in the answer would
    show that the text is noise.
    """

    def __init__(self, app: Any) -> None:
        self.app = app
        self.has_weights = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
        elif not self.has_weights and scope["method"] == "POST" and scope["path"].startswith(GENERATING_PREFIXES):
            body = b'{"error": "this replica has no weights yet: it serves after its first push"}'
            await send(
                {"type": "http.response.start", "status": 503, "headers": [(b"content-type", b"application/json")]}
            )
            await send({"type": "http.response.body", "body": body})
        elif scope["path"] == FINISHED_PUSH:
            await self.app(scope, receive, self._watch(send))
        else:
            await self.app(scope, receive, send)

    def _watch(self, send: Any) -> Any:
        async def forward(message: Any) -> None:
            if message["type"] == "http.response.start" and message["status"] == 200:
                self.has_weights = True
            await send(message)

        return forward
