"""A replica without weights serves nothing."""

from __future__ import annotations

from typing import Any

import pytest

from rollout_server.gate import WeightGateMiddleware

GENERATE = ("POST", "/inference/v1/generate")


class Engine:
    """The application behind the gate; `status` is what it answers to everything."""

    def __init__(self) -> None:
        self.status = 200

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": self.status})
            await send({"type": "http.response.body", "body": b"inside"})
        else:
            await send({"type": f"{scope['type']}.inside"})


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def gate(engine: Engine) -> WeightGateMiddleware:
    return WeightGateMiddleware(engine)


async def ask(gate: WeightGateMiddleware, method: str, path: str) -> tuple[int, bytes]:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    await gate({"type": "http", "method": method, "path": path}, None, send)
    start, body = sent
    return start["status"], body["body"]


@pytest.mark.parametrize("path", ["/inference/v1/generate", "/v1/completions", "/v1/chat/completions", "/v2/rerank"])
async def test_before_the_first_push_a_generating_route_answers_503_and_says_why(gate, path: str) -> None:
    status, body = await ask(gate, "POST", path)
    assert status == 503 and b"no weights yet" in body


async def test_after_the_first_whole_push_the_gate_is_open_for_good(gate, engine) -> None:
    assert await ask(gate, "POST", "/finish_weight_update") == (200, b"inside")
    assert await ask(gate, *GENERATE) == (200, b"inside")
    engine.status = 500
    await ask(gate, "POST", "/finish_weight_update")
    engine.status = 200
    assert (await ask(gate, *GENERATE))[0] == 200  # a fleet's version says what it holds; the gate knows only "noise"


@pytest.mark.parametrize("status", [400, 401, 500])
async def test_a_push_that_failed_leaves_the_gate_shut(gate, engine, status: int) -> None:
    engine.status = status
    assert await ask(gate, "POST", "/finish_weight_update") == (status, b"inside")
    engine.status = 200
    assert (await ask(gate, *GENERATE))[0] == 503


async def test_the_start_of_a_push_does_not_open_the_gate(gate) -> None:
    for path in ("/start_weight_update", "/update_weights", "/finish_weight_update/x"):
        assert await ask(gate, "POST", path) == (200, b"inside")
    assert (await ask(gate, *GENERATE))[0] == 503


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/v1/models"), ("GET", "/health"), ("GET", "/inference/v1/x"), ("POST", "/pause"), ("POST", "/resume"),
     ("POST", "/init_weight_transfer_engine"), ("POST", "/update_weights"), ("GET", "/get_world_size")],
)  # fmt: skip
async def test_reading_and_control_routes_are_open_before_the_first_push(gate, method: str, path: str) -> None:
    assert await ask(gate, method, path) == (200, b"inside")


@pytest.mark.parametrize("kind", ["lifespan", "websocket"])
async def test_what_is_not_http_passes(gate, kind: str) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    await gate({"type": kind, "path": "/v1/realtime"}, None, send)
    assert sent == [{"type": f"{kind}.inside"}]
