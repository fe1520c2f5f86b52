"""A replica's route that streams completions as bytes: `POST /inference/v1/packed`, in vLLM's own API process.

Everything up to the stream is vLLM's: the request of `/inference/v1/generate`, its checks, its errors and its way into
the engine. vLLM then builds objects and JSON for every token, once here and once more in the driver; we send a piece's
tokens and log-probs as they lie in memory (`wire/pieces.py`).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import numpy as np
from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from vllm.entrypoints.scale_out.token_in_token_out.protocol import GenerateRequest
from vllm.entrypoints.scale_out.token_in_token_out.serving import ServingTokens
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.utils.api_utils import validate_json_request, with_cancellation
from vllm.exceptions import GenerationError
from vllm.logprobs import FlatLogprobs
from vllm.outputs import CompletionOutput, RequestOutput

from wire.generation import VersionSpan
from wire.pieces import LOGPROB, MEDIA_TYPE, PACKED_PATH, TOKEN_ID, Piece, framed

LOWEST = -9999.0  # what vLLM's own routes say for a log-prob of minus infinity, or none at all

router = APIRouter()


class PackedRoute:
    """ASGI middleware of a replica that adds the route to the application as soon as it sees it.

    vLLM's hook for routes of others is an entry point and a list of the plug-ins that a server may load; this needs
    nothing but its name on the command line.
    """

    def __init__(self, app: Any) -> None:
        self.app = app
        self._is_added = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if not self._is_added:
            served: FastAPI = scope["app"]
            served.include_router(router)
            self._is_added = True
        await self.app(scope, receive, send)


class PackedTokens(ServingTokens):
    """vLLM's serving of tokens, with another stream."""

    async def serve_tokens_stream_generator(  # type: ignore[override]  # bytes for text
        self, request: GenerateRequest, result_generator: AsyncGenerator[RequestOutput, None], *_: Any
    ) -> AsyncGenerator[bytes, None]:
        """The frames of the request's completions."""
        try:
            async for result in result_generator:
                for output in result.outputs:
                    self._raise_if_error(output.finish_reason, result.request_id)
                    if output.token_ids or output.finish_reason is not None:
                        yield framed(piece_of(output))
        except (GenerationError, ValueError, RuntimeError) as error:
            yield framed(Piece(0, error=str(error) or type(error).__name__))


def piece_of(output: CompletionOutput) -> Piece:
    """A delta of vLLM's as a piece."""
    spans = tuple(VersionSpan(span.version, span.start, span.end) for span in output.weight_versions or ())
    ids = np.asarray(output.token_ids, TOKEN_ID).tobytes()
    return Piece(output.index, ids, _logprobs(output.logprobs), output.finish_reason, spans)


def _logprobs(flat: Any) -> bytes:
    """Of the sampled tokens, which are the first of each position."""
    if not flat:
        return b""
    assert isinstance(flat, FlatLogprobs)
    values = np.asarray([flat.logprobs[start] for start in flat.start_indices], LOGPROB)
    return np.maximum(np.nan_to_num(values, nan=LOWEST), LOWEST, dtype=LOGPROB).tobytes()


@router.post(PACKED_PATH, dependencies=[Depends(validate_json_request)])
@with_cancellation
async def packed(request: GenerateRequest, raw_request: Request) -> Response:
    """vLLM's `/inference/v1/generate` with `stream`, and pieces for events."""
    state = raw_request.app.state
    if not hasattr(state, "packed_tokens"):
        state.packed_tokens = PackedTokens(
            state.engine_client, state.openai_serving_models, state.online_renderer, request_logger=None
        )
    request.stream = True
    request.sampling_params.flat_logprobs = True  # lists of numbers, no object a token
    stream = await state.packed_tokens.serve_tokens(request, raw_request)
    if isinstance(stream, ErrorResponse):
        return JSONResponse(stream.model_dump(), status_code=stream.error.code)
    return StreamingResponse(stream, media_type=MEDIA_TYPE)
