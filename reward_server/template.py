"""Proof that the judge reads what it is given: its own chat template, rendered by the server that serves it.

    user "dovrelquin"  assistant "mastibork"  user "felquanter"  response_1 "zurimplad"  response_2 "hoskevint"

Each word stands in no template of its own, so it must stand in the prompt exactly once, in this order, each with other
text before it (or a role is not told from the next), and behind the last response the judge must be asked to speak.
A template that knows nothing of the responses' roles leaves them out without a word, and the judge then makes up both.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from reward_server.client import RewardClient
from wire.errors import ConfigError, ServiceError, Unauthorized
from wire.judgement import Message

CONVERSATION = (
    Message(role="user", content="dovrelquin"),
    Message(role="assistant", content="mastibork"),
    Message(role="user", content="felquanter"),
)
RESPONSES = ("zurimplad", "hoskevint")
SYSTEM = Message(role="system", content="wexarnode")
CAUSES = (
    "judge_model_name_or_path is no GenRM of judge_dialect {dialect}, or its chat template was lost or replaced when "
    "it was copied or quantised"
)

SystemTurn = Literal["shown", "left out", "refused"]


@dataclass(frozen=True)
class Template:
    """A template that was proven. `prompt` is its rendering of the words above; what becomes of a system turn."""

    prompt: str
    system_turn: SystemTurn


async def prove_template(client: RewardClient, dialect: str) -> Template:
    """Render the judge's own template and check every role and place in it.

    Raises:
        ConfigError: the template fails on a role, leaves one out, or cannot tell one from another.
        ServiceError: the service does not answer.
        Unauthorized: the service refuses the token.
    """
    await client.info()  # whoever does not answer at all is told from a template that fails
    first, second = RESPONSES
    prompt = await _proven(client, CONVERSATION, (first, second), dialect)
    await _proven(client, CONVERSATION, (second, first), dialect)
    await _proven(client, CONVERSATION, (first,), dialect)
    return Template(prompt, await _system_turn(client))


async def _proven(client: RewardClient, conversation: Sequence[Message], responses: Sequence[str], dialect: str) -> str:
    roles = [*(turn.role for turn in conversation), *(f"response_{place}" for place in range(1, 1 + len(responses)))]
    words = [*(turn.content for turn in conversation), *responses]
    causes = CAUSES.format(dialect=dialect)
    try:
        prompt = await client.render(conversation, responses)
    except Unauthorized:
        raise
    except ServiceError as error:
        raise ConfigError(f"the judge's chat template fails on {', '.join(roles)}: {error}. {causes}") from error
    fault = fault_in(prompt, roles, words)
    if fault:
        raise ConfigError(f"the judge's chat template {fault}. {causes}. The prompt ends: {prompt[-300:]!r}")
    return prompt


def fault_in(prompt: str, roles: Sequence[str], words: Sequence[str]) -> str | None:
    """What is wrong with the rendering of `words`, one for each turn of `roles`, in their order; None: nothing."""
    for role, word in zip(roles, words, strict=True):
        if prompt.count(word) != 1:
            shown = "leaves out" if word not in prompt else f"shows {prompt.count(word)} times"
            return f"{shown} the turn of role {role}"
    places = [prompt.index(word) for word in words]
    if places != sorted(places):
        mixed = [role for _, role in sorted(zip(places, roles, strict=True))]
        return f"shows {', '.join(mixed)} where {', '.join(roles)} were given"
    pieces = re.split("|".join(words), prompt)  # what stands before each word, and behind the last
    gaps = [piece.strip() for piece in pieces[1:-1]]
    if "" in gaps:
        place = gaps.index("")
        return f"puts nothing between the turns of role {roles[place]} and {roles[place + 1]}"
    for place, (gap, next_gap) in enumerate(pairwise(gaps), start=1):
        if gap == next_gap:  # two turns with the same words before them
            return f"does not tell role {roles[place + 1]} from {roles[place]}"
    return None if _asks_to_speak(gaps[-1], pieces[-1]) else "asks for no verdict: nothing follows the last response"


def _asks_to_speak(last_gap: str, behind: str) -> bool:
    """Whether more stands behind the last response than what ends the turn before it, its number aside."""
    ends, behind = (re.sub(r"\d", "#", text) for text in (last_gap, behind.strip()))
    return not ends.startswith(behind)


async def _system_turn(client: RewardClient) -> SystemTurn:
    try:
        prompt = await client.render((SYSTEM, *CONVERSATION), RESPONSES)
    except Unauthorized:
        raise
    except ServiceError:
        return "refused"
    return "shown" if SYSTEM.content in prompt else "left out"
