"""The route that a replica's own server gets from us, over vLLM's serving with an engine that is scripted."""

from __future__ import annotations

import asyncio
import math
import warnings
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient

from wire.generation import VersionSpan
from wire.pieces import LOGPROB, PACKED_PATH, TOKEN_ID, Piece, Unframing

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, of what vLLM's serving imports
    from vllm.exceptions import GenerationError
    from vllm.logprobs import FlatLogprobs, Logprob
    from vllm.outputs import CompletionOutput, RequestOutput, WeightVersionSpan

    from rollout_server.packed_route import PackedRoute, PackedTokens, piece_of

REQUEST = {"token_ids": [5, 6], "sampling_params": {"n": 2, "logprobs": 0, "max_tokens": 4, "detokenize": False}}


def delta(index: int, ids: list[int], logprobs: list[float], finish: str | None = None) -> CompletionOutput:
    flat = FlatLogprobs()
    for token, value in zip(ids, logprobs, strict=True):
        flat.append({token: Logprob(value, 1)})
    spans = [WeightVersionSpan("0.3", 0, 1), WeightVersionSpan("0.4", 1, 2)] if finish else None
    return CompletionOutput(index, "", ids, None, flat, finish_reason=finish, weight_versions=spans)


def piece(index: int, ids: list[int], logprobs: list[float], finish: str | None = None) -> Piece:
    spans = (VersionSpan("0.3", 0, 1), VersionSpan("0.4", 1, 2)) if finish else ()
    packed = np.array(ids, TOKEN_ID).tobytes(), np.array(logprobs, LOGPROB).tobytes()
    return Piece(index, *packed, finish, spans)


def test_a_delta_of_the_engine_becomes_a_piece() -> None:
    assert piece_of(delta(1, [7, 2], [-0.5, -0.25], "stop")) == piece(1, [7, 2], [-0.5, -0.25], "stop")
    assert piece_of(delta(0, [7], [-0.5])) == piece(0, [7], [-0.5])
    assert piece_of(delta(0, [], [], "stop")) == piece(0, [], [], "stop")


def test_a_log_prob_that_is_none_is_the_number_that_vllm_gives_for_it() -> None:
    assert piece_of(delta(0, [7, 8], [-math.inf, math.nan])) == piece(0, [7, 8], [-9999.0, -9999.0])


def test_the_sampled_token_is_the_first_of_its_position_where_others_are_told_too() -> None:
    output = delta(0, [], [])
    assert isinstance(output.logprobs, FlatLogprobs)
    output.logprobs.append({7: Logprob(-2.0, 3), 1: Logprob(-0.5, 1)})
    output.logprobs.append({9: Logprob(-0.25, 1)})
    output.token_ids = [7, 9]
    assert piece_of(output) == piece(0, [7, 9], [-2.0, -0.25])


def result(*outputs: CompletionOutput) -> RequestOutput:
    return RequestOutput("r", None, [5, 6], None, list(outputs), finished=False)


class Engine:
    """Gives what it is told to; `asked` is what it was asked for."""

    def __init__(self, *results: RequestOutput | Exception) -> None:
        self.results, self.asked, self.num_aborted = results, [], 0  # type: ignore[var-annotated]
        self.vllm_config = SimpleNamespace(scheduler_config=SimpleNamespace(max_num_seqs=2))

    async def generate(self, *_: Any) -> AsyncIterator[RequestOutput]:
        try:
            for each in self.results:
                if isinstance(each, Exception):
                    raise each
                yield each
                await asyncio.sleep(0)
        except (asyncio.CancelledError, GeneratorExit):
            self.num_aborted += 1
            raise


class Tokens(PackedTokens):
    """The real stream behind checks that let everything pass."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    async def serve_tokens(self, request: Any, raw_request: Any = None) -> Any:
        self.engine.asked.append(request)
        if request.sampling_params.n > 2:
            return self.create_error_response("sampling_params.n must be at most 2")
        return self.serve_tokens_stream_generator(request, self.engine.generate(), "r", "model", None)


async def ask(engine: Engine, request: dict[str, Any] = REQUEST) -> tuple[int, list[Piece] | str]:
    app = FastAPI()
    app.state.packed_tokens = Tokens(engine)
    app.add_middleware(PackedRoute)
    async with AsyncClient(transport=ASGITransport(app), base_url="http://replica") as client:
        for _ in range(2):  # the route is added once
            reply = await client.post(PACKED_PATH, json=request)
    if reply.status_code != 200:
        return reply.status_code, reply.text
    return 200, list(Unframing().feed(reply.content))


async def test_the_route_streams_the_pieces_as_they_come() -> None:
    engine = Engine(result(delta(0, [7], [-0.5])), result(delta(1, [], []), delta(1, [2], [-0.125], "stop")))
    status, pieces = await ask(engine)
    assert status == 200 and pieces == [piece(0, [7], [-0.5]), piece(1, [2], [-0.125], "stop")]
    asked = engine.asked[0]
    assert asked.stream and asked.sampling_params.flat_logprobs and asked.sampling_params.n == 2


@pytest.mark.parametrize("failure", [GenerationError("Internal server error"), RuntimeError("the engine died")])
async def test_a_generation_that_fails_says_so_at_its_end(failure: Exception) -> None:
    status, pieces = await ask(Engine(result(delta(0, [7], [-0.5])), failure))
    assert status == 200 and pieces == [piece(0, [7], [-0.5]), Piece(0, error=str(failure))]


async def test_what_the_engine_calls_an_error_is_no_completion() -> None:
    status, pieces = await ask(Engine(result(delta(0, [], [], "error"))))
    assert status == 200 and isinstance(pieces, list) and pieces[0].error and len(pieces) == 1


async def test_vllms_own_refusals_are_the_routes() -> None:
    sampling = REQUEST["sampling_params"] | {"n": 3}  # type: ignore[operator]
    status, text = await ask(Engine(), REQUEST | {"sampling_params": sampling})
    assert status == 400 and "at most 2" in text
    status, _ = await ask(Engine(), REQUEST | {"token_ids": []})
    assert status == 422
