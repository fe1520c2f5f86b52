"""The conversations that prompts are made of."""

from __future__ import annotations

from reward_server.preferences import DataSettings, PreferencePair, load_pairs, load_rows, turns_in
from trainer.config import RunSettings
from wire.errors import ConfigError

COLUMNS = ("context", "language")

Conversation = list[dict[str, str]]


def load_conversations(settings: DataSettings, split: str) -> list[Conversation]:
    """The `context` column of one split, filtered by language: conversations that end in a user turn.

    Raises:
        ConfigError: as `load_rows` does; or a context is malformed, or none ends in a user turn.
    """
    where = f"{settings.dataset_name} ({split})"
    try:
        contexts = [turns_in(context) for context in load_rows(settings, split, COLUMNS)["context"]]
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None
    conversations = [[{"role": t.role, "content": t.content} for t in turns] for turns in contexts if turns]
    if not conversations:
        raise ConfigError(f"{where} holds no conversation that ends in a user turn")
    return conversations


def pairs_to_check_judge(settings: RunSettings) -> list[PreferencePair]:
    """The preference pairs on which the judge is checked; none where it is not.

    Raises:
        ConfigError: the data set holds none.
    """
    if not settings.checks_judge:
        return []
    try:
        return load_pairs(settings, settings.eval_split)[0]
    except ConfigError as error:
        remedy = "the judge is checked on such pairs; --judge_check false leaves that out"
        raise ConfigError(f"{error}; {remedy}") from error
