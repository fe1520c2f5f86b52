"""Messages of generation (trainer -> rollout_server and back).

    POST /inference/v1/generate    prompt tokens -> K completions, streamed one by one

The route is vLLM's own; these are the parts of it that we read.
"""

from __future__ import annotations

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

    `token_ids` and `logprobs` have the same length; log-probs are of the sampled tokens under the sampling
    distribution, temperature included. `finished` is false for a completion cut at the length limit. `replica` is the
    URL of the server. Example: `Completion(0, (17, 2), (-0.4, -0.1), True, (VersionSpan("0.7", 0, 2),), "http://...")`.
    """

    index: int
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finished: bool
    versions: tuple[VersionSpan, ...]
    replica: str = ""


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


# What a streamed chunk holds, by vLLM's names; unknown fields are skipped.


class TokenLogprob(msgspec.Struct, gc=False):
    """The sampled token of one position."""

    logprob: float


class ChoiceLogprobs(msgspec.Struct):
    """Log-probs of a chunk's tokens, in order."""

    content: list[TokenLogprob] | None = None


class Choice(msgspec.Struct):
    """A part of one completion; the last has a `finish_reason`."""

    index: int
    token_ids: list[int] | None = None
    logprobs: ChoiceLogprobs | None = None
    finish_reason: str | None = None
    weight_versions: list[VersionSpan] | None = None


class Chunk(msgspec.Struct):
    """One server-sent event of the stream; `error` is what vLLM sends in its place when generation failed."""

    choices: list[Choice] = []
    error: dict[str, object] | None = None
