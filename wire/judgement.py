"""Messages of the scoring API (trainer -> reward_server and back).

    POST /v1/judgement   JudgementRequest -> Verdict       one conversation, one or two responses
    POST /v1/group       GroupRequest     -> GroupVerdict  one conversation, K responses
    WebSocket /v1/judgements                               many judgements at once over one connection

Scores are 1..5 (5 best), rankings 1..6 (1: the first response is much better, 6: the second is). A verdict that could
not be had carries `missing`, the reason, and no numbers: a missing score is `null`, never a neutral value.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

MissingReason = Literal["unreadable", "timeout", "server_lost", "too_long", "refused"]


class Message(BaseModel):
    """One turn. Example: `{"role": "user", "content": "tell me about the sea"}`."""

    model_config = ConfigDict(frozen=True)

    role: str
    content: str


class JudgementRequest(BaseModel):
    """Ask for one verdict on one response, or on two against each other.

    Requests that are equal, `seed` and `vote` included, are one judgement: while one is in flight the others join it.
    One of the `background` is let in only while a GenRM server has room and nobody waits; else it is told to come back.
    Example: `{"conversation": [{"role": "user", "content": "..."}], "responses": ["A", "B"], "seed": 7}`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    conversation: tuple[Message, ...] = Field(min_length=1)
    responses: tuple[str, ...] = Field(min_length=1, max_length=2)
    seed: int = Field(default=0, ge=0, lt=2**63)
    vote: int = Field(default=0, ge=0)
    background: bool = False


class Verdict(BaseModel):
    """What the judge said of one or two responses, or why nothing is known.

    `scores` has one number for each response, 1..5; `ranking`, only for two, is 1..6; both are null when `missing` says
    why. `text` is the judge's whole last output, `attempts` the number of generations asked for, `seconds` wall time.
    `key` names the judgement: equal for requests that are one judgement. `neutralised` counts the places of the
    responses that were altered before the judge saw them, because they held marks of its own format.
    """

    model_config = ConfigDict(frozen=True)

    scores: tuple[float, ...] | None = None
    ranking: int | None = None
    missing: MissingReason | None = None
    text: str = ""
    attempts: int = 1
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    server: str = ""
    key: str = ""
    neutralised: int = 0

    @property
    def ties(self) -> bool:
        """Whether two responses got the same individual score."""
        return self.scores is not None and len(self.scores) == 2 and self.scores[0] == self.scores[1]

    @property
    def contradicts(self) -> bool:
        """Whether the ranking prefers the response with the lower individual score."""
        if self.scores is None or self.ranking is None or self.ties:
            return False
        return (self.scores[0] > self.scores[1]) != (self.ranking <= 3)


class GroupRequest(BaseModel):
    """Ask for K scores. `seed` draws the pairing."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    conversation: tuple[Message, ...] = Field(min_length=1)
    responses: tuple[str, ...] = Field(min_length=1)
    seed: int = Field(default=0, ge=0, lt=2**63)


class PlacedVerdict(BaseModel):
    """A verdict with the completions it speaks of: `first` stood in place 1, `second` (if any) in place 2.

    `vote` counts from 0 where the same pair is judged several times.
    """

    model_config = ConfigDict(frozen=True)

    first: int
    second: int | None
    vote: int = 0
    verdict: Verdict


class GroupVerdict(BaseModel):
    """K scores, null where missing, with the provenance of each.

    `unjudged` lists completions that were scored without a call. `same_as[k]` is the completion that was judged for
    completion k: k itself, or the one whose answer is the same. `standard_errors` are those of the scores, in points;
    null where the aggregation gives none.
    """

    model_config = ConfigDict(frozen=True)

    scores: tuple[float | None, ...]
    verdicts: tuple[PlacedVerdict, ...]
    unjudged: tuple[int, ...] = ()
    same_as: tuple[int, ...] = ()
    standard_errors: tuple[float | None, ...] | None = None
