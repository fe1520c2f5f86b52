"""`python -m benchmarks.standin_genrm PORT SPEEDUP`: what a GenRM server looks like from outside, without a model.

It speaks the parts of vLLM's API that the reward service uses: the chat route, /health, /metrics. A verdict takes as
long as its request's seed says, so whoever knows the seed knows the time. Nothing queues, as in an engine with room.
"""

from __future__ import annotations

import asyncio
import math
import sys
from random import Random
from typing import Any

import msgspec
import uvicorn

SHORTEST_S, LONGEST_S = 10.0, 60.0
MEDIAN_S, SPREAD = 22.0, 0.5  # of the log-normal that is clipped to them: most verdicts are short, some think long
NUM_METRICS = 600  # lines of the metrics page, as many as vLLM has

# As long as a verdict of about 2,000 tokens, thought included.
VERDICT = (
    "the response names what was asked for and says little else. " * 150
    + "</think>\n[The Begin of Individual Scores]\n\\boxed{4, 2}\n[The End of Individual Scores]\n"
    + "[The Begin of Ranking Score]\n\\boxed{2}\n[The End of Ranking Score]"
)
REPLY = msgspec.json.encode(
    {
        "id": "standin",
        "object": "chat.completion",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": VERDICT}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3000, "completion_tokens": 2000, "total_tokens": 5000},
    }
)
METRICS = "".join(
    [f'vllm:standin_bucket{{engine="0",le="{i}",model_name="standin"}} {i}.0\n' for i in range(NUM_METRICS)]
    + [f'vllm:prefix_cache_{name}_total{{engine="0",model_name="standin"}} 0.0\n' for name in ("queries", "hits")]
).encode()


class _Order(msgspec.Struct):
    seed: int


def verdict_seconds(seed: int, speedup: float) -> float:
    """How long the verdict of a request with this seed takes: 10..60 s, log-normal, all divided by `speedup`."""
    drawn = Random(seed).lognormvariate(math.log(MEDIAN_S), SPREAD)
    return min(LONGEST_S, max(SHORTEST_S, drawn)) / speedup


class StandIn:
    """The ASGI application."""

    def __init__(self, speedup: float) -> None:
        self._speedup = speedup

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        if scope["path"] == "/v1/chat/completions":
            loop = asyncio.get_running_loop()
            arrived = loop.time()
            order = msgspec.json.decode(await read_body(receive), type=_Order)
            await asyncio.sleep(arrived + verdict_seconds(order.seed, self._speedup) - loop.time())
            await _answer(send, REPLY, b"application/json")
        else:
            await _answer(send, METRICS if scope["path"] == "/metrics" else b"", b"text/plain")


async def read_body(receive: Any) -> bytes:
    """A request's body, whole."""
    parts = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


async def _answer(send: Any, body: bytes, kind: bytes) -> None:
    headers = [(b"content-type", kind), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def main() -> None:
    """Serve on the loopback interface until a signal comes."""
    port, speedup = int(sys.argv[1]), float(sys.argv[2])
    uvicorn.run(StandIn(speedup), host="127.0.0.1", port=port, lifespan="off", log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
