"""A file of prompts to evaluate on: JSONL, one prompt a line.

    {"context": [{"role": "user", "content": "tell me about the sea"}]}     as in HelpSteer3
    {"messages": [{"role": "user", "content": "tell me about the sea"}]}
    {"prompt": "tell me about the sea"}                                     one turn, or a list of turns as above

Other fields are not looked at. The first of the three that a line has counts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from reward_server.preferences import turns_in
from trainer.dataset import Conversation
from wire.errors import ConfigError

FIELDS = ("context", "messages", "prompt")


def read_conversations(path: Path) -> list[Conversation]:
    """All of them, in order; empty lines are left out.

    Raises:
        ConfigError: the file cannot be read, or a line of it; the message names the line.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"eval_file {path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    conversations = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                conversations.append(_conversation_in(json.loads(line)))
            except ValueError as error:  # a JSONDecodeError is one
                raise ConfigError(f"eval_file {path}, line {number}: {error}; correct it, or take it out") from None
    if not conversations:
        raise ConfigError(f"eval_file {path} holds no prompt; give one a line")
    return conversations


def _conversation_in(row: Any) -> Conversation:
    """Raises ValueError where there is none."""
    field = next((name for name in FIELDS if isinstance(row, dict) and name in row), None)
    if field is None:
        raise ValueError(f"it is no object with one of {', '.join(FIELDS)}")
    value = row[field]
    if field == "prompt" and isinstance(value, str):
        value = [{"role": "user", "content": value}]
    try:
        turns = turns_in(value)
    except ValueError:
        raise ValueError(f"`{field}` must be a list of role/content turns") from None
    if not turns or not turns[-1].content.strip():
        raise ValueError(f"`{field}` must end in a user's turn that says something")
    return [{"role": turn.role, "content": turn.content} for turn in turns]
