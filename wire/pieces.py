"""A stream of completions as bytes (rollout_server -> trainer).

    POST /inference/v1/packed    the request of vLLM's /inference/v1/generate -> pieces of its completions

A frame is the length of a message, four bytes in network order, and the message in MessagePack. vLLM's own stream has
an object of JSON for each token; here a token is eight bytes, which nobody looks at one by one.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import msgspec
import numpy as np

from wire.generation import VersionSpan

PACKED_PATH = "/inference/v1/packed"
MEDIA_TYPE = "application/octet-stream"
TOKEN_ID, LOGPROB = np.dtype("<i4"), np.dtype("<f4")  # an engine's log-probs have no more digits

_LENGTH = struct.Struct("!I")
_encoder = msgspec.msgpack.Encoder()


class Piece(msgspec.Struct, array_like=True, gc=False):
    """Tokens of one completion.

    `index` says of which. `token_ids` are of dtype `TOKEN_ID`; `logprobs`, of the sampled tokens and in nats, of
    `LOGPROB`. The last piece of a completion has vLLM's `finish_reason` and the versions of all its tokens. `error`
    says that generation failed; nothing follows it. Example:
    `Piece(0, b"\\x07\\0\\0\\0", b"\\0\\0\\0\\xbf", "stop")`.
    """

    index: int
    token_ids: bytes = b""
    logprobs: bytes = b""
    finish_reason: str | None = None
    versions: tuple[VersionSpan, ...] = ()
    error: str = ""


def framed(piece: Piece) -> bytes:
    """The frame that carries it."""
    message = _encoder.encode(piece)
    return _LENGTH.pack(len(message)) + message


class Unframing:
    """Pieces out of the blocks of a stream, wherever it was cut into blocks."""

    def __init__(self) -> None:
        self._rest = b""
        self._decoder = msgspec.msgpack.Decoder(Piece)

    def feed(self, block: bytes) -> Iterator[Piece]:
        """The pieces that are whole with this block.

        Raises:
            msgspec.MsgspecError: this is no stream of pieces.
        """
        data = self._rest + block if self._rest else block
        start, view = 0, memoryview(data)
        while len(data) - start >= _LENGTH.size:
            begin = start + _LENGTH.size
            end = begin + _LENGTH.unpack_from(data, start)[0]
            if end > len(data):
                break
            yield self._decoder.decode(view[begin:end])
            start = end
        self._rest = data[start:]
