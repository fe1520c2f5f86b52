"""The service's end of the channel (`wire/channel.py`)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

import msgspec
from fastapi import HTTPException, WebSocket, WebSocketDisconnect
from pydantic import ValidationError

from wire.channel import Answered, Asked
from wire.judgement import JudgementRequest, Verdict

# Of RFC 6455: the frame is none of the channel's; the connection ended without a farewell that has a code.
POLICY_VIOLATION, CUT = 1008, frozenset({1005, 1006})
# In which what was asked over a connection that was cut goes on: who asks for the same over a new one joins it.
LINGER_S = 10.0

log = logging.getLogger(__name__)

Answer = Callable[[JudgementRequest], Awaitable[Verdict]]  # raises HTTPException where there is none

_decode = msgspec.json.Decoder(Asked).decode
_encode = msgspec.json.Encoder().encode


async def serve_channel(socket: WebSocket, answer: Answer) -> None:
    """Answer what is asked over the connection, each as soon as it can be, until it is closed.

    What is under way then is cancelled, as is what is withdrawn: an unread verdict costs minutes of GPU. Where the
    connection was cut it first goes on for `LINGER_S` seconds. A frame that is none of the channel's closes the
    connection, with the reason.
    """
    await socket.accept()
    tasks: set[asyncio.Task[None]] = set()
    under_way: dict[int, asyncio.Task[None]] = {}  # by number: neither answered nor withdrawn

    async def work(number: int, order: bytes) -> None:
        reply = await _reply(number, order, answer)
        under_way.pop(number)
        with suppress(WebSocketDisconnect, RuntimeError):  # the asker is gone; the loop below is told so too
            await socket.send_text(_encode(reply).decode())

    try:
        while (message := await socket.receive())["type"] != "websocket.disconnect":
            try:
                asked = _decode(message.get("text") or message.get("bytes") or b"")
                order = bytes(asked.order)
                if order and asked.id in under_way:
                    raise ValueError(f"id {asked.id} is under way already")
            except (ValueError, RecursionError) as error:  # msgspec's among them
                with suppress(WebSocketDisconnect, RuntimeError):
                    await socket.close(POLICY_VIOLATION, str(error)[:100])
                return
            if order:
                task = under_way[asked.id] = asyncio.create_task(work(asked.id, order))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            elif asked.id in under_way:
                under_way.pop(asked.id).cancel()
        if tasks and message.get("code") in CUT:
            with suppress(asyncio.CancelledError):  # the service ends
                await asyncio.wait(tasks, timeout=LINGER_S)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _reply(number: int, order: bytes, answer: Answer) -> Answered:
    """What `POST /v1/judgement` would answer."""
    try:
        verdict = await answer(JudgementRequest.model_validate_json(order))
    except ValidationError as error:
        return _refusal(number, 422, str(error))
    except HTTPException as error:
        return _refusal(number, error.status_code, error.detail, float((error.headers or {}).get("Retry-After", 0)))
    except Exception:  # a failure of the service's: the asker is told, and asks again as after any 5xx
        log.exception("a judgement failed")
        return _refusal(number, 500, "Internal Server Error")
    return Answered(number, 200, msgspec.Raw(verdict.model_dump_json().encode()))


def _refusal(number: int, status: int, detail: str, retry_after_s: float = 0.0) -> Answered:
    return Answered(number, status, msgspec.Raw(_encode({"detail": detail})), retry_after_s)
