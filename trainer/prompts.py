"""The endless, seeded stream of prompts."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.bar import progress_bar
from trainer.dataset import Conversation
from wire.errors import ConfigError

SEED_BITS = 62  # vLLM draws completion i of a request with seed + i, in a signed 64-bit integer


@dataclass(frozen=True)
class Prompt:
    """One conversation to answer.

    `occurrence` is its place in the stream, counted from 0 over all epochs: unique in a run. `token_ids` is the
    rendered chat template, generation prompt included.
    """

    occurrence: int
    conversation: tuple[dict[str, str], ...]
    token_ids: tuple[int, ...]


def hash_seed(*parts: object) -> int:
    """A seed in 0 .. 2^62 - 1 from any parts; adjacent inputs give unrelated seeds, on every machine the same."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> (64 - SEED_BITS)


class PromptRenderer:
    """Conversations to prompt tokens, through the policy's own chat template.

    Args:
        tokenizer: the policy's.
        enable_thinking: passed to the template.
        max_prompt_length: longer prompts are dropped, never cut.
    """

    def __init__(self, tokenizer: Any, *, enable_thinking: bool, max_prompt_length: int) -> None:
        self._tokenizer, self._enable_thinking, self._max_length = tokenizer, enable_thinking, max_prompt_length

    def render(self, conversation: Conversation) -> tuple[int, ...]:
        """Token ids of the whole conversation and the start of the answer."""
        ids = self._tokenizer.apply_chat_template(
            conversation, add_generation_prompt=True, return_dict=False, enable_thinking=self._enable_thinking
        )
        return tuple(ids)

    def render_all(self, conversations: Sequence[Conversation], title: str) -> tuple[list[Prompt], int]:
        """(prompts that fit, number dropped for length).

        Raises:
            ConfigError: none fits.
        """
        prompts: list[Prompt] = []
        dropped = 0
        for conversation in progress_bar(conversations, desc=title, unit="prompt", leave=False, mininterval=1.0):
            ids = self.render(conversation)
            if len(ids) > self._max_length:
                dropped += 1
            else:
                prompts.append(Prompt(len(prompts), tuple(conversation), ids))
        if not prompts:
            raise ConfigError(f"no prompt fits max_prompt_length ({self._max_length}); raise it")
        return prompts, dropped


class PromptStream:
    """Prompts without end, shuffled anew each epoch by (seed, epoch); can be set to any place.

    Args:
        prompts: one epoch.
        seed: the run's.
    """

    def __init__(self, prompts: Sequence[Prompt], seed: int) -> None:
        self._prompts, self._seed = list(prompts), seed
        self._next = 0
        self._skip: frozenset[int] = frozenset()
        self._order: tuple[int, list[int]] = (-1, [])

    def seek(self, occurrence: int, skip: Iterable[int] = ()) -> None:
        """Go on from this place of the stream, and leave out the places in `skip`."""
        self._next, self._skip = occurrence, frozenset(skip)

    def __iter__(self) -> Iterator[Prompt]:
        return self

    def __next__(self) -> Prompt:
        while self._next in self._skip:
            self._next += 1
        epoch, place = divmod(self._next, len(self._prompts))
        if self._order[0] != epoch:
            order = list(range(len(self._prompts)))
            random.Random(hash_seed(self._seed, "epoch", epoch)).shuffle(order)
            self._order = (epoch, order)
        chosen = self._prompts[self._order[1][place]]
        prompt = Prompt(self._next, chosen.conversation, chosen.token_ids)
        self._next += 1
        return prompt
