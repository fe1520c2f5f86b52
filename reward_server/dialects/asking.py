"""What the dialects' questions share: turns, perhaps a principle, and the responses, without a mark of the judge's own.

    user / assistant turns, [principle], response_1, [response_2]

The chat templates of NVIDIA's GenRMs take these roles. Where the principle stands: NVIDIA-NeMo/Gym 07d6b0d0,
responses_api_models/genrm_model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from reward_server.answers import answer_of
from reward_server.dialects.neutral import neutral
from wire.judgement import Message

CONVERSATION_ROLES = frozenset({"user", "assistant"})


class Unwritable(Exception):
    """The dialect has no form for this request, such as a turn of an unknown role; no generation can help."""


@dataclass(frozen=True)
class Asked:
    """The chat messages that ask for a verdict, and how many places of the responses were altered in them."""

    messages: list[dict[str, str]]
    neutralised: int = 0


def ask(conversation: Sequence[Message], responses: Sequence[str], principle: str | None = None) -> Asked:
    r"""The messages for one or two responses, each without the policy's reasoning.

    Marks are taken out of the turns as well. A prompt can forge a response as a response can, and nobody vouches for a
    data set. And it is fairer: of a user who asks for a `\boxed{}` and a response that gives one, the judge sees both
    altered alike, where the altered response beside the untouched wish would look disobedient. All responses to a
    prompt meet the same turns, so nothing is counted there. The principle is the operator's own and stays as it is.

    Raises:
        Unwritable: a turn is neither the user's nor the assistant's. A turn that called itself `response_1` would be
            judged in the response's stead.
    """
    for turn in conversation:
        if turn.role not in CONVERSATION_ROLES:
            raise Unwritable(f"the judge knows no turn of role {turn.role!r}, only user and assistant")
    messages = [{"role": turn.role, "content": neutral(turn.content)[0]} for turn in conversation]
    if principle is not None:
        messages.append({"role": "principle", "content": principle})
    harmless = [neutral(answer_of(response)) for response in responses]
    messages += [{"role": f"response_{place}", "content": text} for place, (text, _) in enumerate(harmless, start=1)]
    return Asked(messages, sum(num_altered for _, num_altered in harmless))
