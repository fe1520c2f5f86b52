"""How a judge is asked and read. A dialect is one family of judges: messages go in, numbers come out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from reward_server.dialects.boxed import Boxed
from reward_server.dialects.reading import Reading, Unreadable, Unwritable
from wire.errors import ConfigError
from wire.judgement import Message

__all__ = ["DIALECTS", "Dialect", "Reading", "Unreadable", "Unwritable", "dialect_named"]


class Dialect(Protocol):
    """One family of judges."""

    def messages(self, conversation: Sequence[Message], responses: Sequence[str]) -> list[dict[str, str]]:
        """The chat messages that ask for a verdict on one or two responses.

        Raises:
            Unwritable: the dialect has no form for this conversation.
        """

    def read(self, text: str, num_responses: int) -> Reading:
        """The numbers in the judge's output.

        Raises:
            Unreadable: the output does not keep the contract; nothing else is ever raised, whatever the text.
        """


DIALECTS: dict[str, Dialect] = {"boxed": Boxed()}


def dialect_named(name: str) -> Dialect:
    """The dialect called `name`.

    Raises:
        ConfigError: there is none.
    """
    if name not in DIALECTS:
        raise ConfigError(f"judge_dialect {name!r} is unknown; choose from {', '.join(DIALECTS)}")
    return DIALECTS[name]
