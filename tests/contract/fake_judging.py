"""What the scoring API has behind it, as fakes."""

from __future__ import annotations

import asyncio

from reward_server.startup import Startup
from wire.errors import ServiceError
from wire.judgement import Message, Verdict

TOKEN = "correct-horse"
TURN = {"role": "user", "content": "sea?"}
CONVERSATION = (Message(**TURN),)
MALFORMED = (  # orders
    {},
    {"conversation": [], "responses": ["a"]},
    {"conversation": [TURN], "responses": []},
    {"conversation": [TURN], "responses": ["a"], "seed": -1},
    {"conversation": [TURN], "responses": ["a"], "k": 4},
)


class FakeJudge:
    """Scores an answer by the number it ends with; an answer `hang` never gets a verdict."""

    num_entering = 0

    def __init__(self) -> None:
        self.asked = []
        self.abandoned = 0

    async def judge(self, conversation, responses, seed, vote=0):
        self.asked.append((tuple(conversation), tuple(responses), seed))
        if "hang" in responses:
            try:
                await asyncio.Event().wait()
            finally:
                self.abandoned += 1
        if "missing" in responses:
            return Verdict(missing="unreadable", text="???", attempts=3)
        scores = tuple(float(response[-1]) for response in responses)
        return Verdict(scores=scores, ranking=None if len(responses) == 1 else 3, text="…", prompt_tokens=9)

    def is_under_way(self, conversation, responses, seed, vote=0):
        return False

    async def render(self, conversation, responses):
        if conversation[0].role == "system":
            raise ServiceError("the judge knows no turn of role 'system'")
        return " | ".join([*(turn.content for turn in conversation), *responses])


class FakePool:
    """A pool as the API reads it."""

    def __init__(self) -> None:
        self.num_ready, self.num_waiting, self.lost_calls, self.room = 1, 0, 0, 256
        self.servers = []
        self.is_full, self.num_in_flight = False, 0


class FakeStarted:
    """Servers of the service's own, as the API sees them."""

    count = 1

    def resize(self, count):
        self.count = count

    def owns(self, url):
        return False

    @property
    def unplaced(self):
        return [("judge-1", Startup("waits for a node"))]
