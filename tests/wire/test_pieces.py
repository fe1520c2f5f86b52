"""Completions as bytes on the wire."""

from __future__ import annotations

import random

import msgspec
import numpy as np
import pytest

from wire.generation import VersionSpan
from wire.pieces import LOGPROB, TOKEN_ID, Piece, Unframing, framed

SPANS = (VersionSpan("0.7", 0, 2), VersionSpan("1.8", 2, 3))
PIECES = [
    Piece(1, np.array([5, 151_000, 0], TOKEN_ID).tobytes(), np.array([-0.5, -9999, -1e-7], LOGPROB).tobytes()),
    Piece(0, finish_reason="stop", versions=SPANS),
    Piece(0, error="the engine died"),
    Piece(2, bytes(400_000), bytes(400_000), "length", SPANS),
]


@pytest.mark.parametrize("seed", range(20))
def test_pieces_come_out_as_they_went_in_wherever_the_stream_is_cut(seed: int) -> None:
    stream, rng, unframing = b"".join(map(framed, PIECES)), random.Random(seed), Unframing()
    cuts = sorted(rng.randrange(len(stream)) for _ in range(rng.randrange(9)))
    cuts += range(12) if seed % 2 else []
    blocks = [stream[a:b] for a, b in zip([0, *sorted(cuts)], [*sorted(cuts), len(stream)], strict=True)]
    assert [piece for block in blocks for piece in unframing.feed(block)] == PIECES


def test_what_is_no_piece_is_refused() -> None:
    with pytest.raises(msgspec.MsgspecError):
        list(Unframing().feed(b"\0\0\0\4data"))


def test_a_token_is_eight_bytes() -> None:
    ids, logprobs = np.arange(1000, dtype=TOKEN_ID), np.zeros(1000, LOGPROB)
    assert len(framed(Piece(0, ids.tobytes(), logprobs.tobytes(), "stop", SPANS))) < 8 * 1000 + 80
