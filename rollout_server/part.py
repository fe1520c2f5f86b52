"""A completion while its pieces arrive."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

import numpy as np

from wire.errors import ServiceError
from wire.generation import Completion
from wire.pieces import LOGPROB, TOKEN_ID, Piece


@dataclass
class Part:
    """What of it is there: the bytes of its tokens (`TOKEN_ID`) and of their log-probs in nats (`LOGPROB`)."""

    token_ids: bytearray = field(default_factory=bytearray)
    logprobs: bytearray = field(default_factory=bytearray)

    def add(self, piece: Piece) -> int:
        """Take a piece in; returns its number of tokens."""
        self.token_ids += piece.token_ids
        self.logprobs += piece.logprobs
        return len(piece.token_ids) // TOKEN_ID.itemsize

    @property
    def num_tokens(self) -> int:
        """So far."""
        return len(self.token_ids) // TOKEN_ID.itemsize

    def whole(self, last: Piece, index: int, replica: str) -> Completion:
        """The completion, which `last` ends.

        Raises:
            ServiceError: it did not end as completions do, or lacks a log-prob.
        """
        if last.finish_reason not in ("stop", "length"):
            raise ServiceError(f"a completion ended with {last.finish_reason!r}")
        logprobs = np.frombuffer(self.logprobs, LOGPROB).astype(np.float64)
        if len(logprobs) != self.num_tokens:
            raise ServiceError(f"{len(logprobs)} log-probs for {self.num_tokens} tokens")
        ids, finished = array("i", bytes(self.token_ids)), last.finish_reason == "stop"
        return Completion(index, ids, array("d", logprobs.tobytes()), finished, last.versions, replica)
