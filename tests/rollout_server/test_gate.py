"""A replica serves whole weights only, and hears only what is meant for it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rollout_server.gate import WeightGateMiddleware, Weights

GENERATE = "/inference/v1/generate"
START, UPDATE, FINISH = "/start_weight_update", "/update_weights", "/finish_weight_update"


class Engine:
    """The application behind the gate; `status` is what it answers to everything, `heard` the paths that reached it."""

    def __init__(self) -> None:
        self.status = 200
        self.heard: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            self.heard.append(scope["path"])
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


async def ask(gate: WeightGateMiddleware, path: str, method: str = "POST", **headers: str) -> tuple[int, bytes]:
    """(status, body); headers by their names with `_` for `-`. Every answer must carry the boot id."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    rows = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    await gate({"type": "http", "method": method, "path": path, "headers": rows}, None, send)
    start, body = sent
    assert dict(start["headers"])[b"x-boot-id"] == gate.boot_id.encode()
    return start["status"], body["body"]


async def push(gate: WeightGateMiddleware, push_id: str) -> list[int]:
    return [(await ask(gate, path, x_push_id=push_id))[0] for path in (START, UPDATE, FINISH)]


@pytest.mark.parametrize("path", [GENERATE, "/v1/completions", "/v1/chat/completions", "/v2/rerank"])
async def test_before_the_first_push_a_generating_route_answers_503_and_says_why(gate, path: str) -> None:
    status, body = await ask(gate, path)
    assert status == 503 and b"no weights yet" in body


async def test_after_a_whole_push_the_gate_is_open_and_shuts_with_the_start_of_the_next(gate) -> None:
    assert await push(gate, "a") == [200, 200, 200]
    assert await ask(gate, GENERATE) == (200, b"inside")
    await ask(gate, START, x_push_id="b")
    status, body = await ask(gate, GENERATE)
    assert status == 503 and b"not whole" in body
    await ask(gate, UPDATE, x_push_id="b")
    assert (await ask(gate, GENERATE))[0] == 503
    await ask(gate, FINISH, x_push_id="b")
    assert (await ask(gate, GENERATE))[0] == 200


@pytest.mark.parametrize("status", [400, 401, 500])
async def test_a_push_that_failed_leaves_the_gate_shut_until_another_is_whole(gate, engine, status: int) -> None:
    assert await push(gate, "a") == [200, 200, 200]
    await ask(gate, START, x_push_id="b")
    engine.status = status
    assert await ask(gate, UPDATE, x_push_id="b") == (status, b"inside")
    assert await ask(gate, FINISH, x_push_id="b") == (status, b"inside")
    engine.status = 200
    assert (await ask(gate, GENERATE))[0] == 503
    assert await push(gate, "c") == [200, 200, 200]
    assert (await ask(gate, GENERATE))[0] == 200


async def test_requests_that_were_kept_do_not_go_on_with_half_a_push(gate) -> None:
    await push(gate, "a")
    assert (await ask(gate, "/pause"))[0] == 200
    await ask(gate, START, x_push_id="b")
    status, body = await ask(gate, "/resume")
    assert status == 409 and b"not whole" in body
    await ask(gate, UPDATE, x_push_id="b")
    await ask(gate, FINISH, x_push_id="b")
    assert (await ask(gate, "/resume"))[0] == 200


async def test_what_belongs_to_an_older_push_changes_nothing(gate, engine) -> None:
    await ask(gate, START, x_push_id="old")
    await ask(gate, START, x_push_id="new")
    engine.heard.clear()
    for path in (UPDATE, FINISH):
        status, body = await ask(gate, path, x_push_id="old")
        assert status == 409 and b"push old is not the one that began last (new)" in body
    assert engine.heard == [] and gate.weights is Weights.LOADING


async def test_a_repeated_update_is_refused_and_a_repeated_finish_is_answered_without_doing_it_again(
    gate, engine
) -> None:
    await push(gate, "a")
    engine.heard.clear()
    assert (await ask(gate, UPDATE, x_push_id="a"))[0] == 409
    assert (await ask(gate, FINISH, x_push_id="a"))[0] == 200
    assert engine.heard == []


async def test_a_request_for_another_boot_is_refused_on_every_route(gate, engine) -> None:
    for path in (GENERATE, "/pause", "/resume", START, "/is_paused"):
        status, body = await ask(gate, path, x_boot_id="somebody-else")
        assert status == 409 and b"meant for boot somebody-else" in body
    assert engine.heard == []
    assert (await ask(gate, "/pause", x_boot_id=gate.boot_id))[0] == 200


def test_two_boots_have_two_ids() -> None:
    assert WeightGateMiddleware(None).boot_id != WeightGateMiddleware(None).boot_id


async def test_the_gate_says_in_which_state_it_is(gate) -> None:
    await push(gate, "a")
    await ask(gate, START, x_push_id="b")
    status, body = await ask(gate, "/gate", "GET")
    assert (status, json.loads(body)) == (200, {"boot_id": gate.boot_id, "weights": "loading", "push_id": "b"})


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/v1/models"), ("GET", "/health"), ("GET", "/inference/v1/x"), ("POST", "/pause"), ("POST", "/resume"),
     ("POST", "/init_weight_transfer_engine"), ("POST", "/update_weights"), ("GET", "/get_world_size")],
)  # fmt: skip
async def test_reading_and_control_routes_are_open_before_the_first_push(gate, method: str, path: str) -> None:
    assert await ask(gate, path, method) == (200, b"inside")


@pytest.mark.parametrize("kind", ["lifespan", "websocket"])
async def test_what_is_not_http_passes(gate, kind: str) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    await gate({"type": kind, "path": "/v1/realtime"}, None, send)
    assert sent == [{"type": f"{kind}.inside"}]


async def test_emptied_it_is_as_when_it_started_and_hears_nobody_that_knew_it_before(gate, engine) -> None:
    await push(gate, "a")
    former = gate.boot_id
    await ask(gate, START, x_push_id="b")
    engine.heard.clear()
    status, body = await ask(gate, "/gate")
    assert (status, json.loads(body)) == (200, {"boot_id": gate.boot_id, "weights": "empty", "push_id": None})
    assert gate.boot_id != former
    for path in (UPDATE, FINISH, "/resume", GENERATE):
        assert (await ask(gate, path, x_boot_id=former, x_push_id="b"))[0] == 409
    assert (await ask(gate, UPDATE, x_push_id="b"))[0] == 409
    status, body = await ask(gate, GENERATE)
    assert status == 503 and b"no weights yet" in body and engine.heard == []
    assert (await ask(gate, "/resume"))[0] == 200
    assert await push(gate, "c") == [200, 200, 200]


async def test_the_end_of_a_push_from_before_makes_nothing_whole(engine) -> None:
    async def emptied_meanwhile(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == FINISH:
            await ask(gate, "/gate")
        await engine(scope, receive, send)

    gate = WeightGateMiddleware(emptied_meanwhile)
    await ask(gate, START)
    await ask(gate, UPDATE)
    assert (await ask(gate, FINISH))[0] == 200
    assert gate.weights is Weights.EMPTY
