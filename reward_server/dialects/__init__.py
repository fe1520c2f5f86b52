"""How a judge is asked and read. A dialect is one family of judges: messages go in, numbers come out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from reward_server.dialects.asking import Asked, Unwritable
from reward_server.dialects.boxed import Boxed
from reward_server.dialects.json_scores import JsonScores
from reward_server.dialects.reading import Reading, Unreadable
from wire.errors import ConfigError
from wire.judgement import Message

__all__ = ["DIALECTS", "Asked", "Dialect", "Reading", "Unreadable", "Unwritable", "dialect_named"]


class Dialect(Protocol):
    """One family of judges."""

    def messages(self, conversation: Sequence[Message], responses: Sequence[str]) -> Asked:
        """The chat messages that ask for a verdict on one or two responses, harmless ones.

        Raises:
            Unwritable: the dialect has no form for this conversation.
        """

    def read(self, text: str, num_responses: int) -> Reading:
        """The numbers in the judge's output.

        Raises:
            Unreadable: the output does not keep the contract; nothing else is ever raised, whatever the text.
        """


DIALECTS: dict[str, type[Dialect]] = {"boxed": Boxed, "json": JsonScores}


def dialect_named(name: str, principle: str | None = None) -> Dialect:
    """The dialect called `name`; its judge shall judge by `principle` where one is given.

    Raises:
        ConfigError: there is none of that name, it takes no principle, or the principle is empty.
    """
    if name not in DIALECTS:
        raise ConfigError(f"judge_dialect {name!r} is unknown; choose from {', '.join(DIALECTS)}")
    if principle is None:
        return DIALECTS[name]()
    if name != "json":
        raise ConfigError(
            f"judge_principle {principle!r} goes with judge_dialect json, not {name!r}: "
            "give it to a judge whose chat template takes the role principle, or leave it out"
        )
    if not principle.strip():
        raise ConfigError(f"judge_principle {principle!r} says nothing; leave it out, or say what to judge by")
    return JsonScores(principle)
