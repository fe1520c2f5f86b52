"""What a run reads before it starts: prompts, held-out prompts, the tokenizer and its stop ids."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from reward_server.preferences import PreferencePair
from trainer.config import RunSettings
from trainer.dataset import Conversation, load_conversations, pairs_to_check_judge
from trainer.eval_file import read_conversations
from trainer.evaluate import Truth, load_truth
from trainer.prompts import Prompt, PromptRenderer
from trainer.token_text import Decode, decoder_of
from wire.errors import ConfigError


@dataclass
class Material:
    """`stop_token_ids` end a completion; `truth` is None where the true score is not known; the judge is checked on
    `pairs`, if there are any."""

    tokenizer: Any
    stop_token_ids: tuple[int, ...]
    prompts: list[Prompt]
    held_out: list[Prompt]
    truth: Truth | None
    pairs: list[PreferencePair]

    @cached_property
    def decode(self) -> Decode:
        """Turns a completion's tokens into text for the judge, without special tokens."""
        return decoder_of(self.tokenizer)


def load_material(settings: RunSettings, say: Callable[[str], None]) -> Material:
    """Read prompts and tokenizer; `say` is told how many prompts there are.

    Raises:
        ConfigError: as the parts do.
    """
    tokenizer = load_tokenizer(settings)
    renderer = PromptRenderer(
        tokenizer, enable_thinking=settings.enable_thinking, max_prompt_length=settings.max_prompt_length
    )
    prompts, dropped = renderer.render_all(load_conversations(settings, settings.dataset_split), "prompts")
    say(f"{len(prompts)} prompts; {dropped} longer than {settings.max_prompt_length} tokens were dropped")
    held_out: list[Prompt] = []
    if settings.num_eval_prompts:
        held_out, _ = renderer.render_all(_held_out_conversations(settings), "held-out prompts")
    return Material(
        tokenizer=tokenizer,
        stop_token_ids=stop_ids(settings, tokenizer),
        prompts=prompts,
        held_out=held_out[: settings.num_eval_prompts],
        truth=load_truth(settings.truth_function),
        pairs=pairs_to_check_judge(settings),
    )


def _held_out_conversations(settings: RunSettings) -> list[Conversation]:
    if settings.eval_file:
        return read_conversations(Path(settings.eval_file))
    return load_conversations(settings, settings.eval_split)


def training_material(settings: RunSettings) -> Material:
    """What was trained on and the tokenizer alone, for whoever looks at a run afterwards.

    Raises:
        ConfigError: as `load_material` does.
    """
    return load_material(replace(settings, num_eval_prompts=0, judge_check=False, truth_function=None), lambda _: None)


def load_tokenizer(settings: RunSettings) -> Any:
    """The policy's tokenizer. Raises ConfigError where it cannot be had."""
    from transformers import AutoTokenizer

    name, revision = settings.model_name_or_path, settings.model_revision or "main"
    try:
        return AutoTokenizer.from_pretrained(name, revision=revision)
    except (OSError, ValueError) as error:
        raise ConfigError(f"the tokenizer of {name!r} cannot be had: {error}") from error


def stop_ids(settings: RunSettings, tokenizer: Any) -> tuple[int, ...]:
    """The ids that end a completion: all of the model's generation_config, else the tokenizer's one."""
    from transformers import GenerationConfig

    name, revision = settings.model_name_or_path, settings.model_revision or "main"
    with suppress(OSError):
        ids = GenerationConfig.from_pretrained(name, revision=revision).eos_token_id
        if ids is not None:
            return tuple(ids) if isinstance(ids, list) else (int(ids),)
    if tokenizer.eos_token_id is None:
        raise ConfigError(f"{name!r} has no end-of-sequence token; add a generation_config.json")
    return (int(tokenizer.eos_token_id),)
