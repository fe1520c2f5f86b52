"""Messages of generation (trainer -> rollout_server and back).

    POST /inference/v1/packed    prompt tokens -> K completions, in pieces as they are written (`wire/pieces.py`)

The request is that of vLLM's own route, `/inference/v1/generate`.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import msgspec


class VersionSpan(msgspec.Struct, frozen=True):
    """Tokens `[start, end)` of a completion were written by the weights labelled `version`.

    Example: `("0.7", 0, 105)`.
    """

    version: str
    start: int
    end: int


class Completion(msgspec.Struct, frozen=True):
    """One completion as the replica wrote it.

    `token_ids` (32-bit integers) and `logprobs` (64-bit floats, nats) have the same length; log-probs are of the
    sampled tokens under the sampling distribution, temperature included. Of other sequences arrays are made. `finished`
    is false for a completion cut at the length limit. `replica` is the URL of the server. Example:
    `Completion(0, token_array((17, 2)), logprob_array((-0.4, -0.1)), True, (VersionSpan("0.7", 0, 2),), "http://...")`.
    """

    index: int
    token_ids: array[int]
    logprobs: array[float]
    finished: bool
    versions: tuple[VersionSpan, ...]
    replica: str = ""

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "token_ids", token_array(self.token_ids))
        msgspec.structs.force_setattr(self, "logprobs", logprob_array(self.logprobs))


def token_array(ids: Sequence[int]) -> array[int]:
    """Token ids as they are kept: the array itself where it is one, for thousands of Python integers would be made of
    each completion otherwise."""
    return ids if isinstance(ids, array) and ids.typecode == "i" else array("i", ids)


def logprob_array(values: Sequence[float]) -> array[float]:
    """Log-probs as they are kept, likewise."""
    return values if isinstance(values, array) and values.typecode == "d" else array("d", values)


class PolicyVersion(msgspec.Struct, frozen=True, order=True):
    """(lineage, step): optimizer steps behind the weights, and how often a restore broke with the past."""

    lineage: int
    step: int

    @property
    def label(self) -> str:
        """What is stamped on tokens, such as `0.7`."""
        return f"{self.lineage}.{self.step}"

    @classmethod
    def parse(cls, label: str) -> PolicyVersion:
        """The inverse of `label`; ValueError on anything else, such as `default`, vLLM's label before a push."""
        lineage, _, step = label.partition(".")
        return cls(int(lineage), int(step))
